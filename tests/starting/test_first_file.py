"""The first tune.yaml: what it takes of a project, what it leaves, and that it tunes."""

import shutil
import sys
import warnings
from pathlib import Path

import cli_projects as projects
import pytest
import torch
import yaml

from lightning_hp import TuneConfig, cli
from lightning_hp.project.length import TrainingLength
from lightning_hp.project.yaml_file import ConfigError
from lightning_hp.starting.first_file import choose, duration, plain, quoted, suggestion
from lightning_hp.starting.project import builder_of, file_for_classes, is_train_file, study_name

ROOT = Path(__file__).parents[2]
STOPPING = {"class_path": "EarlyStopping", "init_args": {"monitor": "train_loss", "mode": "max"}}
SMALL = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Lightning says of the projects is said to their authors
        yield


def write(name="train.yaml", trainer=None, **parts):
    Path(name).write_text(yaml.safe_dump({**parts, "trainer": {**SMALL, **(trainer or {})}}))
    return Path(name)


def net(**init_args):
    return {"class_path": "cli_projects.Net", "init_args": init_args}


def data(**init_args):
    return {"class_path": "cli_projects.Data", "init_args": init_args}


def first(command=None, **parts):
    return choose(builder_of([write(**parts)], None, None, command), "study")


def names(chosen_or_left):
    return {one.candidate.key: getattr(one, "name", getattr(one, "why", "")) for one in chosen_or_left}


class Renamed(projects.Net):
    """Calls everything by names that nobody knows, has arguments without effect, and a momentum of BatchNorm."""

    def __init__(
        self,
        speed: float = 0.05,
        inertia: float = 0.6,
        shrink: float = 1e-3,
        lr: float = 0.3,
        momentum: float = 0.1,
        width: int = 8,
        hidden_size: int = 32,
        num_heads: int = 4,
        eps: float = 0.03,
        learning_rate_decay: float = 0.5,
    ):
        super().__init__(width=width)
        self.save_hyperparameters()
        self.norm = torch.nn.BatchNorm1d(3, momentum=momentum)

    def configure_optimizers(self):
        hp = self.hparams
        return torch.optim.SGD(self.parameters(), lr=hp.speed, momentum=hp.inertia, weight_decay=hp.shrink)


class Deep(projects.Net):
    """A width that must be even."""

    def __init__(
        self, lr: float = 0.1, width: int = 16, num_layers: int = 2, dropout: float = 0.2, momentum: float = 0.0
    ):
        if width % 8:
            raise ValueError(f"`width` must be a multiple of 8, got {width!r}")
        super().__init__(lr=lr, width=width)
        layers = [m for _ in range(num_layers) for m in (torch.nn.Linear(width, width), torch.nn.Dropout(dropout))]
        self.net = torch.nn.Sequential(torch.nn.Linear(3, width), *layers, torch.nn.Linear(width, 1))


def test_values_are_known_by_what_the_optimizer_does_with_them():
    """Names are not needed where the optimizer shows the value, and are not believed where it does not."""
    found = first(model={"class_path": "test_first_file.Renamed"}, data=data(batch_size=8))
    assert names(found.chosen) == {
        "model.init_args.speed": "learning_rate",
        "model.init_args.inertia": "momentum",
        "model.init_args.shrink": "weight_decay",
        "data.init_args.batch_size": "batch_size",
    }
    left = names(found.left)
    assert left["model.init_args.lr"] == "no setting of an optimizer follows it"
    assert "0.1 is an unusual one" in left["model.init_args.momentum"]
    assert "multiple of another value" in left["model.init_args.hidden_size"]  # there are heads
    assert "multiple of another value" in left["model.init_args.width"]
    assert left["model.init_args.eps"] == "no setting of an optimizer follows it"
    assert "differs from project to project" in left["model.init_args.learning_rate_decay"]


def test_an_end_of_a_range_that_the_project_refuses_is_not_searched():
    found = first(model={"class_path": "test_first_file.Deep"}, data=data())
    assert "must be a multiple of 8, got 4" in names(found.left)["model.init_args.width"]
    assert names(found.chosen)["model.init_args.num_layers"] == "num_layers"
    assert names(found.chosen)["model.init_args.dropout"] == "dropout"


def test_an_optimizer_in_the_file_is_searched_and_the_model_s_unused_rate_is_not():
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.3, "momentum": 0.6}}
    found = first(model=net(lr=0.1), data=data(), optimizer=sgd)
    assert names(found.chosen)["optimizer.init_args.lr"] == "learning_rate"
    assert names(found.chosen)["optimizer.init_args.weight_decay"] == "weight_decay"
    assert names(found.left)["model.init_args.lr"] == "no setting of an optimizer follows it"
    adam = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01, "betas": [0.8, 0.99]}}
    found = first(model=net(optimizer=adam), data=data())
    inside = "model.init_args.optimizer.init_args"
    assert (
        names(found.chosen).items()
        >= {
            f"{inside}.lr": "learning_rate",
            f"{inside}.betas[0]": "beta1",
            f"{inside}.betas[1]": "beta2",
            f"{inside}.eps": "epsilon",
        }.items()
    )


def test_what_a_link_or_a_hook_sets_is_not_searched():
    linked = first("cli_projects.LinkedCLI", model=net(), data=data())
    assert "model.init_args.width" not in {**names(linked.chosen), **names(linked.left)}
    hooked = first("cli_projects.OverwritingCLI", model=net(), data=data())
    assert "before_instantiate_classes" in names(hooked.left)["model.init_args.width"]


def test_the_largest_batch_leaves_two_steps_of_an_epoch():
    found = first(model=net(), data=data(batch_size=8))  # of 32 rows
    (batch,) = (one for one in found.chosen if one.name == "batch_size")
    assert batch.fields["choices"] == [2, 4, 8, 16]


@pytest.mark.parametrize(
    ("callbacks", "expected"),
    [
        (None, ("val_loss", "min", "validation logs it")),
        (
            [{"class_path": "EarlyStopping", "init_args": {"monitor": "train_loss", "mode": "max"}}],
            ("train_loss", "max"),
        ),
    ],
)
def test_the_metric_is_what_callbacks_watch_else_what_validation_logs(callbacks, expected):
    found = first(model=net(), data=data(), trainer={"callbacks": callbacks})
    assert (found.metric.name, found.metric.mode, found.metric.why)[: len(expected)] == expected


def test_cost_counts_epochs_or_steps_of_the_file(monkeypatch):
    found = first(model=net(), data=data(), trainer={"max_epochs": 7})
    assert found.epoch.batches == 4
    assert found.training_seconds() == pytest.approx(found.epoch.setup_seconds + 7 * found.epoch.epoch_seconds())
    steps = first(model=net(), data=data(), trainer={"max_epochs": -1, "max_steps": 80, "accumulate_grad_batches": 2})
    epoch = steps.epoch
    batches = 160 * epoch.batch_seconds + 40 * epoch.validation_seconds
    assert steps.training_seconds() == pytest.approx(epoch.setup_seconds + batches)
    assert "80 optimiser steps" in steps.cost()


def test_without_a_length_the_file_asks_for_one():
    builder = builder_of([write(model=net(), data=data(), trainer={"max_epochs": None})], None, None, None)
    text = choose(builder, "study", train=False).text(Path(), "2026-01-01")
    Path("tune.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"`budget.max_epochs` must be a whole number of at least 1, got None"):
        TuneConfig.from_file("tune.yaml")


def test_without_a_metric_the_file_asks_for_one():
    builder = builder_of([write(model=net(), data=data())], None, None, None)
    Path("tune.yaml").write_text(choose(builder, "study", train=False).text(Path(), "2026-01-01"))
    with pytest.raises(ConfigError, match=r"`monitor` is missing"):
        TuneConfig.from_file("tune.yaml")


def test_init_says_what_is_left_to_write(capsys):
    write(model=net(lr=0.01), data=data(), trainer={"max_epochs": None})
    assert cli.main(["init", "train.yaml", "--no-run"]) == 0
    out = capsys.readouterr().out
    assert "metric     not chosen: " in out
    assert (
        "next       write `monitor` and `budget.max_epochs` into tune.yaml; then lightning-hp tune tune.yaml\n" in out
    )
    assert cli.main(["init", "train.yaml", "--max_epochs", "1", "--output", "whole.yaml"]) == 0
    out = capsys.readouterr().out
    assert "next       lightning-hp tune whole.yaml\n" in out
    if "left out" in out:
        commented = [line for line in Path("whole.yaml").read_text().splitlines() if line.startswith("  # ")]
        assert "listed in the file as comments" in out
        assert commented


def test_looking_leaves_the_project_s_folder_and_the_caller_as_they_were():
    write(model=net(), data=data(), trainer={"logger": True, "enable_checkpointing": True})
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    choose(builder_of([Path("train.yaml")], None, None, None), "study")
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("train", [True, False])
def test_the_text_is_read_back_as_what_was_chosen(train):
    found = choose(builder_of([write(model=net(), data=data())], None, None, None), "study", train=train)
    text = found.text(Path(), "2026-01-01")
    assert yaml.safe_load(text)["space"] == {one.candidate.key: dict(one.fields) for one in found.chosen}
    lines = text.partition("space:")[2].replace("\n  # Not", "\n  ## Not").replace("\n  # ", "\n  ")
    suggested = [one for one in found.left if suggestion(one.candidate)]  # what is commented out is YAML too
    assert len(yaml.safe_load(lines)) == len(found.chosen) + len(suggested)


def test_init_writes_a_file_that_tunes_and_replaces_nothing(capsys):
    write(model=net(lr=0.01), data=data())
    assert cli.main(["init", "train.yaml", "--trials", "3"]) == 0
    out = capsys.readouterr().out
    assert "metric     val_loss (min): validation logs it" in out
    assert "model.init_args.lr {low: 0.0001, high: 1.0, scale: log, tier: A}, yours 0.01" in out
    assert "3 trials take about" in out
    written = Path("tune.yaml").read_text()
    assert cli.main(["init", "train.yaml"]) == 1
    assert "must be a file that does not exist yet, got 'tune.yaml'" in capsys.readouterr().err
    assert Path("tune.yaml").read_text() == written
    assert cli.main(["tune", "tune.yaml"]) == 0
    name = study_name(Path("train.yaml"))
    best = yaml.safe_load(Path(f"runs/{name}/best.yaml").read_text())["model"]["init_args"]
    ranges = {key.rpartition(".")[2]: fields for key, fields in yaml.safe_load(written)["space"].items()}
    assert {"lr", "width"} <= set(ranges)
    assert all(ranges[key]["low"] <= best[key] <= ranges[key]["high"] for key in ("lr", "width"))


def test_tune_takes_a_training_file_alone_and_keeps_what_it_chose(capsys):
    write("waves.yaml", model=net(), data=data())
    assert cli.main(["tune", "waves.yaml", "--trials", "2"]) == 0
    assert "no tune.yaml: chooses" in capsys.readouterr().out
    chosen = Path("runs/waves/tune.yaml").read_text()
    assert cli.main(["tune", "waves.yaml", "--trials", "3"]) == 0
    assert "goes on with what was chosen before" in capsys.readouterr().out
    assert Path("runs/waves/tune.yaml").read_text() == chosen
    assert len(list(Path("runs/waves/trials").glob("*/metrics.csv"))) == 3
    assert cli.main(["tune", "waves.yaml", "--trials", "2", "--restart"]) == 0
    assert len(list(Path("runs/waves/trials").glob("*/metrics.csv"))) == 2
    assert len(list(Path("runs/waves.old-1/trials").glob("*/metrics.csv"))) == 3
    assert cli.main(["tune", "runs/waves/tune.yaml", "--cli", "main.py"]) == 1
    assert "go with a LightningCLI file" in capsys.readouterr().err


MODULE = """\
from cli_projects import Data as _Data, Net as _Net


class Mine(_Net):
    def __init__(self, lr: float = 0.02, width: int = 8, momentum: float = 0.0):
        super().__init__(lr, width, momentum)


class Rows(_Data):
    pass
"""


def test_init_of_a_module_writes_a_training_file_too(monkeypatch, capsys, tmp_path):
    Path("own_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert cli.main(["init", "own_module:Mine"]) == 1
    assert "`--max_epochs` is missing" in capsys.readouterr().err
    assert not Path("train.yaml").exists()
    assert cli.main(["init", "own_module:Mine", "--max_epochs", "2"]) == 0
    train, tuned = (yaml.safe_load(Path(name).read_text()) for name in ("train.yaml", "tune.yaml"))
    assert train == {
        "model": {"class_path": "own_module.Mine"},
        "data": {"class_path": "own_module.Rows"},
        "trainer": {"max_epochs": 2},
    }
    assert tuned["space"]["model.init_args.lr"] == {"low": 0.0002, "high": 2.0, "scale": "log", "tier": "A"}
    assert cli.main(["tune", "tune.yaml", "--trials", "1"]) == 0
    sys.modules.pop("own_module")


def test_a_file_without_classes_names_the_scripts_that_may_be_the_command(capsys):
    Path("main.py").write_text(projects.SCRIPT)
    write(model={"lr": 0.1}, data={"batch_size": 8})
    assert cli.main(["init", "train.yaml"]) == 1
    assert "where main.py is your command, add --cli main.py" in capsys.readouterr().err
    assert cli.main(["init", "train.yaml", "--cli", "main.py", "--no-run"]) == 0
    assert yaml.safe_load(Path("tune.yaml").read_text())["cli"] == "main.py"


def test_a_project_that_does_not_train_is_told_so():
    write(model=net(), data=data(batch_size=0))
    with pytest.raises(ConfigError, match="must be a project that trains, but its own training fails: "):
        choose(builder_of([Path("train.yaml")], None, None, None), "study")


def test_a_class_that_is_none_of_lightning_s_is_refused():
    with pytest.raises(
        ConfigError, match=r"`project` must name a LightningModule as package.module:Class, got 'yaml:Dum"
    ):
        file_for_classes("yaml:Dumper", None, 2)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("a/digits.yaml", "digits"),
        ("nets/config.yaml", "nets"),
        ("x y/train.yaml", "x-y"),
        ("a/é.yaml", "study"),
        ("nets/configs/base.yaml", "nets"),
        ("nets/conf/small.yaml", "small"),
    ],
)
def test_a_study_is_named_after_the_file_or_its_folder(file, name):
    assert study_name(Path(file)) == name


def test_training_files_and_tune_files_are_told_apart():
    for file in ROOT.glob("configs/**/*.yaml"):
        assert is_train_file(yaml.safe_load(file.read_text())) != ("space" in file.read_text()), file


@pytest.mark.parametrize("value", [1e-4, 3e-05, 1.0, 5, True, None, "yes", "a: b", [1e-6, 0.5], "val/loss"])
def test_values_are_written_as_yaml_reads_them(value):
    again = yaml.safe_load(plain(value))
    assert again == value
    assert type(again) is type(value)


def test_keys_with_brackets_are_quoted():
    assert yaml.safe_load("{" + quoted("a.b[0]") + ": 1}") == {"a.b[0]": 1}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.482, "0.48 s"), (40, "40 s"), (720, "12 min"), (12600, "3.5 h"), (0.0, "0 s")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


EXAMPLES = {
    "digits_cli": ("digits_cli.py", "val/loss", 7, 0),
    "moons_gan": ("moons_gan.py", "distance", 5, 0),
    "parts": ("train.py", "val_loss", 5, 0),
}


@pytest.mark.parametrize("project", EXAMPLES)
def test_example_projects(project, monkeypatch, tmp_path):
    command, metric, recognised, _ = EXAMPLES[project]
    shutil.copytree(ROOT / "examples/projects" / project, "copy")
    monkeypatch.chdir("copy")
    monkeypatch.syspath_prepend(str(tmp_path / "copy"))
    for module in ("digits_cli", "moons_gan", "waves"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    Path("tune.yaml").unlink()
    found = choose(builder_of([Path("config.yaml")], None, None, command), project)
    assert (found.metric.name, len(found.chosen)) == (metric, recognised)
    assert found.length == TrainingLength(max_epochs=5 if project == "parts" else 4)
    Path("tune.yaml").write_text(found.text(Path(), "2026-01-01"))
    assert cli.main(["tune", "tune.yaml", "--trials", "3"]) == 0
