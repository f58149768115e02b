"""The reference pages that follow from the code: every command with its options, every key with its default."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

os.environ.setdefault("COLUMNS", "100")

from lightning_hp.commands.arguments import parser
from lightning_hp.commands.babysit import _parser as babysit_parser
from lightning_hp.commands.fit import _USAGE as FIT_USAGE
from lightning_hp.project.length import TrainingLength
from lightning_hp.tuning.caviar import ENGINES, Caviar
from lightning_hp.tuning.config import _KEYS, PLANS, Budget, Confirmation, TuneConfig

#: exit codes, as `cli.py` has them
CODES = "Exit codes: 0 done or fresh, 1 error, 2 wrong usage, 3 stale, 4 an audit found errors, 130 interrupted, 143 terminated."
#: key of tune.yaml -> the class and the field that hold it
FIELDS: dict[str, tuple[type, str]] = {
    **{key: (TuneConfig, key) for key in _KEYS},
    "budget.max_epochs": (TrainingLength, "max_epochs"),
    "budget.max_steps": (TrainingLength, "max_steps"),
    "budget.time": (Budget, "seconds"),
    "budget.until": (Budget, "until_converged"),
    "caviar.engine": (Caviar, "engine"),
    "caviar.workers": (Caviar, "workers"),
    "caviar.cohort": (Caviar, "cohort"),
    "caviar.structures": (Caviar, "structures"),
    "caviar.lease": (Caviar, "lease"),
    "caviar.cpus": (Caviar, "cpus"),
    "caviar.gpus": (Caviar, "gpus"),
    "caviar.address": (Caviar, "address"),
    "confirm.candidates": (Confirmation, "candidates"),
    "confirm.seeds": (Confirmation, "seeds"),
}
#: keys whose field has another name, or whose text stands at another class
ELSEWHERE = {
    "budget": "See the keys below; `budget.trials` is the total number of trials, also when continued (60).",
    "caviar": "Where trials run; see the keys below.",
    "space": "A preset, or a mapping from paths to ranges; see [tune.yaml](../tune_yaml.md#a-parameter-of-the-space).",
    "seed": "Seed of the study; `fixed`: all trials are trained with one seed.",
    "gate": "Whether the study asks a person before each stage, and how long it waits: `true` (30 minutes) or `{timeout: 2h}`.",
    "budget.time": "No new trial starts after this time in one run of the command: `HH:MM:SS`, `DD:HH:MM:SS` or seconds.",
    "budget.until": "`converged`: the study ends when the rest of the budget is expected to gain less than one training scatters.",
    "caviar.lease": "If nothing is heard from a worker for this time, another worker gets its trial: `90s`, `2m` or seconds.",
    "confirm": "Whether, and how, the best configurations are trained again at the end: `true`, `false` or the keys below.",
    "plan": f"Stage plan: {', '.join(f'`{plan}`' for plan in PLANS)}.",
}
#: what a file gets that leaves the key out, where the field holds it in another form
DEFAULTS = {
    "name": "required",
    "config": "required",
    "space": "required",
    "start": "the file's own values",
    "retune_after": "A monthly, B and C quarterly, D yearly",
    "pruner": "ours",
    "sampler": "ours",
    "gate": "`false`",
    "budget.max_epochs": "the file's `trainer.max_epochs`",
    "budget.max_steps": "the file's `trainer.max_steps`",
    "budget.until": "`spent`",
    "caviar.workers": "2 for `local` and `ray`, else 1",
    "caviar.lease": "`60s`",
    "seed": "0",
    "plan": "`default`",
    "folder": "`runs/NAME`",
}


def commands_page() -> str:
    """Every verb with its help."""
    verbs = parser()._subcommands_action._name_parser_map
    parts = [
        "# Commands",
        "",
        "Made from the parser of `lightning-hp`. `--debug` shows the traceback of an error.",
        "",
        CODES,
        "",
    ]
    for verb, of_verb in sorted(verbs.items()):
        shown = babysit_parser() if verb == "babysit" else of_verb
        shown.prog = f"lightning-hp {verb}"
        text = FIT_USAGE if verb == "fit" else shown.format_help()
        text = re.sub(r"\n{3,}", "\n\n", text.strip())
        about = (of_verb.description or "").strip()
        parts += [f"## {verb}", "", about, "", "```text", text, "```", ""]
    return "\n".join(parts)


def configuration_page() -> str:
    """Every key of ``tune.yaml`` with what its field says and its default."""
    lines = [
        "# Keys and defaults of tune.yaml",
        "",
        "Every key, and what a file gets that leaves it out. This page is made from the code; [tune.yaml](../tune_yaml.md)",
        "explains the same keys with examples.",
        "",
        f"Engines: {', '.join(f'`{engine}`' for engine in ENGINES)}.",
        "",
        "| key | what | default |",
        "|---|---|---|",
    ]
    for key, (owner, field) in FIELDS.items():
        text = ELSEWHERE.get(key) or _described(owner, field) or _row_of_page(key)
        lines.append(
            f"| `{key}` | {text.replace('|', chr(92) + '|')} | {DEFAULTS.get(key) or _default(owner, field)} |"
        )
    return "\n".join(lines) + "\n"


def _described(owner: type, field: str) -> str:
    text = (owner.__doc__ or "").partition("Attributes:\n")[2]
    match = re.search(rf"^ +{field}: (.*?)(?=^ {{8}}\w+: |\Z)", text, flags=re.DOTALL | re.MULTILINE)
    if match is None:
        return ""
    return re.sub(r"``", "`", re.sub(r":\w+:`~?\.?([\w.]+)`", r"`\1`", " ".join(match[1].split())))


def _row_of_page(key: str) -> str:
    """What the page on ``tune.yaml`` says of a key that is no field of its own."""
    page = (Path(__file__).parents[1] / "tune_yaml.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| `{re.escape(key)}` \| (.*) \|[^|]*\|$", page, flags=re.MULTILINE)
    if row is None:
        raise ValueError(f"`{key}` must be described by a class of lightning_hp.tuning.config, or in docs/tune_yaml.md")
    return re.sub(r"\]\((?!https?:|#)", "](../", row[1])


def _default(owner: type, name: str) -> str:
    if name == "folder":
        return ""
    field = next((f for f in dataclasses.fields(owner) if f.name == name), None)
    value: Any = dataclasses.MISSING if field is None else field.default
    if field is not None and value is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        return "see below" if name != "confirm" else "`true`"
    if value is dataclasses.MISSING:
        return "required"
    words = {None: "none", True: "`true`", False: "`false`"}
    return words[value] if value is None or isinstance(value, bool) else f"`{value}`"
