"""Stacked training: many ordinary LightningModules of one structure, trained in one pass on one machine."""

from lightning_hp.training.stacked.member import Member as Member
from lightning_hp.training.stacked.protocol import Stackable as Stackable
from lightning_hp.training.stacked.protocol import StackedStep as StackedStep
from lightning_hp.training.stacked.refusal import NotStackable as NotStackable
from lightning_hp.training.stacked.stack import Stack as Stack
from lightning_hp.training.stacked.stack import stack as stack
from lightning_hp.training.stacked.training import Outcome as Outcome
from lightning_hp.training.stacked.training import Report as Report
from lightning_hp.training.stacked.training import train_stacked as train_stacked
