"""Every code block of README and documentation runs.

Blocks of a page run in their order, in one folder and one namespace, as a reader would run them: Python is executed,
commands of ours are run, YAML is checked as the part of a ``tune.yaml`` or of a LightningCLI file that it is. The
folder holds a digits project with a small finished study. A comment before a block says what is special:

    <!-- slow -->                      runs with the slow tests only
    <!-- commands parsed: WHY -->      only the arguments are checked
    <!-- not run: WHY -->              nothing is checked; these are counted below
"""

import json
import re
import shlex
import shutil
import sys
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cli_projects
import lightning.pytorch as pl
import optuna
import pytest
import toy_project
import yaml

from lightning_hp import CoarseToFineSampler, TuneConfig, cli
from lightning_hp.commands.arguments import parser
from lightning_hp.project.cli_builder import CliBuilder
from lightning_hp.tuning.tune import cli_builder

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if "upstream" not in p.parts)]
#: blocks that are not run; each says why on its page
NOT_RUN = 11
#: what a block is written in, if it is code
CODE = ("python", "bash", "yaml")
#: exit codes that are no failure: done, stale, an audit found errors
GOOD = (0, 3, 4)
#: what shortens a command, by its beginning; `tune` of a file that the study of this folder is not of begins anew
SHORTER = {
    "tune configs/": "--trials 2 --max_epochs 1 --restart",
    "tune tune.yaml": "--trials 4",
    "init": "--trials 4",
    "fit": "--trainer.max_epochs 1",
    "babysit configs/": "--trainer.max_epochs 2",
    "retune": "--k 1 --trials 2",
}


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    kind: str
    text: str
    slow: bool
    parsed: bool
    not_run: str


def blocks_of(path: Path) -> list[Block]:
    page = path.relative_to(ROOT).as_posix()
    text = path.read_text()
    fence = r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$"
    blocks = []
    for match in re.finditer(fence, text, re.DOTALL | re.MULTILINE):
        mark, kind, body = match["mark"] or "", match["kind"], match["text"]
        if kind in ("", "console") and re.match(r"\$? ?lightning-hp ", body):
            kind = "bash"
        blocks.append(
            Block(
                page,
                text.count("\n", 0, match.start()) + 1,
                kind,
                body,
                mark == "slow",
                mark.startswith("commands parsed: "),
                mark.removeprefix("not run: ") if mark.startswith("not run: ") else "",
            )
        )
    return blocks


ALL = {path.relative_to(ROOT).as_posix(): blocks_of(path) for path in PAGES}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a digits project, and a finished study of four trials of one epoch."""
    folder = tmp_path_factory.mktemp("book")
    shutil.copytree(ROOT / "configs", folder / "configs")
    train = yaml.safe_load((ROOT / "configs/digits/train.yaml").read_text())
    train["trainer"] |= {"max_epochs": 1, "limit_train_batches": 8}
    (folder / "train.yaml").write_text(yaml.safe_dump(train))
    space = {
        "model.init_args.learning_rate": "auto",
        "model.init_args.momentum": "auto",
        "data.init_args.batch_size": "auto",
    }
    tune = {"name": "digits", "config": "train.yaml", "budget": {"trials": 4}, "space": space}
    for name in ("tune.yaml", "digits.yaml"):  # a page may write the first one anew
        (folder / name).write_text(yaml.safe_dump(tune))
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["lightning-hp"])
        assert cli.main(["tune", "digits.yaml"]) == 0
        shutil.copy(json.loads(Path("runs/digits/result.json").read_text())["checkpoint"], "last.ckpt")
    return folder


def names_for(page: str) -> dict[str, Any]:
    """What a block may use that it does not make itself."""
    net = page == "docs/stacked.md"
    study = optuna.create_study(sampler=CoarseToFineSampler({"x": {"low": 0.0, "high": 1.0}}, n_trials=200))
    return {
        "Trainer": lambda **options: pl.Trainer(**{"accelerator": "cpu", "logger": False, **options}),
        "seed_everything": pl.seed_everything,
        "MyModule": cli_projects.Net if net else toy_project.Toy,
        "MyDataModule": toy_project.ToyData,
        "MyData": cli_projects.Data,
        "train": lambda *trial, **values: sum(v for v in (*trial, *values.values()) if isinstance(v, float)),
        "study": study,
        "objective": lambda trial: (trial.suggest_float("x", 0.0, 1.0) - 0.3) ** 2,
        "now": datetime.now(UTC),
    }


def run_command(line: str, parsed_only: bool) -> None:
    words = shlex.split(line.removeprefix("$ "), comments=True)
    if not words:
        return
    assert words[0] == "lightning-hp", f"no command of ours: {line!r}; mark the block, with the reason"
    arguments = words[1 : words.index(">")] if ">" in words else words[1:]
    if parsed_only:
        if arguments[0] not in ("fit", "babysit"):  # their options are those of a project
            parser().parse_args(arguments)
        return
    for beginning, more in SHORTER.items():
        if " ".join(arguments).startswith(beginning):
            arguments += more.split()
    if arguments[0] == "init":
        for file in ("tune.yaml", "first.yaml"):
            Path(file).unlink(missing_ok=True)
    if "--until" in arguments:  # a date of the page is past some day
        later = datetime.now(UTC) + timedelta(days=60)
        arguments[arguments.index("--until") + 1] = later.date().isoformat()
    assert cli.main(arguments) in GOOD, line


def check_yaml(text: str) -> None:
    loaded = yaml.safe_load(text)
    if "space" in loaded or not ({"model", "data", "trainer"} & {*loaded}):
        base = {"name": "digits", "config": "train.yaml", "space": "sgd"}
        mapping = loaded if "name" in loaded else {**base, **loaded}
        config = TuneConfig.from_dict(mapping)
        if "name" in loaded:
            cli_builder(config).check(config.space)
    else:
        Path("merged.yaml").write_text(yaml.safe_dump({**yaml.safe_load(Path("train.yaml").read_text()), **loaded}))
        assert CliBuilder(Path("merged.yaml")).own.config


def run(page: str, slow: bool, folder: Path) -> None:
    names = names_for(page)
    for block in ALL[page]:
        if block.not_run or (block.slow and not slow):
            continue
        try:
            if block.kind == "python":
                exec(compile("\n" * block.line + block.text, str(ROOT / page), "exec"), names)
            elif block.kind == "bash":
                for line in block.text.splitlines():
                    if block.text.startswith("$") and not line.startswith("$"):
                        continue  # what the command prints
                    run_command(line, block.parsed)
            elif block.kind == "yaml":
                check_yaml(block.text)
            else:
                assert block.kind in ("text", ""), f"what is {block.kind}?"
        except Exception as error:
            error.add_note(f"{page}:{block.line}")
            raise


@pytest.fixture
def book(finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "book")
    monkeypatch.chdir(tmp_path / "book")
    monkeypatch.setattr(sys, "argv", ["lightning-hp"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield tmp_path / "book"


@pytest.mark.parametrize("page", [page for page, blocks in ALL.items() if any(b.kind in CODE for b in blocks)])
def test_the_blocks_of_a_page_run(page, book, capsys):
    run(page, False, book)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, blocks in ALL.items() if any(b.slow for b in blocks)])
def test_all_blocks_of_a_page_run_the_slow_ones_too(page, book, capsys):
    run(page, True, book)


def test_blocks_that_do_not_run_say_why_and_are_counted():
    left_out = [block for blocks in ALL.values() for block in blocks if block.not_run]
    assert len(left_out) == NOT_RUN, "count them anew, and think whether each has to be left out"
    assert all(len(block.not_run) > 15 for block in left_out)


def test_marks_are_spelt_as_the_test_reads_them():
    for page in PAGES:
        for mark in re.findall(r"<!-- (.*?) -->", page.read_text()):
            assert re.fullmatch(r"slow|(commands parsed|not run): .+", mark), f"{page}: {mark!r}"
