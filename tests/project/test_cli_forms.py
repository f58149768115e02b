"""Over the forms of LightningCLI files: what is tuned is refused before the first trial, or best.yaml builds it again.

Forms x commands (links) x callbacks x loggers x optimizers. What best.yaml builds is looked at from outside: the file
is given to the project's own command, and its objects are compared with those of the trial and with what was asked for.
"""

import itertools
import sys
import warnings
from pathlib import Path

import cli_projects as projects
import pytest
import yaml
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI

from lightning_hp import SearchSpace
from lightning_hp.project.best_yaml import best_yaml
from lightning_hp.project.cli_builder import CliBuilder
from lightning_hp.project.length import TrainingLength
from lightning_hp.project.yaml_file import ConfigError

STOPPING = {"class_path": "EarlyStopping", "init_args": {"monitor": "val_loss"}}
CHECKPOINT = {"class_path": "ModelCheckpoint", "init_args": {"monitor": "val_loss", "dirpath": "production"}}
CSV = {"class_path": "CSVLogger", "init_args": {"save_dir": "logs"}}

FORMS = ("mapping", "word", "own_files", "several", "saved", "fixed")
COMMANDS = {
    "plain": (None, LightningCLI),
    "linked": ("cli_projects.LinkedCLI", projects.LinkedCLI),
    "linked_to_data": ("cli_projects.DataLinkedCLI", projects.DataLinkedCLI),
    "hooked": ("cli_projects.HookedCLI", projects.HookedCLI),
}
CALLBACKS = {"none": None, "one": STOPPING, "two": [STOPPING, CHECKPOINT]}
LOGGERS = {"off": False, "default": None, "one": CSV, "two": [CSV, {**CSV, "init_args": {"save_dir": "more"}}]}
OPTIMIZERS = {
    "of_the_model": None,
    "word": "SGD",
    "mapping": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.3, "momentum": 0.6}},
    "inside_the_model": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.3, "momentum": 0.6}},
}
ALL = list(itertools.product(FORMS, COMMANDS, CALLBACKS, LOGGERS, OPTIMIZERS))


def pairs_of(combination):
    """Every two axes' values of a combination, with the numbers of the axes."""
    return set(itertools.combinations(enumerate(combination), 2))


def covering(combinations):
    """Few combinations that together hold every pair: each time the one with most that are new."""
    left = set().union(*map(pairs_of, combinations))
    chosen = []
    while left:
        chosen.append(max(combinations, key=lambda c: len(pairs_of(c) & left)))
        left -= pairs_of(chosen[-1])
    return chosen


#: of all combinations these are run each time
PAIRS = covering(ALL)
#: and these with the slow tests
MORE = [combination for combination in ALL[::13] if combination not in PAIRS]
TRAINER = {
    "accelerator": "cpu",
    "devices": 1,
    "max_epochs": 5,
    "gradient_clip_val": 0.5,
    "precision": "bf16-mixed",
    "accumulate_grad_batches": 2,
}


def write_project(form, command, callbacks, loggers, optimizer):
    """The files of a project in one of the forms; gives what tune.yaml says of it."""
    model = {"class_path": "cli_projects.Net", "init_args": {"lr": 0.05, "activation": {"class_path": "torch.nn.ReLU"}}}
    data = {"class_path": "cli_projects.Data", "init_args": {"scale": 2.0}}
    trainer = {**TRAINER, "callbacks": CALLBACKS[callbacks], "logger": LOGGERS[loggers]}
    top = {}
    if optimizer == "inside_the_model":
        model["init_args"]["optimizer"] = OPTIMIZERS[optimizer]
    elif OPTIMIZERS[optimizer] is not None:
        top["optimizer"] = OPTIMIZERS[optimizer]
    train = {"seed_everything": 4, "trainer": trainer, "model": model, "data": data, **top}
    options = {"cli": COMMANDS[command][0]}
    if form == "word":
        train |= {"model": "cli_projects.Net", "data": "cli_projects.Data"}
    if form == "own_files":
        Path("parts").mkdir()
        for part in ("model", "data", "trainer"):
            Path(f"parts/{part}.yaml").write_text(yaml.safe_dump(train[part]))
            train[part] = f"parts/{part}.yaml"
    if form == "fixed":
        train |= {"model": model["init_args"], "data": data["init_args"]}
        options |= {"model": "cli_projects.Net", "data": "cli_projects.Data"}
    files = {"train.yaml": train}
    if form == "several":
        files = {"train.yaml": {**train, "trainer": {**trainer, "max_epochs": 9}}, "over.yaml": {"trainer": TRAINER}}
    for name, content in files.items():
        Path(name).write_text(yaml.safe_dump(content))
    if form == "saved":  # by the command itself: --print_config
        Path("train.yaml").write_text(print_config(COMMANDS[command][1]))
    return CliBuilder(tuple(Path(name) for name in files), **options)


def print_config(command):
    sys.argv[1:] = ["fit", "--config", "train.yaml"]
    written = []

    class Printed(command):
        def before_instantiate_classes(self):
            parser = self._parser("fit")
            written.append(parser.dump(self.config["fit"], skip_none=False))
            raise SystemExit

    with pytest.raises(SystemExit, match=r"^$"):
        Printed()
    return written[0]


def space_of(callbacks, optimizer, command):
    """What is tuned: one key of every part that the project has."""
    model = "model" if "linked" in command else "model.init_args"
    space = {f"{model}.lr": 0.02, "data.batch_size": 6, "trainer.gradient_clip_val": 0.25, "model.noise.level": 0.5}
    if callbacks == "one":
        space["trainer.callbacks.init_args.patience"] = 8
    if callbacks == "two":
        space["trainer.callbacks[0].init_args.patience"] = 8
    if optimizer == "mapping":
        space["optimizer.lr"] = 0.07
    if optimizer == "word":
        space |= {"optimizer.class_path": "torch.optim.Adam", "optimizer.init_args.lr": 0.07}
    if optimizer == "inside_the_model":
        space["model.init_args.optimizer.init_args.lr"] = 0.07
    return space


def outcome(form, command, callbacks, loggers, optimizer):
    """``refused`` with the reason, or ``built``: then everything has been compared."""
    builder = write_project(form, command, callbacks, loggers, optimizer)
    values = space_of(callbacks, optimizer, command)
    if form == "fixed":
        values = {key.replace("model.init_args.", "model."): value for key, value in values.items()}
    another = {key: "torch.optim.AdamW" if isinstance(value, str) else value * 2 for key, value in values.items()}
    space = SearchSpace.from_dict(
        {key: {"choices": [value, another[key]], "default": value} for key, value in values.items()}
    )
    arguments = space.arguments(space.defaults())
    assert arguments == values
    try:
        builder.check(space)
    except ConfigError as error:
        return f"refused: {error}"
    length = TrainingLength(max_epochs=3)
    text = best_yaml(builder, arguments, 9, length)
    Path("elsewhere").mkdir()
    Path("elsewhere/best.yaml").write_text(text)
    trial = builder.build(arguments, Path("runs/s/trials/0000"), 9, length=length)
    own = by_own_command(form, command)
    compare(trial, own, values, loggers, optimizer, callbacks)
    return "built"


def by_own_command(form, command):
    """What the project's own command builds from best.yaml, with nothing of ours in between."""
    sys.argv[1:] = ["fit", "--config", "elsewhere/best.yaml"]
    classes = (projects.Net, projects.Data) if form == "fixed" else ()
    made = []

    class Own(COMMANDS[command][1]):
        def _run_subcommand(self, subcommand):
            made.append(self)

    Own(*classes, save_config_callback=None)
    return made[0]


def compare(trial, own, values, loggers, optimizer, callbacks):
    model, lr = own.model, 0.02
    assert type(model) is type(trial.model) is projects.Net
    assert dict(model.hparams) == dict(trial.model.hparams)
    assert (model.hparams.lr, model.noise_level) == (lr, 0.5)
    assert repr(model.net) == repr(trial.model.net)
    assert dict(own.datamodule.hparams) == dict(trial.data.hparams)
    assert own.datamodule.hparams.batch_size == 6
    one, other = (m.configure_optimizers() for m in (model, trial.model))
    assert type(one) is type(other)
    groups = [{k: v for k, v in o.param_groups[0].items() if k != "params"} for o in (one, other)]
    assert groups[0] == groups[1]
    assert groups[0]["lr"] == (lr if optimizer == "of_the_model" else 0.07)
    assert groups[0].get("momentum") == {"of_the_model": 0.0, "word": None}.get(optimizer, 0.6)
    for flag in ("max_epochs", "precision", "gradient_clip_val", "accumulate_grad_batches", "log_every_n_steps"):
        assert getattr(own.trainer, flag) == getattr(trial.trainer, flag), flag
    assert (own.trainer.max_epochs, own.trainer.gradient_clip_val) == (3, 0.25)
    assert (own.trainer.precision, own.trainer.accumulate_grad_batches) == ("bf16-mixed", 2)
    for kind in (EarlyStopping, ModelCheckpoint):
        theirs, ours = ([c for c in t.callbacks if type(c) is kind] for t in (own.trainer, trial.trainer))
        assert len(theirs) == len(ours)
        if kind is EarlyStopping and callbacks != "none":
            assert [c.patience for c in theirs] == [c.patience for c in ours] == [8]
    if callbacks == "two":
        (checkpoint,) = (c for c in own.trainer.callbacks if type(c) is ModelCheckpoint)
        assert checkpoint.dirpath.endswith("/production")
    assert [type(logger) for logger in own.trainer.loggers] == [type(logger) for logger in trial.trainer.loggers]
    assert len(own.trainer.loggers) == {"off": 0, "default": 1, "one": 1, "two": 2}[loggers]


def expected_refusal(form, command, optimizer):
    """Why the project's own command takes no such file or value either, None where it does."""
    if form == "fixed" and command in ("linked", "linked_to_data"):
        return "No action for key"  # the links are those of files that name classes
    if form == "word" and optimizer == "inside_the_model":
        return "optimizer"
    return None


@pytest.mark.parametrize("combination", PAIRS, ids="-".join)
def test_every_pair_is_refused_before_the_first_trial_or_built_again(combination, tmp_path, monkeypatch):
    run(combination, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("combination", MORE, ids="-".join)
def test_more_are_refused_or_built_again(combination, tmp_path, monkeypatch):
    run(combination, tmp_path, monkeypatch)


def run(combination, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    form, command, _, _, optimizer = combination
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = outcome(*combination)
    reason = expected_refusal(form, command, optimizer)
    assert got == "built" if reason is None else got.startswith("refused") and reason in got, (combination, got)


def test_the_combinations_are_counted():
    assert len(ALL) == 6 * 4 * 3 * 4 * 4 == 1152
    assert sum(expected_refusal(form, command, optimizer) is not None for form, command, _, _, optimizer in ALL) == 144
    sizes = (6, 4, 3, 4, 4)
    every_pair = set().union(*map(pairs_of, PAIRS))
    assert len(every_pair) == sum(a * b for a, b in itertools.combinations(sizes, 2))
    assert len(PAIRS) < 35
