"""The pictures of ``docs/search.md``: regret curves, predictions against true ends, and the boxes of a study.

    python benchmarks/search_pictures.py

Writes ``search_regret.svg`` (from the stored runs), ``search_calibration.svg`` and ``search_funnel.svg`` to
``docs/images``; needs nothing beyond the package.
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import TrialState

from lightning_hp.search import CoarseToFineSampler, SearchSpace
from lightning_hp.search.boxes import EXPLORED, WIDENED

HERE = Path(__file__).parent
IMAGES = HERE.parent / "docs" / "images"
GRID = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 35, 40)
COLOURS = {"lightning_hp": "#c0392b", "GP": "#2c6fbb", "TPE": "#555", "TPE + SuccessiveHalving": "#8e6fc1"}
WIDTH, HEIGHT, EDGE = 640, 360, 56
#: The study of the funnel: planned short, so that its box is drawn early, and continued.
PLANNED, RUN = 20, 44


def svg(body: Sequence[str]) -> str:
    """A picture of these elements."""
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {box}>',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
            *body,
            "</svg>\n",
        ]
    )


def text(x: float, y: float, words: str, colour: str = "#333", anchor: str = "start") -> str:
    """A line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}">{words}</text>'


def regret_curves(path: Path) -> str:
    """Mean regret against full trainings spent, both axes logarithmic."""
    rows = list(csv.DictReader(path.open()))
    low, high = math.log10(1e-3), 0.0

    def place(trainings: float, regret: float) -> tuple[float, float]:
        across = math.log(trainings) / math.log(40)
        down = (high - math.log10(max(regret, 1e-3))) / (high - low)
        return EDGE + across * (WIDTH - 4.2 * EDGE), EDGE / 2 + down * (HEIGHT - 1.5 * EDGE)

    body = [text(WIDTH / 2 - EDGE, HEIGHT - 8, "full trainings spent", anchor="middle")]
    for regret in (1.0, 0.1, 0.01, 0.001):
        left, y = place(1, regret)
        body.append(f'<line x1="{left}" x2="{place(40, 1)[0]:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        body.append(text(left - 6, y + 4, f"{regret:g}", anchor="end"))
    for trainings in (1, 5, 10, 20, 40):
        body.append(text(place(trainings, 1e-3)[0], HEIGHT - EDGE + 18, str(trainings), anchor="middle"))
    for tuner, colour in COLOURS.items():
        mine = [row for row in rows if row["tuner"] == tuner]
        means = [sum(float(row[f"after_{b}"]) for row in mine) / len(mine) for b in GRID]
        points = " ".join("{:.1f},{:.1f}".format(*place(b, mean)) for b, mean in zip(GRID, means, strict=True))
        body.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x, y = place(40, means[-1])
        body.append(text(x + 6, y + 4, tuner, colour))
    return svg(body)


def funnel(study: optuna.Study, drawn: optuna.Study, space: SearchSpace, name: str) -> str:
    """One parameter's positions by trial, and the box of each stage: as it was drawn, and as it was widened."""
    stages, trials = study.sampler.stages(study), study.trials
    column = [p.stored_name for p in space.parameters].index(name)

    def place(number: float, unit: float) -> tuple[float, float]:
        return (
            EDGE + number / len(trials) * (WIDTH - 2 * EDGE),
            EDGE / 2 + (1 - unit) * (HEIGHT - 1.5 * EDGE),
        )

    body = [text(WIDTH / 2, HEIGHT - 8, "trial", anchor="middle"), text(8, EDGE / 2 - 8, name)]
    for boxes, fill in ((stages, "#faf1de"), (drawn.sampler.stages(drawn), "#ecd6a4")):
        for stage in boxes:
            (x0, y0) = place(stage.first, stage.box[name][1])
            (x1, y1) = place(stage.last if stage.index < len(stages) else len(trials), stage.box[name][0])
            size = f'width="{x1 - x0:.1f}" height="{y1 - y0:.1f}"'
            body.append(f'<rect x="{x0:.1f}" y="{y0:.1f}" {size} fill="{fill}" stroke="#c9a96a"/>')
    body += [text(place(s.first, 0)[0] + 4, HEIGHT - EDGE + 18, s.name.split()[1]) for s in stages]
    for trial in trials:
        x, y = place(trial.number + 0.5, float(space.unit([trial.params])[0][column]))
        colour = "#c0392b" if WIDENED in trial.user_attrs else "#2c6fbb" if EXPLORED in trial.user_attrs else "#333"
        body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
    best = study.best_trial.number
    x, y = place(best + 0.5, float(space.unit([trials[best].params])[0][column]))
    body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="none" stroke="#333"/>')
    body.append(text(WIDTH - EDGE, EDGE / 2 - 8, "widened", "#c0392b", "end"))
    body.append(text(WIDTH - 2.2 * EDGE, EDGE / 2 - 8, "explored", "#2c6fbb", "end"))
    return svg(body)


def two_valleys(seed: int, n: int) -> tuple[optuna.Study, SearchSpace]:
    """A study of a task with a wide valley, and a narrower and deeper one."""
    names = ("a", "b", "c", "d")
    space = SearchSpace.from_dict({n: {"low": 0.0, "high": 1.0, "tier": "A", "default": 0.5} for n in names})

    def objective(trial: optuna.Trial) -> float:
        unit = list(space.suggest(trial).values())
        wide = 0.3 + 0.5 * sum((u - 0.2) ** 2 for u in unit)
        narrow = 2.0 * sum((u - v) ** 2 for u, v in zip(unit, (0.8, 0.75, 0.8, 0.75), strict=True))
        return min(wide, narrow)

    study = optuna.create_study(sampler=CoarseToFineSampler(space, n_trials=PLANNED, seed=seed))
    study.optimize(objective, n_trials=n)
    return study, space


#: Studies of curves whose ends are known, their trials and the length of a training.
STUDIES, TRIALS, STEPS = 6, 40, 32
CURVES = SearchSpace.from_dict(
    {
        "rate": {"low": 1e-4, "high": 1.0, "scale": "log", "tier": "A", "default": 1e-2},
        "width": {"low": 0.0, "high": 1.0, "tier": "B", "default": 0.5},
        "drop": {"low": 0.0, "high": 1.0, "tier": "C", "default": 0.5},
    }
)


def curve(values: Mapping[str, float], rng: np.random.Generator) -> list[float]:
    """Ends at its own level, after a fall of its own speed and height; curves cross, and scatter a little."""
    end = 0.1 + 0.1 * (math.log10(values["rate"]) + 1.5) ** 2 + (values["width"] - 0.3) ** 2 + 0.3 * values["drop"]
    speed, height = 0.5 + values["width"], 0.3 + values["drop"]
    falls = [height * (step**-speed - STEPS**-speed) for step in range(1, STEPS + 1)]
    return [end + fall + 0.01 * rng.standard_normal() for fall in falls]


def predictions(seed: int) -> list[tuple[float, float, float]]:
    """Predicted end, its (widened) deviation and the true end, each time that a trial of a study is looked at."""
    rng, sampler = np.random.default_rng(seed), CoarseToFineSampler(CURVES, n_trials=TRIALS, max_steps=STEPS, seed=seed)
    study, pruner = optuna.create_study(sampler=sampler), sampler.pruner()
    pairs = []
    for _ in range(TRIALS):
        trial = study.ask()
        losses, stop = curve(CURVES.suggest(trial), rng), False
        for step, value in enumerate(losses, start=1):
            trial.report(value, step)
            verdict = pruner.verdict(study, study.trials[trial.number])
            if verdict is not None and verdict["rule"] == "predicted":
                pairs.append((verdict["mean"], (verdict["high"] - verdict["low"]) / 2, losses[-1]))
                stop = bool(verdict["stop"])
            if stop:
                break
        study.tell(trial, *([] if stop else [losses[-1]]), **({"state": TrialState.PRUNED} if stop else {}))
    return pairs


def calibration() -> str:
    """True ends against predicted ones, and how often the intervals held."""
    pairs = [pair for seed in range(STUDIES) for pair in predictions(seed)]
    side, top = HEIGHT - 1.5 * EDGE, max(max(mean, true) for mean, _, true in pairs) * 1.05

    def place(mean: float, true: float) -> tuple[float, float]:
        return EDGE + mean / top * side, EDGE / 2 + (1 - true / top) * side

    (x0, y0), (x1, y1) = place(0, 0), place(top, top)
    body = [f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="#c9a96a"/>']
    for mean, deviation, true in pairs:
        (x, y), held = place(mean, true), abs(true - mean) < 1.645 * deviation
        body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{"#333" if held else "#c0392b"}"/>')
    body.append(text(EDGE + side / 2, HEIGHT - 8, "predicted end", anchor="middle"))
    body.append(text(8, EDGE / 2 - 8, "true end"))
    away = [abs(true - mean) / deviation for mean, deviation, true in pairs]
    for line, (share, reach) in enumerate(((50, 0.674), (90, 1.645))):
        held = 100 * sum(a < reach for a in away) / len(away)
        body.append(text(EDGE + side + 30, EDGE + 22 * line, f"{share} % intervals held: {held:.0f} %"))
    body.append(text(EDGE + side + 30, EDGE + 44, f"{len(pairs)} predictions, {STUDIES} studies"))
    body.append(text(EDGE + side + 30, EDGE + 66, "outside of its 90 % interval", "#c0392b"))
    return svg(body)


def main() -> int:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    curves = regret_curves(HERE / "results" / "search_efficiency_plain.csv")
    (IMAGES / "search_regret.svg").write_text(curves, encoding="utf-8")
    (IMAGES / "search_calibration.svg").write_text(calibration(), encoding="utf-8")
    for seed in range(20):
        study, space = two_valleys(seed, RUN)
        widened = [t for t in study.trials if WIDENED in t.user_attrs]
        if widened:
            drawn, _ = two_valleys(seed, study.sampler.planned[-1].first + 1)
            picture = funnel(study, drawn, space, "a")
            (IMAGES / "search_funnel.svg").write_text(picture, encoding="utf-8")
            break
    return 0


if __name__ == "__main__":
    sys.exit(main())
