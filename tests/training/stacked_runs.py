"""The same members trained one at a time by a Trainer, and together in a stack."""

import logging
import warnings

import lightning.pytorch as pl
import torch

from lightning_hp.training.stacked import Member, train_stacked

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def trainer(**arguments):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pl.Trainer(**{**QUIET, "accelerator": "cpu", "max_epochs": 3, "precision": "64-true", **arguments})


def build(seed, module, data, **arguments):
    """One member as a sequential trial builds it: seed, module, data, Trainer."""
    pl.seed_everything(seed, verbose=False)
    return Member(module(), trainer(**arguments), data(), tag=seed)


def alone(members):
    """Fit each with its own Trainer; returns the modules and what their callbacks see."""
    out = []
    for member in members:
        member.random_state.restore()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            member.trainer.fit(member.module, datamodule=member.datamodule)
        out.append((member.module, {k: float(v) for k, v in member.trainer.callback_metrics.items()}))
    return out


def both(modules, data, train=train_stacked, **arguments):
    """Outcomes of the stack, and (module, metrics) of each member alone."""
    singles = alone([build(seed, module, data, **arguments) for seed, module in enumerate(modules)])
    return train([build(seed, module, data, **arguments) for seed, module in enumerate(modules)]), singles


def difference(module, other):
    """The largest difference between the tensors of two modules."""
    pairs = zip(module.state_dict().items(), other.state_dict().items(), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for (n, a), (m, b) in pairs if n == m)


def assert_equal(outcomes, singles, tolerance=1e-9, metrics=1e-6, ignore=()):
    for outcome, (module, logged) in zip(outcomes, singles, strict=True):
        assert outcome.refused is None, outcome.refused
        apart = difference(outcome.member.module, module)
        assert apart < tolerance
        for name in logged.keys() - set(ignore):
            assert abs(outcome.metrics[name] - logged[name]) < metrics * max(1, abs(logged[name])), name


def rates(members):
    return [[group["lr"] for group in member.trainer.optimizers[0].param_groups] for member in members]


__all__ = ["QUIET", "alone", "assert_equal", "both", "build", "difference", "rates", "torch", "trainer"]
