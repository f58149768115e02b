"""TuneConfig: everything valid is read as meant, and everything else is one line that names the key."""

from pathlib import Path

import pytest
import yaml

from lightning_hp.project import yaml_file
from lightning_hp.project.length import TrainingLength
from lightning_hp.project.yaml_file import ConfigError, read_yaml
from lightning_hp.space.presets import OPENS_FROM, PRESETS
from lightning_hp.tuning.caviar import Caviar
from lightning_hp.tuning.config import Budget, TuneConfig
from lightning_hp.tuning.tune import tune

SPACE = {"model.init_args.learning_rate": {"low": 1e-4, "high": 1.0, "scale": "log"}}


class NoProject:
    """A project without values of its own."""

    def takes(self):
        return [f"{part}.init_args.{name}" for part, name in ARGUMENTS]

    def defaults(self, keys):
        return {}


NAMES = sorted({name for preset in PRESETS.values() for name in preset} - {"batch_size", "batch_growth"})
ARGUMENTS = [*(("model", name) for name in NAMES), ("data", "batch_size")]


@pytest.fixture
def read(tmp_path):
    (tmp_path / "train.yaml").write_text("trainer: {max_epochs: 3}\n")

    def from_dict(**changes):
        given = {"name": "study", "config": "train.yaml", "space": SPACE, **changes}
        return TuneConfig.from_dict(
            {k: v for k, v in given.items() if v is not ...}, base=tmp_path, project=NoProject()
        )

    return from_dict


def test_the_least_that_is_needed(read, tmp_path):
    config = read()
    assert config.config == tmp_path / "train.yaml"
    assert (config.budget, config.search.n_trials) == (Budget(), 60)
    assert config.caviar == Caviar("auto", 1)
    assert config.folder == Path("runs/study")
    assert (config.monitor, config.mode, config.storage, config.search.seed) == ("val_loss", "min", "journal", 0)
    assert config.curve_points == 30
    assert config.gate is None
    assert (config.search.plan, config.prune, config.audit, config.keep_checkpoints) == ("default", True, True, 3)
    assert (config.retune_after, config.model, config.data, config.cli) == (None,) * 4
    assert [p.name for p in config.space.parameters] == ["learning_rate"]


def test_everything_that_can_be_said(read):
    config = read(
        name="A-study_2.1",
        monitor="val_accuracy",
        mode="max",
        budget={"trials": 7, "max_epochs": 9, "time": "00:00:30"},
        caviar={"engine": "local", "workers": 3},
        folder="elsewhere/x",
        storage="sqlite:///study.db",
        seed=5,
        plan="tiers",
        prune=False,
        audit=False,
        curve_points=100,
        keep_checkpoints=1,
        retune_after={"A": "30d", "B": "3mo"},
        model="pkg.Model",
        data="pkg.Data",
        cli="pkg.CLI",
    )
    assert (config.budget, config.search.n_trials) == (Budget(TrainingLength(9), 30.0), 7)
    assert config.caviar == Caviar("local", 3)
    assert config.folder == Path("elsewhere/x")
    assert config.curve_points == 100
    assert (config.monitor, config.mode, config.storage, config.search.seed) == (
        "val_accuracy",
        "max",
        "sqlite:///study.db",
        5,
    )
    assert (config.search.plan, config.prune, config.audit, config.keep_checkpoints) == ("tiers", False, False, 1)
    assert config.retune_after == {"A": "30d", "B": "3mo"}
    assert (config.model, config.data, config.cli) == ("pkg.Model", "pkg.Data", "pkg.CLI")


def time_of(text):
    """What a YAML file with this time gives."""
    return yaml.load(f"time: {text}", Loader=yaml_file._Loader)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("00:10:00", 600),
        (
            "1:10:00",
            4200,
        ),  # to YAML 1.1 this is a number to the base of 60, and so is the next, which it makes 60 hours
        ("1:00:00:00", 24 * 3600),
        ("'1:10:00'", 4200),
        ("01:02:03:04", ((24 + 2) * 60 + 3) * 60 + 4),
        ("100:00:00:00", 100 * 24 * 3600),
        ("90", 90),
        ("0.5", 0.5),
    ],
)
def test_forms_of_time(read, text, seconds):
    assert read(budget=time_of(text)).budget.seconds == seconds


@pytest.mark.parametrize("text", ["0", "-5", "00:00:00", "soon", "1:2", "true", "[1]", ".nan", "1:00:00:00:00", "''"])
def test_what_is_no_time(read, text):
    with pytest.raises(ConfigError, match=r"`budget\.time` must be HH:MM:SS, DD:HH:MM:SS or seconds above 0, got "):
        read(budget=time_of(text))


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_by_name(read, name):
    config = read(space=name)
    assert config.search.opens_from == OPENS_FROM.get(name)
    assert {p.name for p in config.space.parameters} == set(PRESETS[name])
    keys = [entry.key for entry in config.space.entries]
    assert all(key.split(".")[0] in ("model", "data") and key.split(".")[1] == "init_args" for key in keys)
    assert ("data.init_args.batch_size" in keys) == ("batch_size" in PRESETS[name])


@pytest.mark.parametrize("value", ["30d", "12w", "3mo", "1y", {"A": "30d"}, {"A": "30d", "D": "2y"}])
def test_forms_of_retune_after(read, value):
    assert read(retune_after=value).retune_after == value


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (False, None),
        (True, 1800),
        ({}, 1800),
        ({"timeout": "90s"}, 90),
        ({"timeout": "30m"}, 1800),
        ({"timeout": "1.5h"}, 5400),
        ({"timeout": "2d"}, 172800),
        ({"timeout": "01:00:05"}, 3605),
        ({"timeout": 12}, 12),
    ],
)
def test_forms_of_the_gate(read, given, seconds):
    assert read(gate=given).gate == seconds


def test_local_has_two_workers_unless_told(read):
    assert read(caviar={"engine": "local"}).caviar == Caviar("local", 2)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-1E+3", -1000.0),
        ("1.0e-4", 1e-4),
        (".5", 0.5),
        ("3", 3),
        ("-3", -3),
        ("1_000", 1000),
        ("0x10", 16),
        (".inf", float("inf")),
        ("12:30:45", "12:30:45"),
        ("1e", "1e"),
        ("1.2.3", "1.2.3"),
        ("true", True),
        ("null", None),
    ],
)
def test_numbers_of_yaml(tmp_path, text, value):
    (tmp_path / "x.yaml").write_text(f"x: [{text}]\n")
    found = read_yaml(tmp_path / "x.yaml", "config")["x"][0]
    assert found == value
    assert type(found) is type(value)


BAD = [
    ({"bugdet": {}}, r"`bugdet` is not a known key \(did you mean budget\?\); expected one of name, config"),
    ({1: 2}, r"`1` is not a known key; expected one of name"),
    ({"budget": {"trails": 3}}, r"`budget\.trails` is not a known key \(did you mean trials\?\)"),
    ({"budget": 5}, r"`budget` must be a mapping with the keys trials, max_epochs, max_steps, time, until, got 5"),
    ({"budget": None}, r"`budget` must be a mapping"),
    ({"budget": {"trials": "ten"}}, r"`budget\.trials` must be a whole number of at least 1, got 'ten'"),
    ({"budget": {"trials": 0}}, r"`budget\.trials` must be a whole number of at least 1, got 0"),
    ({"budget": {"trials": 2.5}}, r"`budget\.trials` must be a whole number of at least 1, got 2\.5"),
    ({"budget": {"trials": True}}, r"`budget\.trials` must be a whole number of at least 1, got True"),
    ({"budget": {"max_epochs": 0}}, r"`budget\.max_epochs` must be a whole number of at least 1, got 0"),
    ({"caviar": {"engine": "gpu"}}, r"`caviar\.engine` must be one of auto, .*, ray, got 'gpu'"),
    ({"caviar": {"enigne": "local"}}, r"`caviar\.enigne` is not a known key \(did you mean engine\?\)"),
    (
        {"caviar": {"engine": "in_process", "workers": 3}},
        r"workers` must be 1 for the engine in_process \(use local\), got 3",
    ),
    ({"caviar": {"engine": "local", "workers": 0}}, r"`caviar\.workers` must be a whole number of at least 1, got 0"),
    ({"name": ...}, r"`name` is missing"),
    ({"name": 3}, r"`name` must be a text, got 3"),
    ({"name": "x" * 121}, r"`name` must have at most 120 characters, got 121: 'xxx"),
    ({"monitor": ""}, "`monitor` must be a text of printable characters, got ''"),
    ({"folder": "a\nb"}, r"`folder` must be a text of printable characters, got 'a\\nb'"),
    ({"model": " "}, "`model` must be a text of printable characters, got ' '"),
    ({"seed": 10**30}, "`seed` must be a whole number of at most 9223372036854775807, got 1000"),
    ({"config": "x" * 300}, "`config` must be a LightningCLI file, got .*: no such file"),
    ({"start": "x" * 300}, "`start` must be a babysat run, a study or a JSON file, got .*: no such file"),
    ({"space": {1: {"low": 1, "high": 2}}}, "`space` must have names of parameters as keys, got 1"),
    ({"name": "../x"}, r"`name` must be letters, digits, '\.', '_' or '-', got '\.\./x'"),
    ({"name": "a b\nc"}, "`name` must be a text of printable characters"),
    ({"name": "a b"}, "`name` must be letters"),
    ({"config": ...}, r"`config` is missing"),
    ({"config": "no.yaml"}, r"`config` must be a LightningCLI file, got '.*no\.yaml': no such file"),
    ({"mode": "sideways"}, r"`mode` must be one of min, max, got 'sideways'"),
    ({"mode": ["min"]}, r"`mode` must be one of min, max, got \['min'\]"),
    ({"monitor": 3}, r"`monitor` must be a text, got 3"),
    (
        {"storage": "study.db"},
        r"`storage` must be journal or an Optuna URL such as sqlite:///study\.db, got 'study\.db'",
    ),
    ({"seed": -1}, r"`seed` must be a whole number of at least 0, got -1"),
    ({"plan": "slow"}, r"`plan` must be one of default, .*tiers, got 'slow'"),
    ({"prune": "yes please"}, r"`prune` must be true or false, got 'yes please'"),
    ({"keep_checkpoints": 0}, r"`keep_checkpoints` must be a whole number of at least 1, got 0"),
    ({"gate": "yes"}, r"`gate` must be true, false or a mapping such as \{timeout: 30m\}, got 'yes'"),
    ({"gate": {"timout": 1}}, r"`gate\.timout` is not a known key \(did you mean timeout\?\)"),
    ({"gate": {"timeout": "soon"}}, r"`gate\.timeout` must be such as 30m or 2h, HH:MM:SS, .* above 0, got 'soon'"),
    ({"gate": {"timeout": 0}}, r"`gate\.timeout` must be such as 30m"),
    ({"gate": {"timeout": "0m"}}, r"`gate\.timeout` must be such as 30m"),
    ({"curve_points": 11}, r"`curve_points` must be a whole number of at least 12, got 11"),
    ({"curve_points": None}, r"`curve_points` must be a whole number of at least 12, got None"),
    ({"retune_after": "soon"}, r"`retune_after` must be an interval such as 30d, 12w, 3mo or 1y, got 'soon'"),
    ({"retune_after": {"Z": "30d"}}, r"`retune_after.*'Z'"),
    ({"retune_after": 30}, r"`retune_after.*30"),
    ({"space": ...}, r"`space` is missing; expected a preset name or a mapping"),
    ({"space": "sgdd"}, r"`space` must be a mapping or one of the presets sgd, .*got 'sgdd'"),
    ({"space": {}}, r"`space` must have at least one parameter"),
    ({"space": [1]}, r"`space` must be a mapping from parameters to ranges, got \[1\]"),
]
BAD_PARAMETERS = [
    ({"low": 1.0, "high": 0.1}, r"`space\.model\.x` must .*low.*1\.0.*0\.1"),
    ({"low": 1.0, "high": 1.0}, r"`space\.model\.x` must .*low"),
    ({"low": 0.0, "high": 1.0, "scale": "log"}, r"`space\.model\.x.*log.*0"),
    ({"low": -1.0, "high": 1.0, "scale": "log"}, r"`space\.model\.x.*log.*-1"),
    ({"low": 0.9, "high": 1.0, "scale": "one_minus_log"}, r"`space\.model\.x.*one_minus_log.*1\.0"),
    ({"low": 0.1, "high": 1.0, "default": 2.0}, r"`space\.model\.x\.default` must be within \[0\.1, 1\.0\], got 2\.0"),
    ({"low": 0.1, "high": 1.0, "tier": "E"}, r"`space\.model\.x\.tier` must be one of A, B, C, D, got 'E'"),
    ({"low": 0.1, "high": 1.0, "scale": False}, r"`space\.model\.x\.scale` must be one of linear, log.*got False"),
    ({"low": 1, "high": 10**30}, r"`space\.model\.x.* must have whole bounds within 1e12 of 0"),
    ({"low": 0.1, "high": 1.0, "scale": "cubic"}, r"`space\.model\.x.*must be one of linear, log.*got 'cubic'"),
    ({"low": 0.1, "high": 1.0, "lwo": 3}, r"`space\.model\.x\.lwo` is not a known key; expected one of low, high"),
    ({"low": 0.1}, r"`space\.model\.x\.high` is missing; expected a number"),
    ({"low": "small", "high": 1.0}, r"`space\.model\.x\.low` must be a number, got 'small'"),
    ({"choices": []}, r"`space\.model\.x\.choices` must have at least one value, got \[\]"),
    ({"choices": "abc"}, r"`space\.model\.x\.choices` must be a list, got 'abc'"),
    ({"choices": [1, 2], "default": 3}, r"`space\.model\.x\.default` must be one of \[1, 2\], got 3"),
    ({"choices": [1, 2], "low": 3}, r"`space\.model\.x` must have either choices or a range"),
    (3, r"`space\.model\.x` must be a mapping such as .*, got 3"),
    (None, r"`space\.model\.x` must be a mapping such as .*, got None"),
]
BAD += [({"space": {"model.x": fields}}, said) for fields, said in BAD_PARAMETERS]


@pytest.mark.parametrize(("changes", "said"), BAD)
def test_what_is_refused(read, changes, said):
    with pytest.raises(ConfigError, match=said) as error:
        read(**{str(k) if k == 1 else k: v for k, v in changes.items()})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [1, 2\nb: 3\n", r"`config` must be YAML, got '.*tune\.yaml' line 2, column 2: expected ',' or '\]'"),
        (b"a: b: c\n", r"`config` must be YAML, got '.*tune\.yaml' line 1, column 5: mapping values are not allowed"),
        (b"- 1\n- 2\n", r"`config` must hold keys and values, got '.*tune\.yaml' with list"),
        (b"", r"`config` must hold keys and values, got '.*tune\.yaml' with NoneType"),
        (b"\xff\xfe\x00", r"`config` must be a readable text file, got '.*tune\.yaml'"),
        (b"a: \x07\n", r"`config` must be YAML, got '.*tune\.yaml'"),
        (b"a: !!python/object:os.system {}\n", r"`config` must be YAML, got '.*tune\.yaml' line 1"),
    ],
)
def test_what_is_no_yaml(tmp_path, content, said):
    path = tmp_path / "tune.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as error:
        TuneConfig.from_file(path)
    assert "\n" not in str(error.value)


def test_a_file_that_is_missing_or_a_folder(tmp_path):
    with pytest.raises(ConfigError, match=r"`config` must be a file that exists, got '.*no\.yaml': no such file"):
        read_yaml(tmp_path / "no.yaml", "config")
    with pytest.raises(ConfigError, match="`config` must be a readable text file, got"):
        read_yaml(tmp_path, "config")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"trials": 0}, r"`trials` must be a whole number of at least 1, got 0"),
        ({"max_epochs": 0}, r"`max_epochs` must be a whole number of at least 1, got 0"),
        ({"mode": "sideways"}, r"`mode` must be one of min, max, got 'sideways'"),
        ({"keep_checkpoints": 0}, r"`keep_checkpoints` must be a whole number of at least 1"),
        ({"retune_after": "soon"}, r"`retune_after` must be an interval"),
        ({"storage": "study.db"}, r"`storage` must be journal or an Optuna URL"),
        ({"seed": 0.5}, r"`seed` must be a whole number"),
        ({"name": "a/b"}, r"`name` must be letters"),
        ({"space": "nonsense"}, r"`space` must be a mapping or one of the presets"),
        ({"space": {"x": {"low": 1}}}, r"`space\.x\.high` is missing"),
        ({"plan": "slow"}, r"`plan` must be one of default, .*tiers"),
        ({}, r"`budget\.max_epochs` \(or `budget\.max_steps`\) is missing, and the Trainer has no max_epochs or"),
    ],
)
def test_arguments_of_tune_are_checked_before_anything_is_trained(tmp_path, arguments, said):
    def module(x=0.5):
        raise AssertionError("nothing may be built")

    with pytest.raises(ConfigError, match=said) as error:
        tune(module, **{"space": {"x": {"low": 0.1, "high": 1.0}}, "folder": tmp_path / "study", **arguments})
    assert "\n" not in str(error.value)


def test_config_may_name_several_files(read, tmp_path):
    (tmp_path / "more.yaml").write_text("trainer: {max_epochs: 4}\n")
    assert read(config=["train.yaml", "more.yaml"]).config == (tmp_path / "train.yaml", tmp_path / "more.yaml")
    assert read(config=["train.yaml"]).config == tmp_path / "train.yaml"
    with pytest.raises(ConfigError, match=r"`config` must be a LightningCLI file, got '.*none\.yaml': no such file"):
        read(config=["train.yaml", "none.yaml"])
    for wrong in ([], [3], 3):
        with pytest.raises(ConfigError, match="`config` must be a "):
            read(config=wrong)
