"""What a trial is built from: LightningCLI files as other projects write them, and Python callables."""

import json
import sys
from functools import wraps
from pathlib import Path

import lightning.pytorch as pl
import pytest
import toy_project as toy
import yaml
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI

from lightning_hp import SearchSpace, cli
from lightning_hp.project.build import CliBuilder, PythonBuilder
from lightning_hp.project.length import TrainingLength
from lightning_hp.project.yaml_file import ConfigError
from lightning_hp.study.storage import StudyError, find_study
from lightning_hp.tuning.objective import trial_seed

TRAINER = {"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with train.yaml and tune.yaml, and the working directory of the test."""
    monkeypatch.chdir(tmp_path)

    def write(train=toy.TRAIN_YAML, tune=toy.TUNE_YAML, **changes):
        train = train if isinstance(train, str) else yaml.safe_dump(train)
        mapping = yaml.safe_load(tune)
        mapping.update(changes)
        Path("train.yaml").write_text(train)
        Path("tune.yaml").write_text(yaml.safe_dump({k: v for k, v in mapping.items() if v is not None}))
        return Path("tune.yaml")

    return write


def run(*arguments):
    return cli.main([str(a) for a in arguments])


def winner(name="toy"):
    return json.loads(Path(f"runs/{name}/result.json").read_text())


def space_of(**parameters):
    return SearchSpace.from_dict(parameters)


# --- LightningCLI files ---


def test_a_file_with_class_paths(project):
    assert run("tune", project()) == 0
    found = winner()
    best = yaml.safe_load(Path("runs/toy/best.yaml").read_text())
    assert best["model"]["class_path"] == "toy_project.Toy"
    assert best["model"]["init_args"]["learning_rate"] == found["natural"]["learning_rate"]
    assert best["data"]["init_args"]["batch_size"] == found["natural"]["batch_size"]
    assert best["seed_everything"] == trial_seed(0, found["trial"])
    assert best["trainer"]["max_epochs"] == 2
    assert Path("train.yaml").read_text() == toy.TRAIN_YAML, "the project's file stays as it is"


def test_best_yaml_gives_the_winner_again_by_plain_lightningcli_and_by_fit(project, monkeypatch):
    """The toy's loss holds a draw of the seed, so values and seed must both be right."""
    run("tune", project())
    found = winner()
    monkeypatch.setattr(sys, "argv", ["train.py"])
    made = LightningCLI(args=["fit", "--config", "runs/toy/best.yaml"], save_config_callback=None)
    assert float(made.trainer.callback_metrics["val_loss"]) == pytest.approx(found["value"], abs=1e-7)
    for name in ("learning_rate", "momentum"):
        assert made.model.hparams[name] == found["natural"][name]
    assert made.datamodule.batch_size == found["natural"]["batch_size"]
    seen = []
    original = toy.Toy.on_fit_end
    toy.Toy.on_fit_end = lambda self: seen.append(float(self.trainer.callback_metrics["val_loss"]))
    try:
        assert run("fit", "runs/toy/best.yaml") == 0
    finally:
        toy.Toy.on_fit_end = original
    assert seen == [pytest.approx(found["value"], abs=1e-7)]


WITHOUT_CLASS_PATH = {
    "seed_everything": True,
    "model": {"learning_rate": 0.1},
    "data": {"batch_size": 4},
    "trainer": {**TRAINER, "max_epochs": 2, "logger": False, "enable_checkpointing": False},
}
SHORT_SPACE = {
    "model.learning_rate": {"low": 1e-4, "high": 1.0, "scale": "log", "default": 0.5},
    "data.batch_size": {"choices": [2, 4]},
}


@pytest.mark.parametrize(
    "classes", [{"model": "toy_project.Toy", "data": "toy_project.ToyData"}, {"cli": "toy_project.LinkedCLI"}]
)
def test_a_file_without_class_paths(project, monkeypatch, classes):
    assert run("tune", project(WITHOUT_CLASS_PATH, space=SHORT_SPACE, **classes)) == 0
    found = winner()
    best = yaml.safe_load(Path("runs/toy/best.yaml").read_text())
    assert best["model"]["learning_rate"] == found["natural"]["learning_rate"]
    assert "class_path" not in best["model"], "the project's command takes no class here"
    monkeypatch.setattr(sys, "argv", ["train.py"])
    options = {"args": ["fit", "--config", "runs/toy/best.yaml"], "save_config_callback": None}
    made = toy.LinkedCLI(**options) if "cli" in classes else LightningCLI(toy.Toy, toy.ToyData, **options)
    assert float(made.trainer.callback_metrics["val_loss"]) == pytest.approx(found["value"], abs=1e-7)
    said = Path("runs/toy/best.yaml").read_text().splitlines()[0]
    assert said.startswith("# lightning-hp fit ")
    assert run(*said.removeprefix("# lightning-hp ").split()) == 0


def test_callbacks_and_logger_of_the_file_stay(project):
    train = yaml.safe_load(toy.TRAIN_YAML)
    train["trainer"] |= {
        "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "mine", "name": "n"}},
        "callbacks": [
            {"class_path": "EarlyStopping", "init_args": {"monitor": "val_loss", "patience": 1}},
            {
                "class_path": "ModelCheckpoint",
                "init_args": {"monitor": "val_loss", "filename": "mine", "save_last": True},
            },
        ],
        "enable_checkpointing": True,
    }
    project(train)
    built = CliBuilder(Path("train.yaml")).build(
        {"model.init_args.learning_rate": 0.25}, Path("trial"), 11, [Mine()], TrainingLength(5)
    )
    kinds = [type(c) for c in built.trainer.callbacks]
    assert kinds.count(EarlyStopping) == 1
    assert kinds.count(ModelCheckpoint) == 1
    assert kinds.count(Mine) == 1
    assert built.trainer.max_epochs == 5
    assert built.model.hparams.learning_rate == 0.25
    assert built.trainer.default_root_dir.endswith("trial")
    assert Path(built.trainer.logger.log_dir) == Path("trial/logs/n/version_0").absolute(), "in the trial's own folder"
    assert run("tune", "tune.yaml") == 0
    assert not Path("mine").exists()
    assert Path("runs/toy/trials", f"{winner()['trial']:04d}", "checkpoints", "lightning_hp-best.ckpt").is_file()


class Mine(pl.Callback):
    pass


def test_the_seed_of_a_build_decides_the_weights(project):
    project()
    build = CliBuilder(Path("train.yaml")).build
    a, b, c = (build({}, Path("t"), seed).model.noise for seed in (1, 1, 2))
    assert a == b != c


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (
            "model.init_args.learning_rat",
            r"`space\.model\.init_args\.learning_rat` must be something .*learning_rate, mom",
        ),
        (
            "data.init_args.size",
            r"`space\.data\.init_args\.size` must be something .*toy_project\.ToyData takes batch_size",
        ),
        ("trainer.max_epoch", r"`space\.trainer\.max_epoch` must be something that train\.yaml takes"),
        ("modle.x", r"`space\.modle\.x` must be something that train\.yaml takes"),
    ],
)
def test_a_name_that_nobody_takes_is_said_before_the_first_trial(project, key, said):
    project()
    with pytest.raises(ConfigError, match=said) as error:
        CliBuilder(Path("train.yaml")).check(space_of(**{key: {"low": 0.1, "high": 1.0}}))
    assert "\n" not in str(error.value)


def test_check_leaves_nothing_behind_and_builds_nothing(project, monkeypatch):
    project()

    @wraps(toy.Toy.__init__)  # parsers read its signature
    def refuse(*arguments, **named):
        raise AssertionError("the model is built")

    monkeypatch.setattr(toy.Toy, "__init__", refuse)
    before = sorted(Path().rglob("*"))
    CliBuilder(Path("train.yaml")).check(space_of(**{"trainer.accumulate_grad_batches": {"low": 1, "high": 9}}))
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("value", "given"),
    [(1e-05, 1e-05), (True, True), (None, None), ("relu", "relu"), ([8, 4], [8, 4]), (3, 3)],
)
def test_values_reach_the_model_as_they_are(project, value, given):
    project({"model": {"class_path": f"{__name__}.Any_"}, "trainer": TRAINER})
    built = CliBuilder(Path("train.yaml")).build({"model.init_args.x": value}, Path("t"), 0)
    assert built.model.x == given
    assert type(built.model.x) is type(given)


class Any_(pl.LightningModule):
    def __init__(self, x: bool | int | float | list[int] | str | None = 5):
        super().__init__()
        self.x = x


class Talking(pl.LightningModule):
    def __init__(self):
        super().__init__()
        sys.stderr.write("the model has a word to say\n")


def test_what_a_model_says_while_it_is_built_is_heard(project, capsys):
    """So is what others say meanwhile, such as the answer to Ctrl-C."""
    project({"model": {"class_path": f"{__name__}.Talking"}, "trainer": TRAINER})
    CliBuilder(Path("train.yaml")).build({}, Path("t"), 0)
    assert "the model has a word to say" in capsys.readouterr().err


# --- Python ---


class Routed(toy.Toy):
    def __init__(self, learning_rate: float = 0.1, widths: tuple = (), depth: int = 1):
        super().__init__(learning_rate)
        self.widths, self.depth = widths, depth


def test_keys_are_routed_to_module_and_data():
    builder = PythonBuilder(Routed, toy.ToyData, {**TRAINER, "max_epochs": 7})
    built = builder.build({"learning_rate": 0.5, "batch_size": 2, "model.depth": 3}, Path("t"), 0)
    assert (built.model.hparams.learning_rate, built.model.depth, built.data.batch_size) == (0.5, 3, 2)
    assert builder.trainer_settings()["max_epochs"] == built.trainer.max_epochs == 7
    assert builder.build({}, Path("t"), 0, length=TrainingLength(2)).trainer.max_epochs == 2


def test_who_names_an_argument_takes_it_before_who_takes_anything():
    def module(**hyperparameters):
        assert set(hyperparameters) == {"learning_rate"}
        return Routed(**hyperparameters)

    built = PythonBuilder(module, toy.ToyData, TRAINER).build({"learning_rate": 0.5, "batch_size": 2}, Path("t"), 0)
    assert (built.model.learning_rate, built.data.batch_size) == (0.5, 2)


def test_layers_arrive_as_a_list(studies):
    seen = []

    def module(learning_rate: float = 0.1, widths: tuple = (), depth: int = 1):
        seen.append((depth, widths))
        return Routed(learning_rate, widths, depth)

    space = {
        "learning_rate": {"low": 1e-3, "high": 1.0, "tier": "A"},
        "depth": {"low": 1, "high": 3, "tier": "A", "default": 2},
        "widths": {"low": 4, "high": 8, "tier": "A", "per_layer": "depth"},
    }
    from lightning_hp import tune

    tune(module, toy.ToyData, space, trials=6, max_epochs=1, trainer=TRAINER, folder=studies.folder / "s")
    assert len({depth for depth, _ in seen}) > 1
    for depth, widths in seen:
        assert len(widths) == depth
        assert all(isinstance(w, int) and 4 <= w <= 8 for w in widths)


def test_a_key_that_nobody_takes():
    builder = PythonBuilder(Routed, toy.ToyData, TRAINER)
    with pytest.raises(
        ConfigError, match=r"`space\.momentun` must be an argument of the module \(depth, learn"
    ) as error:
        builder.check(space_of(momentun={"low": 0.1, "high": 1.0}))
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"`space\.data\.depth` must be an argument of the module"):
        builder.check(space_of(**{"data.depth": {"low": 1, "high": 3}}))
    builder.check(space_of(**{"data.batch_size": {"low": 1, "high": 3}}))


def test_a_module_without_data_and_data_without_hyperparameters():
    assert PythonBuilder(Routed, None, TRAINER).build({"depth": 2}, Path("t"), 0).data is None
    data = toy.ToyData(8)
    built = PythonBuilder(Routed, data, TRAINER).build({"depth": 2}, Path("t"), 0)
    assert built.data is not data, "a trial must not leave its traces in the next one's data"
    assert built.data.batch_size == 8
    with pytest.raises(
        ConfigError,
        match=r"`space\.batch_size` must be .*of the data module \(nothing\) or, as",
    ):
        PythonBuilder(Routed, data, TRAINER).check(space_of(batch_size={"low": 1, "high": 3}))


def test_callbacks_of_the_trainer_are_each_trials_own():
    mine = Mine()
    builder = PythonBuilder(Routed, None, {**TRAINER, "callbacks": [mine], "max_epochs": 1})
    first, second = (builder.build({}, Path("t"), 0, [EarlyStopping("val_loss")]).trainer.callbacks for _ in range(2))
    ours = [c for c in (*first, *second) if isinstance(c, Mine)]
    assert len({id(c) for c in [mine, *ours]}) == 3


# --- checkpoints ---


def test_only_the_best_keep_checkpoints_ours_and_the_users_and_other_files_stay(studies):
    class Writing(toy.Toy):
        def on_fit_end(self):
            root = Path(self.trainer.default_root_dir)
            (root / "mine.ckpt").write_text("mine")
            (root / "checkpoints" / "notes.txt").write_text("mine")

    result = studies.run(model=Writing, trials=6, keep_checkpoints=2)
    trials = sorted(studies.trials(), key=lambda t: t.value)
    for rank, trial in enumerate(trials):
        folder = studies.paths().trial(trial.number).root
        kept = sorted(p.name for p in folder.rglob("*.ckpt"))
        assert kept == (["lightning_hp-best.ckpt", "mine.ckpt"] if rank < 2 else [])
        assert (folder / "checkpoints" / "notes.txt").read_text() == "mine"
    assert result.checkpoint == studies.paths().trial(trials[0].number).best_checkpoint


def test_the_checkpoint_is_that_of_the_best_validation(studies):
    """Loss falls with the epoch, so in mode max the first epoch's weights are the best."""
    import torch

    for mode, epoch in (("min", 2), ("max", 0)):
        result = studies.run(mode, mode=mode, trials=2, max_epochs=3)
        assert torch.load(result.checkpoint, weights_only=True)["epoch"] == epoch
        assert result.value == studies.trials(mode)[result.trial].intermediate_values[epoch + 1]


def test_a_folder_of_a_study_shows_where_it_belongs(studies):
    studies.run(trials=2)
    study, paths = find_study(str(studies.folder / "toy"))
    assert (len(study.trials), paths.root) == (2, studies.folder / "toy")
    assert find_study("toy", studies.folder)[1].root == studies.folder / "toy"
    with pytest.raises(
        StudyError, match=r"`study` must be a study folder or the name of one in .* \(there: toy\), got 'x'"
    ):
        find_study("x", studies.folder)


def test_a_chosen_optimizer_is_given_its_own_arguments(project):
    """The file's optimizer is another class than some trials choose; each takes arguments of its own."""
    train = yaml.safe_load(toy.TRAIN_YAML)
    train["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
    space = {
        "optimizer.class_path": {"choices": ["torch.optim.SGD", "torch.optim.Adam"], "default": "torch.optim.SGD"},
        "optimizer.init_args.momentum": {"low": 0.5, "high": 0.99, "active_if": {"class_path": "SGD"}},
        "optimizer.init_args.eps": {"low": 1e-9, "high": 1e-3, "active_if": {"class_path": "Adam"}},
    }
    project(train)
    builder = CliBuilder(Path("train.yaml"))
    builder.check(SearchSpace.from_dict(space))
    wrong = {**space, "optimizer.init_args.eps": {"low": 1e-9, "high": 1e-3, "active_if": {"class_path": "SGD"}}}
    with pytest.raises(
        ConfigError, match=r"`space\.optimizer\.init_args\.eps` must be something that train\.yaml takes"
    ):
        builder.check(SearchSpace.from_dict(wrong))
    hidden = {**space, "optimizer.init_args.momentun": {"low": 0.5, "high": 0.9, "active_if": {"class_path": "Adam"}}}
    with pytest.raises(ConfigError, match=r"`space\.optimizer\.init_args\.momentun` must be something"):
        builder.check(SearchSpace.from_dict(hidden))
    optimizers = []
    for point in SearchSpace.from_dict(space).examples():
        with pytest.warns(UserWarning, match="`Toy.configure_optimizers` will be overridden"):
            built = builder.build(SearchSpace.from_dict(space).arguments(point), Path("t"), 0)
        optimizer = built.model.configure_optimizers()
        optimizers.append((type(optimizer).__name__, optimizer.defaults.get("momentum"), optimizer.defaults.get("eps")))
    defaults = SearchSpace.from_dict(space).natural(SearchSpace.from_dict(space).defaults())
    assert optimizers == [("SGD", defaults["momentum"], None), ("Adam", None, defaults["eps"])]


def test_a_chosen_block_arrives_whole(project):
    train = yaml.safe_load(toy.TRAIN_YAML)
    train["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.3}}
    blocks = [
        {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.2, "momentum": 0.5}},
        {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01, "betas": [0.8, 0.99]}},
    ]
    project(train)
    builder = CliBuilder(Path("train.yaml"))
    space = SearchSpace.from_dict({"optimizer": {"choices": blocks, "default": "SGD(lr=0.2, momentum=0.5)"}})
    builder.check(space)
    for label, expected in zip(space["optimizer"].labels, ({"momentum": 0.5}, {"betas": [0.8, 0.99]}), strict=True):
        with pytest.warns(UserWarning, match="`Toy.configure_optimizers` will be overridden"):
            built = builder.build(space.arguments({"optimizer": label}), Path("t"), 0)
        optimizer = built.model.configure_optimizers()
        assert {name: json.loads(json.dumps(optimizer.defaults[name])) for name in expected} == expected


def test_a_study_of_blocks_ends_with_the_block_in_best_yaml_and_its_label_in_the_report(project):
    space = {
        "model.init_args.extra": {"choices": [{"pull": [0.5, 1]}, {"pull": [0.25, 2]}], "tier": "A"},
        "model.init_args.learning_rate": {
            "low": 1e-3,
            "high": 1.0,
            "tier": "A",
            "active_if": {"extra": "{pull: [0.5, 1]}"},
        },
    }
    train = yaml.safe_load(toy.TRAIN_YAML)
    train["model"]["class_path"] = "toy_project.ExtraToy"
    train["model"]["init_args"]["extra"] = {"pull": [0.5, 1]}
    assert run("tune", project(train, space=space, budget={"trials": 6, "max_epochs": 1})) == 0
    best = yaml.safe_load(Path("runs/toy/best.yaml").read_text())
    assert best["model"]["init_args"]["extra"] == winner()["natural"]["extra"]
    report = Path("runs/toy/report.html").read_text()
    assert "{pull: [0.5, 1]}" in report
    study, _ = find_study("runs/toy")
    values = {t.params["extra"] for t in study.trials}
    assert values == {"{pull: [0.5, 1]}", "{pull: [0.25, 2]}"}


def test_python_classes_are_checked_with_every_key_handed_on():
    space = {
        "learning_rate": {"low": 0.1, "high": 1.0},
        "depth": {"low": 1, "high": 4, "default": 1, "active_if": {"learning_rate": "> 0.9"}},
        "momentun": {"low": 0.1, "high": 1.0, "active_if": {"depth": ">= 3"}},
    }
    with pytest.raises(ConfigError, match=r"`space\.momentun` must be an argument of the module \(depth, learn"):
        PythonBuilder(Routed, toy.ToyData, TRAINER).check(SearchSpace.from_dict(space))


def test_what_packages_add_to_trainers_is_looked_up_once(monkeypatch):
    from lightning.fabric.utilities import registry

    from lightning_hp.project.quiet import remembered_plugins

    before, calls = registry.entry_points, []

    def counted(**options):
        calls.append(options)
        return before(**options)

    monkeypatch.setattr(registry, "entry_points", counted)

    def trials():
        for _ in range(3):
            pl.Trainer(accelerator="cpu", logger=False)
        assert len(calls) == len({str(options) for options in calls}) > 0
        raise RuntimeError("a trial broke")

    with pytest.raises(RuntimeError, match="a trial broke"), remembered_plugins():
        trials()
    assert registry.entry_points is counted
