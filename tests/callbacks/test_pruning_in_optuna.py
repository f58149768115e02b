"""TrialPruning in objectives of plain Optuna: what users of optuna-integration's callback rely on, and more."""

from pathlib import Path

import lightning.pytorch as pl
import optuna
import pytest
import torch
from distributed_script import run_distributed
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from torch.multiprocessing import ProcessExitedException
from torch.utils.data import DataLoader, TensorDataset

from lightning_hp.callbacks.pruning import TrialPruning


class Verdict(optuna.pruners.BasePruner):
    """Always says the same."""

    def __init__(self, verdict):
        self.verdict = verdict

    def prune(self, study, trial):
        return self.verdict


class Ranked(pl.LightningModule):
    """Rank 0 logs 0.3 plus the number of the epoch, rank 1 0.6 plus it: 0.45 on average."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).sum()

    def validation_step(self, batch, batch_idx):
        alone = self.trainer.world_size == 1
        value = 0.45 if alone else (0.3, 0.6)[self.global_rank]
        self.log("accuracy", value + self.current_epoch, sync_dist=not alone)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.zeros(4, 1)), batch_size=1)

    val_dataloader = train_dataloader


def trainer_of(folder, callbacks, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    settings = {"max_epochs": 2, "enable_checkpointing": False, **quiet, **options}
    return pl.Trainer(default_root_dir=folder, callbacks=callbacks, **settings)


def objective_of(folder, monitor="accuracy", **options):
    def objective(trial):
        pruning = TrialPruning(trial, monitor)
        trainer_of(folder, [pruning], **options).fit(Ranked())
        if pruning.pruned:
            raise optuna.TrialPruned
        assert pruning.curve == trial.study.trials[trial.number].intermediate_values
        return pruning.best("max")

    return objective


def one_trial(folder, verdict, storage=None, **options):
    """The trial of a study of one; again where gloo aborted a rank that had ended (see ``distributed_script``)."""
    for attempt in range(3):
        study = optuna.create_study(storage=storage, pruner=Verdict(verdict), direction="maximize")
        try:
            study.optimize(objective_of(folder, **options), n_trials=1)
        except ProcessExitedException as error:
            if attempt == 2 or error.signal_name != "SIGABRT":
                raise
        else:
            return study.trials[0]
    raise AssertionError("not reached")


def test_a_trial_is_pruned_at_its_first_validation_or_is_complete(tmp_path):
    pruned = one_trial(tmp_path, True)
    assert (pruned.state, pruned.intermediate_values) == (TrialState.PRUNED, {1: pytest.approx(0.45)})
    complete = one_trial(tmp_path, False)
    assert (complete.state, complete.value) == (TrialState.COMPLETE, pytest.approx(1.45))
    assert complete.intermediate_values == {1: pytest.approx(0.45), 2: pytest.approx(1.45)}


def test_the_sanity_check_is_no_step(tmp_path):
    trial = one_trial(tmp_path, False, max_epochs=1, num_sanity_val_steps=4)
    assert list(trial.intermediate_values) == [1]


def test_a_metric_that_is_missing_fails_the_trial_and_names_what_is_logged(tmp_path):
    study = optuna.create_study(pruner=Verdict(True))
    with pytest.raises(ValueError, match=r"`monitor` must be a metric that the model logs \(accuracy\), got 'acuracy'"):
        study.optimize(objective_of(tmp_path, monitor="acuracy"), n_trials=1)
    assert (study.trials[0].state, study.trials[0].intermediate_values) == (TrialState.FAIL, {})


@pytest.mark.parametrize("max_steps", [None, 4])
def test_a_resumed_training_counts_on(tmp_path, max_steps):
    study = optuna.create_study(pruner=Verdict(False))
    first, second = (TrialPruning(study.ask(), "accuracy", max_steps) for _ in range(2))
    trainer = trainer_of(tmp_path, [first, SavesAfter(1, tmp_path / "second.ckpt")], max_epochs=4)
    trainer.fit(Ranked())
    trainer_of(tmp_path, [second], max_epochs=4).fit(Ranked(), ckpt_path=tmp_path / "second.ckpt")
    assert (list(first.curve), list(second.curve)) == ([1, 2, 3, 4], [3, 4])


class SavesAfter(pl.Callback):
    def __init__(self, epoch, file):
        self.epoch, self.file = epoch, file

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.file)


def storages(folder):
    return {
        "memory": None,
        "sqlite": RDBStorage(f"sqlite:///{folder}/study.db"),
        "journal": JournalStorage(JournalFileBackend(str(folder / "study.log"))),
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memory", "sqlite", "journal"])
def test_spawned_ranks_leave_curve_and_verdict_with_the_objective(tmp_path, kind):
    storage = storages(tmp_path)[kind]
    two = {"devices": 2, "strategy": "ddp_spawn"}
    pruned = one_trial(tmp_path, True, storage, **two)
    assert (pruned.state, pruned.intermediate_values) == (TrialState.PRUNED, {1: pytest.approx(0.45)})
    complete = one_trial(tmp_path, False, storage, **two)
    assert (complete.state, complete.value) == (TrialState.COMPLETE, pytest.approx(1.45))
    assert complete.intermediate_values == {1: pytest.approx(0.45), 2: pytest.approx(1.45)}


@pytest.mark.slow
def test_forked_ranks_are_refused_since_they_leave_nothing_behind(tmp_path):
    with pytest.raises(Exception, match=r"`strategy` must be one that spawns its processes \(ddp_spawn\)"):
        one_trial(tmp_path, True, devices=2, strategy="ddp_fork")


SCRIPT = """
import os, sys
sys.path.insert(0, {tests!r})
import optuna
from test_pruning_in_optuna import Verdict, Ranked, trainer_of
from lightning_hp.callbacks.pruning import TrialPruning

def objective(trial):
    trial.suggest_float("x", 0, 1)
    pruning = TrialPruning(trial, "accuracy")
    trainer_of({folder!r}, [pruning], devices=2, strategy="ddp").fit(Ranked())
    return pruning.best("max")

study = optuna.create_study(storage="sqlite:///{folder}/study.db", study_name="s", load_if_exists=True)
study.optimize(objective, n_trials=1)
"""


@pytest.mark.slow
def test_a_script_that_ddp_runs_again_in_each_rank_is_refused_before_it_trains(tmp_path):
    script = tmp_path / "study.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    ran = run_distributed(script)
    assert ran.returncode != 0
    assert "ValueError: `trial` must be the same in all ranks" in ran.stderr
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/study.db")
    assert [trial.intermediate_values for trial in study.trials] == [{}] * len(study.trials)
    assert TrialState.COMPLETE not in {trial.state for trial in study.trials}
