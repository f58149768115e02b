"""Studies whose trials are trained together: what is stored is what single trials would have stored."""

import json
import os
import signal

import lightning.pytorch as pl
import optuna
import pytest
import torch
from cohort_studies import SPACE, TRAINER, Digits, assert_as_alone, study
from optuna.trial import TrialState
from torch import nn
from torch.nn import functional

from lightning_hp.callbacks.audit.reference import weights_fingerprint
from lightning_hp.project.build import PythonBuilder
from lightning_hp.project.yaml_file import ConfigError
from lightning_hp.report.audits import audited_trials, findings_of
from lightning_hp.report.view import StudyView
from lightning_hp.study.confirmed import CONFIRMS
from lightning_hp.training import BatchNormClassifier
from lightning_hp.training.stacked.training import _Run
from lightning_hp.tuning import cohort_plan, cohorts, runner
from lightning_hp.tuning.cohort_plan import cohort_size, newcomers
from lightning_hp.tuning.config import TuneConfig
from lightning_hp.tuning.engines import run


@pytest.fixture
def said(monkeypatch):
    """What the runner says."""
    from lightning_hp.tuning.runner import StudyRunner

    lines = []
    monkeypatch.setattr(StudyRunner, "say", lambda self, text: lines.append(text))
    return lines


def test_trials_are_stored_as_if_each_had_been_trained_alone(studies, tmp_path):
    result = study(studies)
    trials = studies.trials("digits")
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 12
    cohort_of = [t.user_attrs["cohort"] for t in trials]
    assert max(cohort_of.count(cohort) for cohort in cohort_of) == 2
    for cohort in set(cohort_of):
        assert len({t.params["hidden_units"] for t in trials if t.user_attrs["cohort"] == cohort}) == 1
    assert len({t.params["hidden_units"] for t in trials}) > 2
    assert len({t.params["learning_rate"] for t in trials}) == 12
    for trial in trials[:4]:
        assert_as_alone(trial, tmp_path)
        assert "stage" in trial.user_attrs or trial.number
    assert result.value == min(t.value for t in trials)


def test_the_winner_is_an_ordinary_checkpoint_with_the_stored_value(studies):
    result = study(studies, mode="min")
    assert result.validation["val_loss"] == pytest.approx(result.value, rel=1e-5)
    model = BatchNormClassifier.load_from_checkpoint(result.checkpoint, weights_only=True)
    data = Digits()
    answer = pl.Trainer(**TRAINER, enable_progress_bar=False).validate(model, data, verbose=False)[0]
    assert answer["val_loss"] == pytest.approx(result.value, rel=1e-5)
    assert torch.load(result.checkpoint, weights_only=True)["epoch"] in (0, 1, 2)
    kept = [
        t.number for t in studies.trials("digits") if studies.paths("digits").trial(t.number).best_checkpoint.exists()
    ]
    best = sorted(studies.trials("digits"), key=lambda t: t.value)[:3]
    assert sorted(kept) == sorted(t.number for t in best)
    rows = (studies.paths("digits").trial(0).root / "metrics.csv").read_text().splitlines()
    assert rows[0].startswith("epoch,step,")
    assert len(rows) == 4


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_winner_by_its_mean_has_the_checkpoint_of_one_of_its_trainings(studies, said, seed):
    result = study(studies, trials=20, seed=seed, keep_checkpoints=1)
    trials = studies.trials("digits")
    confirming = [t for t in trials if CONFIRMS in t.user_attrs]
    assert len(confirming) in (2, 4, 6), "two seeds of up to three configurations"
    assert len({t.user_attrs["seed"] for t in confirming}) == len(confirming)
    assert any(line.startswith("training the best again on fresh seeds: trials ") for line in said)
    assert not any("no validation metrics" in line for line in said)
    assert result.checkpoint.is_file()
    assert result.validation["val_loss"] == pytest.approx(result.value, rel=1e-5)
    together = {}
    for t in confirming:
        together.setdefault(t.user_attrs[CONFIRMS], set()).add(t.user_attrs["cohort"])
    assert all(len(numbers) == 1 for numbers in together.values()), "the seeds of a configuration are one stack"


def test_all_seeds_of_a_confirmation_are_one_stack_however_small_a_cohort_is(studies, said):
    study(studies, trials=20, confirm={"candidates": 2, "seeds": 3}, engine={"engine": "stacked", "cohort": 2})
    confirming = [t for t in studies.trials("digits") if CONFIRMS in t.user_attrs]
    assert len(confirming) == 3 * len({t.user_attrs[CONFIRMS] for t in confirming}) > 0
    for root in {t.user_attrs[CONFIRMS] for t in confirming}:
        assert len({t.user_attrs["cohort"] for t in confirming if t.user_attrs[CONFIRMS] == root}) == 1


def test_rivals_of_different_widths_are_confirmed_in_one_stack(studies, monkeypatch):
    train, groups = _Run.train, []

    def recorded(run, group, memory, check):
        groups.append([one.member.tag.trial for one in group])
        return train(run, group, memory, check)

    monkeypatch.setattr(_Run, "train", recorded)
    study(studies, trials=20, confirm={"candidates": 3, "seeds": 2})
    confirming = [t for t in studies.trials("digits") if CONFIRMS in t.user_attrs]
    (race,) = [group for group in groups if confirming[0].number in [trial.number for trial in group]]
    assert sorted(trial.number for trial in race) == [t.number for t in confirming][: len(race)]
    assert len({trial.params["hidden_units"] for trial in race}) > 1
    others = [group for group in groups if group is not race]  # what the race left over searches on after it
    assert all(len({trial.params["hidden_units"] for trial in group}) == 1 for group in others)


def test_every_trial_may_bring_a_structure_of_its_own(studies):
    study(studies, trials=6, confirm=False, engine={"engine": "stacked", "structures": 1.0})
    assert [t.user_attrs["cohort"] for t in studies.trials("digits")] == list("012345")


def test_the_winner_is_audited_and_leaves_the_moments_of_its_validation_data(studies):
    result = study(studies)
    paths = studies.paths("digits")
    audit = json.loads((paths.trial(result.trial).root / "audit.json").read_text())
    assert [layer["name"] for layer in audit["layers"]] == ["net.hidden.0.1", "net.hidden.1.1"]
    model = BatchNormClassifier.load_from_checkpoint(result.checkpoint, weights_only=True).eval()
    data = Digits()
    data.setup("validate")
    inputs = []
    model.net.hidden[1][1].register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach()))
    for x, _ in data.val_dataloader():
        model(x)
    seen, reference = torch.cat(inputs), json.loads(paths.reference.read_text())
    moments = reference["layers"]["net.hidden.1.1"]
    assert moments["rows"] == len(seen)
    assert moments["mean"] == pytest.approx(seen.mean(0).tolist(), rel=1e-4, abs=1e-5)
    assert moments["var"] == pytest.approx(seen.var(0, correction=0).tolist(), rel=1e-2)
    loaded = torch.load(result.checkpoint, weights_only=True)
    assert reference["weights"] == weights_fingerprint(loaded["state_dict"])
    auditor = loaded["callbacks"]["BatchNormAuditor"]
    assert auditor["reference"] == reference["layers"]  # as a training with an auditor leaves its checkpoint
    assert auditor["findings"] == audit["findings"]
    view = StudyView.read(studies.open("digits"))
    assert [trial.number for trial in audited_trials(view)] == [result.trial]  # so report and dashboard show it
    assert {s: findings_of(view, audited_trials(view)[0], s) for s in audit["counts"]} == audit["counts"]


def test_without_audits_the_winner_has_none(studies):
    builder = PythonBuilder(BatchNormClassifier, Digits, TRAINER)
    settings = {"name": "digits", "folder": str(studies.folder / "digits"), "audit": False, "prune": False}
    settings |= {"caviar": {"engine": "stacked"}}
    result = run(TuneConfig.from_arguments(SPACE, {"trials": 4, "max_epochs": 2}, settings), builder)
    assert not (studies.paths("digits").trial(result.trial).root / "audit.json").exists()
    assert not studies.paths("digits").reference.exists()


def test_a_study_goes_on_where_it_was(studies):
    study(studies, trials=12)
    first = studies.trials("digits")
    study(studies, trials=14)
    assert [t.value for t in studies.trials("digits")[:12]] == [t.value for t in first]
    assert len(studies.trials("digits")) == 14


def test_what_diverges_is_flagged_and_teaches_the_corner(studies):
    space = {**SPACE, "learning_rate": {"low": 1e-3, "high": 1e30, "scale": "log", "tier": "A", "default": 0.05}}
    study(studies, space=space, module=Bare, trials=6)
    trials = studies.trials("digits")
    diverged = [t for t in trials if t.user_attrs.get("diverged")]
    assert diverged
    assert all(t.state is TrialState.COMPLETE for t in diverged)
    assert any(t.value < 2.4 for t in trials if t not in diverged)


def test_the_pruner_stops_members(studies):
    study(studies, prune=True, trials=18, max_epochs=8)
    trials = studies.trials("digits")
    pruned = [t for t in trials if t.state is TrialState.PRUNED]
    assert pruned
    assert all(max(t.intermediate_values) < 8 for t in pruned)
    assert all(t.user_attrs["epochs"] == max(t.intermediate_values) for t in pruned)


def test_a_cohort_is_stopped_by_one_model_and_its_curves_are_whole(studies, monkeypatch):
    from lightning_hp.search.pruner import CurvePruner

    sizes, cull = [], CurvePruner.cull

    def counted(pruner, study, trials):
        sizes.append(len(trials))
        stored = [t for t in study.get_trials(deepcopy=False) if t.number in {shown.number for shown in trials}]
        assert all(
            len(a.intermediate_values) <= len(b.intermediate_values) for a, b in zip(stored, trials, strict=True)
        )
        return cull(pruner, study, trials)

    monkeypatch.setattr(CurvePruner, "cull", counted)
    monkeypatch.setattr(CurvePruner, "prune", None)
    study(studies, prune=True, trials=24, max_epochs=8)
    assert max(sizes) == 4
    for trial in studies.trials("digits"):
        last = max(trial.intermediate_values)
        assert sorted(trial.intermediate_values) == list(range(1, last + 1))
        assert last == trial.user_attrs["epochs"]
        if trial.state is TrialState.PRUNED:
            assert trial.user_attrs["stopped"]["step"] == last


def test_another_pruner_is_asked_about_each_member(studies, monkeypatch):
    pruner = optuna.pruners.ThresholdPruner(upper=1.6, n_warmup_steps=2)
    monkeypatch.setattr(runner, "pruner_of", lambda *of: pruner)
    study(studies, prune=True, trials=12, max_epochs=8)
    trials = studies.trials("digits")
    assert any(t.state is TrialState.PRUNED for t in trials)
    for trial in trials:
        values = [trial.intermediate_values[step] for step in sorted(trial.intermediate_values)]
        assert (trial.state is TrialState.PRUNED) == (values[-1] > 1.6)
        assert max(values[2:-1], default=0.0) <= 1.6


class Bare(pl.LightningModule):
    """No norm, nothing known of stacks."""

    def __init__(self, learning_rate=0.1, momentum=0.9, hidden_units=8):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(64, hidden_units), nn.ReLU(), nn.Linear(hidden_units, 10))

    def training_step(self, batch, batch_idx):
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.learning_rate, momentum=self.hparams.momentum)


class Prints(Bare):
    def on_train_epoch_end(self):
        assert self.trainer.current_epoch >= 0


class TrainLoss(Bare):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss, on_epoch=True, on_step=False)
        return loss


def test_a_module_that_cannot_be_stacked_is_trained_by_its_own_trainer_and_the_reason_is_said(studies, said):
    study(studies, module=Prints, trials=6)
    trials = studies.trials("digits")
    assert all(t.state is TrialState.COMPLETE for t in trials)
    reason = "Prints overrides on_train_epoch_end, which needs a Trainer"
    assert said == [f"trials are trained one after another: {reason}"]
    assert trials[0].user_attrs["not_stacked"] == reason
    assert not any("cohort" in t.user_attrs for t in trials)


def test_a_metric_of_training_is_left_to_the_trainer(studies, said):
    study(studies, module=TrainLoss, trials=4, monitor="train_loss")
    assert said == ["trials are trained one after another: train_loss is not logged by validation"]
    assert all(t.state is TrialState.COMPLETE for t in studies.trials("digits"))


def test_a_crash_is_that_of_a_single_trial(studies):
    studies.run(faults="1:crash", engine="stacked", progress=False)
    trials = studies.trials()
    assert [t.state is TrialState.FAIL for t in trials] == [False, True, False, False, False, False]
    assert trials[1].user_attrs["failure"] == "RuntimeError: the toy broke"


def test_a_cohort_that_runs_out_of_memory_is_split(studies, monkeypatch, said):
    train, sizes = cohorts.train_stacked, []

    def small(members, **options):
        sizes.append(len(members))
        if len(members) > 2:
            raise torch.OutOfMemoryError("tried to allocate 20 GiB")
        return train(members, **options)

    monkeypatch.setattr(cohorts, "train_stacked", small)
    monkeypatch.setattr(cohort_plan, "LEAST_ROUNDS", 1)
    study(studies, trials=10)
    assert max(sizes) > 3, "else nothing was split twice"
    split = [line for line in said if line.startswith("out of memory with ")]
    assert len(split) == sum(size > 2 for size in sizes)
    assert "trials together: trained in halves: trials " in split[0]
    assert sum(size for size in sizes if size <= 2) == 10
    trials = studies.trials("digits")
    assert all(t.state is TrialState.COMPLETE for t in trials)
    assert len({t.value for t in trials}) == 10


def test_ctrl_c_stops_after_the_running_cohort(studies, monkeypatch):
    train = cohorts.train_stacked

    def interrupted(members, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return train(members, **options)

    monkeypatch.setattr(cohorts, "train_stacked", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        study(studies)
    assert [t.state for t in studies.trials("digits")] == [TrialState.COMPLETE] * 2
    monkeypatch.setattr(cohorts, "train_stacked", train)
    study(studies)
    assert [t.state for t in studies.trials("digits")] == [TrialState.COMPLETE] * 12


def test_a_killed_cohort_is_run_again_with_the_same_values(studies, fork, monkeypatch):
    train, calls = cohorts.train_stacked, []

    def killed(members, **options):
        calls.append(len(members))
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return train(members, **options)

    def work():
        monkeypatch.setattr(cohorts, "train_stacked", killed)
        study(studies)

    child = fork(work)
    assert child.wait() == -signal.SIGKILL
    before = studies.trials("digits")
    assert [t.state for t in before] == [TrialState.COMPLETE] * 2 + [TrialState.RUNNING] * 2
    study(studies)
    after = studies.trials("digits")
    assert [t.state for t in after] == [TrialState.COMPLETE] * 12
    assert [t.params for t in after[:4]] == [t.params for t in before]
    assert [t.user_attrs["cohort"] for t in after[2:4]] == ["2", "2"]


def test_the_size_of_a_cohort():
    assert [cohort_size(n, None) for n in (1, 6, 24, 60, 600, 6000)] == [2, 2, 4, 4, 25, 64]
    assert [cohort_size(n, None, few=2) for n in (6, 24, 60, 600)] == [2, 2, 2, 25]
    assert cohort_size(60, 7) == 7
    assert [newcomers(n, cohort_size(n, None)) for n in (24, 60, 600, 6000)] == [0, 0, 25, 64]
    assert [newcomers(240, size) for size in (2, 4, 5, 8)] == [0, 0, 5, 8], "few members leave their places empty"


@pytest.mark.parametrize(
    ("share", "wanted", "size", "further"),
    [(0.25, None, 4, 0), (0.1, None, 4, 6), (0.5, None, 2, 0), (1.0, None, 1, 0), (0.25, 2, 2, 2), (0.25, 8, 4, 0)],
)
def test_the_share_of_structures_says_how_many_trials_share_one(share, wanted, size, further):
    assert cohort_size(60, wanted, structures=share) == size
    assert newcomers(60, size, share) == further


@pytest.mark.parametrize(
    ("caviar", "message"),
    [
        ({"engine": "stack"}, r"`caviar.engine` must be one of auto, in_process, stacked, local, ray, got 'stack'"),
        ({"engine": "in_process", "workers": 2}, r"`caviar.workers` must be 1 for the engine in_process .*, got 2"),
        ({"engine": "stacked", "cohort": 0}, r"`caviar.cohort` must be a whole number of at least 1, got 0"),
        ({"engine": "local", "cohort": 8}, r"`caviar.cohort` goes with the engine stacked, got 'local'"),
        ({"engine": "local", "structures": 0.5}, r"`caviar.structures` goes with the engine stacked, got 'local'"),
        *(
            (
                {"engine": "auto", "structures": share},
                rf"`caviar.structures` must be a number above 0 and at most 1, got {shown}",
            )
            for share, shown in [(0, "0"), (1.5, r"1\.5"), ("all", "'all'"), (True, "True"), (float("nan"), "nan")]
        ),
    ],
)
def test_what_the_file_may_say_about_cohorts(tmp_path, caviar, message):
    (tmp_path / "train.yaml").write_text("{}")
    given = {"name": "x", "config": "train.yaml", "space": SPACE | {}, "caviar": caviar}
    with pytest.raises(ConfigError, match=message):
        TuneConfig.from_dict(given, base=tmp_path)


def test_a_project_of_lightningcli_files(tmp_path, monkeypatch, studies):
    from lightning_hp.tuning.tune import tune_file

    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.yaml").write_text(
        "model: {class_path: lightning_hp.training.BatchNormClassifier, init_args: {hidden_units: 8}}\n"
        "data: {class_path: lightning_hp.training.DigitsDataModule, init_args: {batch_size: 256}}\n"
        "trainer: {accelerator: cpu, max_epochs: 2, num_sanity_val_steps: 0,\n"
        "  logger: {class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: logs}}}\n"
    )
    space = {f"model.init_args.{name}": entry for name, entry in SPACE.items() if name != "hidden_units"}
    text = {"name": "cli", "config": "train.yaml", "budget": {"trials": 4}, "space": space, "prune": False}
    (tmp_path / "tune.yaml").write_text(json.dumps({**text, "caviar": {"engine": "stacked", "cohort": 4}}))
    result = tune_file("tune.yaml", progress=False)
    assert result.validation["val_loss"] == pytest.approx(result.value, rel=1e-5)
    cohort_of = [t.user_attrs["cohort"] for t in result.study.get_trials()]
    assert len(cohort_of) == 4 > len(set(cohort_of)) > 1
    assert len(list((tmp_path / "runs/cli/trials/0002").rglob("logs/**/metrics.csv"))) == 1
