"""``lightning-hp``: what it prints, its exit codes, and what it says of bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import cli_projects as projects
import numpy as np
import pytest
import toy_project as toy
import yaml
from optuna.trial import TrialState

from lightning_hp import cli
from lightning_hp.study.storage import find_study

TESTS = Path(__file__).parents[1]
CONFIGS = TESTS.parent / "configs"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with train.yaml and tune.yaml, and the working directory of the test."""
    monkeypatch.chdir(tmp_path)

    def write(train=None, space=None, **changes):
        """``space`` and ``train`` change single keys; None as a value takes a key away."""
        trained, tuned = yaml.safe_load(toy.TRAIN_YAML), yaml.safe_load(toy.TUNE_YAML)
        for mapping, new in ((trained, train or {}), (tuned["space"], space or {}), (tuned, changes)):
            mapping.update(new)
            for key in [k for k, v in mapping.items() if v is None]:
                del mapping[key]
        Path("train.yaml").write_text(yaml.safe_dump(trained))
        Path("tune.yaml").write_text(yaml.safe_dump(tuned))

    write()
    return write


@pytest.fixture
def run(capsys):
    """Run a command here; gives the exit code, standard output and standard error."""

    def command(*arguments):
        try:
            code = cli.main([str(a) for a in arguments])
        except SystemExit as stop:
            code = stop.code
        out, error = capsys.readouterr()
        return code, out, error

    return command


def test_without_a_verb_it_shows_what_there_is(run):
    code, out, error = run()
    assert (code, out) == (2, "")
    assert "Begin with the verb init." in " ".join(error.split())
    assert "postpone" in error


def test_the_version_is_that_of_the_installed_package(run):
    code, out, _ = run("--version")
    assert (code, out) == (0, f"lightning-hp {version('lightning_hp')}\n")


def files():
    return {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()}


# --- the main job ---


def test_tune_fit_best_report(project, run):
    code, out, error = run("tune", "tune.yaml")
    assert code == 0
    engine, *lines = error.splitlines()
    assert engine.startswith("engine in_process: a step uses self.trainer")
    assert [line.split("]")[0] for line in lines[:3]] == ["[1/3", "[2/3", "[3/3"]
    assert all(" val_loss " in line and "complete" in line for line in lines[:3])
    for word in (
        "study toy: 3 complete",
        "best  val_loss",
        "learning_rate",
        "test_loss",
        "runs/toy/report.html",
        "best.yaml",
    ):
        assert word in out
    assert "\x1b" not in out + error, "colours are for terminals"
    result = json.loads(Path("runs/toy/result.json").read_text())
    assert run("best", "toy", "--json")[1].strip() == Path("runs/toy/result.json").read_text().strip()
    assert yaml.safe_load(run("best", "runs/toy", "--yaml")[1]) == yaml.safe_load(
        Path("runs/toy/best.yaml").read_text()
    )
    code, out, _ = run("best", "toy")
    assert code == 0
    assert f"in trial {result['trial']}" in out
    Path("runs/toy/report.html").unlink()
    code, out, _ = run("report", "toy")
    assert code == 0
    assert Path("runs/toy/report.html").is_file()
    assert "importance" in out
    assert json.loads(run("report", "toy", "--json")[1]).keys() >= {"parameters", "edges"}
    code, out, _ = run("fit", "runs/toy/best.yaml", "--trainer.max_epochs", "1")
    assert code == 0
    name, value = next(line for line in out.splitlines() if line.startswith("logged last")).split()[-2:]
    assert name == "val_loss"
    assert float(value) > 0


def test_options_replace_keys(project, run):
    code, _, _ = run(
        "tune", "tune.yaml", "--trials", 2, "--max_epochs", 1, "--name", "other", "--folder", "f", "--seed", 4
    )
    assert code == 0
    study, _ = find_study("f")
    assert study.study_name == "other"
    assert [len(t.intermediate_values) for t in study.trials] == [1, 1]
    assert (
        run("tune", "tune.yaml", "--trials", 3, "--max_epochs", 1, "--name", "other", "--folder", "f", "--seed", 4)[0]
        == 0
    )
    assert len(find_study("f")[0].trials) == 3
    assert run("tune", "tune.yaml", "--name", "slow", "--time", "00:00:01", "--trials", 100_000)[0] == 0
    assert 0 < len(find_study("slow")[0].trials) < 100_000


def test_a_resumed_study_counts_what_is_done(project, run):
    run("tune", "tune.yaml", "--trials", 2)
    _, _, error = run("tune", "tune.yaml", "--trials", 3)
    assert next(line for line in error.splitlines() if line.startswith("[")).startswith("[3/3] trial 2")


def test_best_before_the_end(project, run):
    project(train={"model": {"class_path": "toy_project.Toy", "init_args": {"faults": "1:sigint"}}})
    code, _, error = run("tune", "tune.yaml")
    assert code == 130
    assert error.splitlines()[-1] == "interrupted; the same command goes on from here"
    assert "stopping after the running trial; Ctrl-C again leaves at once (nothing is lost)" in error
    code, _, error = run("best", "toy")
    assert code == 1
    assert error == "error: study 'toy' has not ended yet; see `lightning-hp report toy`\n"
    assert run("report", "toy")[0] == 0, "a study can be looked at before its end"


def test_sigterm_is_no_success(project, run):
    project(train={"model": {"class_path": "toy_project.Toy", "init_args": {"faults": "1:sigterm"}}})
    code, _, error = run("tune", "tune.yaml")
    assert code == 143
    assert error.splitlines()[-1] == "terminated; the same command goes on from here"
    assert [t.state for t in find_study("toy")[0].trials] == [TrialState.COMPLETE, TrialState.RUNNING]


def test_three_equal_failures(project, run):
    project(train={"model": {"class_path": "toy_project.Toy", "init_args": {"faults": "all:crash"}}})
    code, _, error = run("tune", "tune.yaml", "--trials", 9)
    assert code == 1
    assert error.splitlines()[-1] == (
        "error: 3 trials in a row failed with the same cause: RuntimeError: the toy broke (see runs/toy/trials/0002)"
    )
    assert "the toy broke" in Path("runs/toy/trials/0002/error.txt").read_text()


# --- bad input ---

LR = "model.init_args.learning_rate"
BAD = {
    "a key at the top": ({"bugdet": 3}, "`bugdet` is not a known key (did you mean budget?)"),
    "a key in budget": ({"budget": {"trails": 3}}, "`budget.trails` is not a known key (did you mean trials?)"),
    "a key in caviar": ({"caviar": {"worker": 3}}, "`caviar.worker` is not a known key (did you mean workers?)"),
    "a key of a parameter": ({"space": {LR: {"lwo": 1}}}, f"`space.{LR}.lwo` is not a known key"),
    "wrong type": ({"budget": {"trials": "ten"}}, "`budget.trials` must be a whole number of at least 1, got 'ten'"),
    "mode": ({"mode": "sideways"}, "`mode` must be one of min, max, got 'sideways'"),
    "not taken by the model": (
        {"space": {"model.init_args.lr": {"low": 0.1, "high": 1.0}}},
        "`space.model.init_args.lr` must be something that train.yaml takes (toy_project.Toy takes learning_rate, ",
    ),
    "not taken by the data": (
        {"space": {"data.init_args.rows": {"low": 1, "high": 3}}},
        "(toy_project.ToyData takes batch",
    ),
    "low above high": ({"space": {LR: {"low": 1.0, "high": 0.1}}}, f"`space.{LR}` must"),
    "log of 0": ({"space": {LR: {"low": 0.0, "high": 0.1, "scale": "log"}}}, f"`space.{LR}"),
    "one_minus_log of 1": ({"space": {LR: {"low": 0.9, "high": 1.0, "scale": "one_minus_log"}}}, f"`space.{LR}"),
    "default outside": (
        {"space": {LR: {"low": 0.1, "high": 0.5, "default": 1.0}}},
        f"`space.{LR}.default` must be within",
    ),
    "tier": (
        {"space": {LR: {"low": 0.1, "high": 0.5, "tier": "Z"}}},
        f"`space.{LR}.tier` must be one of A, B, C, D, got 'Z'",
    ),
    "scale": ({"space": {LR: {"low": 0.1, "high": 0.5, "scale": "cubic"}}}, "got 'cubic'"),
    "no choices": ({"space": {LR: {"choices": []}}}, f"`space.{LR}.choices` must have at least one value, got []"),
    "a metric never logged": (
        {"monitor": "val_los"},
        "`monitor` must be a metric that the model logs (val_loss), got 'val_los'",
    ),
    "no train.yaml": ({"config": "no.yaml"}, "`config` must be a LightningCLI file, got 'no.yaml': no such file"),
    "no lightning file": ({"config": "other.yaml"}, "other.yaml"),
    "a class that is not there": ({"train": {"model": {"class_path": "toy_project.Nothing"}}}, "toy_project.Nothing"),
    "a module that is not there": ({"train": {"model": {"class_path": "no_such_project.Model"}}}, "no_such_project"),
    "no max_epochs": (
        {"budget": {"trials": 2}, "train": {"trainer": {"accelerator": "cpu"}}},
        "`budget.max_epochs` (or `budget.max_steps`) is missing, and the Trainer has no max_epochs or max_steps",
    ),
    "storage that is no URL": ({"storage": "study.db"}, "`storage` must be journal or an Optuna URL"),
    "storage that does not answer": (
        {"storage": "sqlite:////no/such/study.db"},
        "`storage` must be a database that answers",
    ),
    "model that cannot be imported": (
        {"model": "nothing.Model"},
        "`model` must be a class that can be imported, got 'nothing.",
    ),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_is_one_line(project, run, case):
    changes, said = BAD[case]
    Path("other.yaml").write_text("learning: rate\n")
    project(**changes)
    code, out, error = run("tune", "tune.yaml")
    assert code == 1
    assert out == ""
    lines = [line for line in error.splitlines() if not line.startswith("engine in_process: ")]
    assert len(lines) == 1, error
    assert lines[0].startswith("error: ")
    assert said in lines[0]
    assert "Traceback" not in error


def test_a_mended_mistake_goes_on_in_the_same_folder(project, run):
    project(monitor="val_los")
    assert run("tune", "tune.yaml")[0] == 1
    project()
    assert run("tune", "tune.yaml")[0] == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "`config` must be a file that exists, got 'tune.yaml': no such file"),
        ("name: [toy\nconfig: x\n", "`config` must be YAML, got 'tune.yaml' line 2, column"),
        ("just words\n", "`config` must hold keys and values, got 'tune.yaml' with str"),
        ("name: toy\nbudget: 5\n", "`budget` must be a mapping, got 5"),
    ],
)
def test_a_file_that_is_no_tune_yaml(project, run, content, said):
    Path("tune.yaml").unlink() if content is None else Path("tune.yaml").write_text(content)
    code, _, error = run("tune", "tune.yaml", "--trials", 3)
    assert (code, error.count("\n")) == (1, 1)
    assert said in error
    assert not Path("runs").exists()


def test_another_space_is_refused_and_nothing_is_lost(project, run):
    assert run("tune", "tune.yaml")[0] == 0
    before = files()
    project(space={LR: {"low": 1e-3, "high": 1.0, "scale": "log", "tier": "A", "default": 0.5}})
    code, _, error = run("tune", "tune.yaml")
    assert (code, error.count("\n")) == (1, 1)
    assert "learning_rate.low was 0.0001, is 0.001" in error
    assert "choose another `name`, or move the study aside with `--restart`" in error
    changed = {p for p, content in files().items() if before.get(p) != content}
    assert changed == {Path("tune.yaml")}


@pytest.mark.parametrize(
    ("path", "target", "said"),
    [
        ("no.csv", "fault", "no.csv"),
        ("folder", "fault", "folder"),
        ("broken.csv", "fault", "broken.csv"),
        (None, "falut", "falut"),
    ],
)
def test_tables_that_cannot_be_read(project, run, path, target, said):
    Path("folder").mkdir()
    Path("broken.csv").write_bytes(b"\xff\xfe\x00\x01")
    train = yaml.safe_load((CONFIGS / "tabular" / "train.yaml").read_text())
    train["data"]["init_args"] |= {"path": path or str(CONFIGS / "tabular" / "pumps.csv"), "target": target}
    Path("tabular.yaml").write_text(yaml.safe_dump(train))
    project(config="tabular.yaml", space={"model.init_args.momentum": None, "data.init_args.batch_size": None})
    code, _, error = run("tune", "tune.yaml")
    assert code == 1
    last = error.splitlines()[-1]
    assert last.startswith("error: ")
    assert said in last
    assert "Traceback" not in error


def test_debug_shows_where(project, capsys):
    project(mode="sideways")
    from lightning_hp.project.yaml_file import ConfigError

    with pytest.raises(ConfigError, match="`mode` must be one of min, max") as error:
        cli.main(["tune", "tune.yaml", "--debug"])
    assert error.traceback[-1].path.name == "yaml_values.py"


@pytest.mark.parametrize(
    "arguments",
    [
        ["tune"],
        ["tnue", "x.yaml"],
        ["tune", "tune.yaml", "--trials", "ten"],
        ["tune", "tune.yaml", "--no"],
        [],
        ["fit"],
    ],
)
def test_wrong_usage(project, run, arguments):
    code, _, error = run(*arguments)
    assert code == 2
    assert "Traceback" not in error
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["best", "nothing"], "`study` must be a study folder or the name of one in runs (there: none), got 'nothing'"),
        (
            ["report", "nothing"],
            "`study` must be a study folder or the name of one in runs (there: none), got 'nothing'",
        ),
        (["fit", "no.yaml"], "`config` must be a file that exists, got 'no.yaml': no such file"),
        (["fit", "train.yaml", "--model_class"], "`--model_class` must be followed by a class path"),
        (
            ["fit", "train.yaml", "--model_class", "no.Model"],
            "`model` must be a class that can be imported, got 'no.Model'",
        ),
        (
            ["space", "nothing"],
            "`config` must be a file or one of the presets sgd, adam, adamw, batchnorm_mlp, playbook",
        ),
        (["sample", "--low", "0", "--high", "1"], "log"),
        (["sample", "--low", "2", "--high", "1", "--scale", "linear"], "low"),
        (["sample", "--low", "1", "--high", "2", "--scale", "cubic"], "got 'cubic'"),
        (["sample", "--low", "1", "--high", "2", "-n", "-1"], "-1"),
    ],
)
def test_other_verbs_say_it_in_one_line_too(project, run, arguments, said):
    code, _, error = run(*arguments)
    assert (code, error.count("\n")) == (1, 1), error
    assert said in error


# --- the small verbs ---


def test_sample(run):
    code, out, _ = run("sample", "--low", "1e-4", "--high", "1", "-n", "1000", "--seed", "3", "--json")
    assert code == 0
    draws = np.array(json.loads(out))
    assert draws.shape == (1000,)
    decades = np.histogram(np.log10(draws), bins=[-4, -3, -2, -1, 0])[0]
    assert np.abs(decades - 250).max() < 60, "four decades, a quarter of the draws each"
    out = run("sample", "--low", "1e-4", "--high", "1", "--scale", "log", "-n", "1000", "--seed", "3")[1]
    assert "r uniform within [-4, 0]" in out
    assert f"first draws: {draws[0]:.6g}, {draws[1]:.6g}, " in out
    counted = [int(line.split()[3]) for line in out.splitlines() if line.endswith("#")]
    assert counted == decades.tolist()


def test_space_of_a_preset_and_of_a_file(project, run):
    code, out, _ = run("space", "playbook", "--trials", "30")
    assert code == 0
    opens = {
        line.split()[1]: line.rstrip().rsplit("  ", 1)[1]
        for line in out.splitlines()
        if line[:2] in ("A ", "B ", "C ", "D ")
    }
    assert opens["learning_rate"] == "trial 0"
    assert opens["beta2"] == "not within 30 trials"
    assert opens["beta1"].startswith("trial ")
    assert opens["epsilon"].startswith("trial ")
    code, out, _ = run("space", "tune.yaml", "--trials", "20")
    assert code == 0
    assert "one_minus_log" in out
    assert "2, 4, 8" in out
    assert "0.0001 to 1" in out


# --- in processes of their own ---


def spawn(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "lightning_hp", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
        **options,
    )


def until(condition, process):
    while not condition() and process.poll() is None:
        time.sleep(0.01)


def states():
    return [t.state for t in find_study("toy")[0].trials] if Path("runs/toy/study.json").exists() else []


@pytest.mark.slow
@pytest.mark.parametrize("caviar", [{"engine": "in_process"}, {"engine": "local", "workers": 2}])
def test_ctrl_c_to_the_whole_group(project, run, caviar):
    """A terminal sends Ctrl-C to every process of the group: all finish their trial, and the command exits with 130."""
    project(caviar=caviar, budget={"trials": 400, "max_epochs": 3}, prune=False)
    process = spawn("tune", "tune.yaml")
    until(lambda: TrialState.COMPLETE in states(), process)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130, error
    assert "stopping after the running trial" in error
    assert error.splitlines()[-1] == "interrupted; the same command goes on from here"
    done = states()
    assert set(done) == {TrialState.COMPLETE}
    assert len(done) < 400
    more = len(done) + 2
    process = spawn("tune", "tune.yaml", "--trials", more)
    _, error = process.communicate()
    assert process.returncode == 0, error
    assert states() == [TrialState.COMPLETE] * more


@pytest.mark.slow
def test_a_second_ctrl_c_to_the_group_leaves_at_once(project):
    project(caviar={"engine": "local", "workers": 2}, budget={"trials": 9, "max_epochs": 1_000_000})
    process = spawn("tune", "tune.yaml")
    until(lambda: states().count(TrialState.RUNNING) == 2, process)
    os.killpg(process.pid, signal.SIGINT)
    said = iter(process.stderr.readline, "")
    assert any("stopping after the running trial" in line for line in said), "the first was not heard"
    os.killpg(process.pid, signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    while alive(process.pid):  # a killed process has to be scheduled once more; the test's time limit ends this
        time.sleep(0.05)


def alive(group):
    """The processes of a group that are not just waiting to be buried."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if line.split()[0] == str(group) and "Z" not in line.split()[1]]


@pytest.mark.slow
def test_the_local_engine_survives_the_death_of_a_worker(project):
    project(
        caviar={"engine": "local", "workers": 2},
        budget={"trials": 12, "max_epochs": 2},
        prune=False,
        train={"model": {"class_path": "toy_project.DyingOnce", "init_args": {}}},
    )
    process = spawn("tune", "tune.yaml")
    _, error = process.communicate()
    assert process.returncode == 0, error
    assert "was killed (exit code -9); another one takes its place" in error
    trials = find_study("toy")[0].trials
    assert [(t.number, t.state) for t in trials] == [(n, TrialState.COMPLETE) for n in range(12)]
    assert [t.user_attrs.get("deaths") for t in trials].count(1) == 1
    assert len(Path("runs/toy/ledger.jsonl").read_text().splitlines()) == 1


@pytest.mark.slow
def test_two_commands_at_once_and_kill_minus_nine(project):
    project(budget={"trials": 10, "max_epochs": 2}, prune=False)
    doomed = spawn("tune", "tune.yaml")
    until(lambda: len(states()) >= 3, doomed)
    doomed.kill()
    doomed.communicate()
    both = [spawn("tune", "tune.yaml") for _ in range(2)]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    trials = find_study("toy")[0].trials
    assert [(t.number, t.state) for t in trials] == [(n, TrialState.COMPLETE) for n in range(10)]
    bests = {line for out, _ in said for line in out.splitlines() if line.startswith("best  ")}
    assert len(bests) == 1, "both tell the same best"
    assert len(Path("runs/toy/ledger.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("file_option", [(), ("--config",)])
def test_a_studys_best_yaml_is_trained_without_naming_its_command(tmp_path, monkeypatch, run, file_option):
    """`fit` takes the project's own command from the study; an option that is given wins."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(projects, "EVENTS", events := [])
    folder = Path("runs/study")
    folder.mkdir(parents=True)
    (folder / "best.yaml").write_text("trainer: {max_epochs: 1, logger: false}\n")
    (folder / "result.json").write_text(json.dumps({"classes": {"cli_class": "cli_projects.main"}}))
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.limit_train_batches=1"]
    assert run("fit", *file_option, str(folder / "best.yaml"), *quiet)[0] == 0
    assert events, "the project's own function was called"
    code, _, error = run("fit", str(folder / "best.yaml"), "--cli", "cli_projects.nobody")
    assert code == 1
    assert "cli_projects.nobody" in error
