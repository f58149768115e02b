"""Models and data: a BatchNorm MLP, its LightningModules, DataModules."""

from lightning_hp.training.data import DigitsDataModule as DigitsDataModule
from lightning_hp.training.mlp import BatchNormMLP as BatchNormMLP
from lightning_hp.training.modules import BatchNormClassifier as BatchNormClassifier
from lightning_hp.training.modules import BatchNormRegressor as BatchNormRegressor
from lightning_hp.training.optimizers import build_optimizer as build_optimizer
from lightning_hp.training.optimizers import build_schedule as build_schedule
from lightning_hp.training.optimizers import parameter_groups as parameter_groups
from lightning_hp.training.tabular import TabularDataModule as TabularDataModule
