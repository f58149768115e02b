"""``lightning-hp VERB``: the commands. Every verb imports what it needs when it runs, so that ``--help`` is quick.

Exit codes: 0 done or fresh, 1 error, 2 wrong usage, 3 stale, 4 an audit found errors, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from lightning_hp.arguments import parser

if TYPE_CHECKING:
    from rich.console import Console

DONE, ERROR, USAGE = 0, 1, 2
INTERRUPTED, TERMINATED = 130, 143
#: columns of what is printed to a file or a pipe
PLAIN_WIDTH = 200
#: options of ``tune`` that replace a key of ``tune.yaml``, and where the key is
_OVERRIDES = {
    "trials": ("budget", "trials"),
    "max_epochs": ("budget", "max_epochs"),
    "time": ("budget", "time"),
    "workers": ("caviar", "workers"),
    "name": ("name",),
    "folder": ("folder",),
    "storage": ("storage",),
    "seed": ("seed",),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments behind the program's name; None for those of this process.

    Returns:
        The exit code.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # the user's own modules, as `python -m` would find them
    debug = "--debug" in given
    try:
        if given and given[0] == "fit":
            return _fit([a for a in given[1:] if a != "--debug"])
        parsed = parser().parse_args(given)
        return _VERBS[parsed.verb](parsed[parsed.verb])
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on from here")
        return INTERRUPTED
    except SystemExit as stop:
        # Lightning leaves a training by SystemExit: without a code after SIGTERM, with 1 after Ctrl-C
        if type(stop).__name__ == "SIGTERMException":
            _say("terminated; the same command goes on from here")
            return TERMINATED
        if isinstance(stop.__context__, KeyboardInterrupt):
            _say("interrupted; the same command goes on from here")
            return INTERRUPTED
        raise
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        if debug:
            raise
        expected = type(error).__name__ in ("ConfigError", "StudyError", "ValueError")
        text = " ".join(str(error).split())
        _say(f"error: {text if expected else f'{type(error).__name__}: {text} (--debug shows where)'}")
        return ERROR


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def _show(text: str) -> None:
    sys.stdout.write(text + "\n")


def _console() -> Console:
    """Standard output; where it is no terminal, as wide as a table may get, since nobody is there to see it wrap."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)


# --- verbs ---


def _tune(given: Namespace) -> int:
    from pathlib import Path

    from lightning_hp.tuning.config import ConfigError, TuneConfig, read_yaml

    path = Path(given.config)
    mapping = read_yaml(path, "config")
    replaced: list[str] = []
    for option, (*parents, key) in _OVERRIDES.items():
        if given[option] is not None:
            place: Any = mapping
            for parent in parents:
                place = place.setdefault(parent, {})
                if not isinstance(place, dict):
                    raise ConfigError(f"`{parent}` must be a mapping, got {place!r}")
            place[key] = given[option]
            replaced += [f"--{option}", str(given[option])]
    config = TuneConfig.from_dict(mapping, base=path.parent, source=path)

    from lightning_hp.tuning.runner import Event, StudyRunner
    from lightning_hp.tuning.tune import cli_builder

    builder = cli_builder(config)
    if given.worker:
        StudyRunner(config, builder).work()
        return DONE

    from lightning_hp.tuning.engines import run
    from lightning_hp.tuning.progress import StudyDisplay
    from lightning_hp.tuning.summary import summarise

    shown: list[StudyDisplay] = []

    def listen(event: Event) -> None:
        for display in shown:
            display(event)

    workers = config.caviar.workers
    command = [sys.executable, "-m", "lightning_hp", "tune", str(path), *replaced, "--worker"]
    with StudyDisplay(config.name, config.budget.trials, config.monitor, config.mode, workers) as display:
        shown.append(display)
        result = run(config, builder, listen, command)
    summarise(result, _console())
    return DONE


def _fit(given: list[str]) -> int:
    if not given or given[0] in ("-h", "--help"):
        _show(
            "usage: lightning-hp fit FILE [--model_class PATH] [--data_class PATH] [--cli_class PATH] [options]\n\n"
            "Train a LightningCLI file such as best.yaml. The class paths are for files that name no classes, and for\n"
            "projects with a LightningCLI of their own; further options go to LightningCLI, such as\n"
            "--trainer.max_epochs 5."
        )
        return DONE if given else USAGE
    from pathlib import Path

    from lightning_hp.tuning.config import ConfigError, read_yaml

    file, *rest = given
    read_yaml(Path(file), "config")
    paths: dict[str, str] = {}
    for option in ("model_class", "data_class", "cli_class"):
        if f"--{option}" in rest:
            at = rest.index(f"--{option}")
            if at + 1 == len(rest):
                raise ConfigError(f"`--{option}` must be followed by a class path")
            paths[option] = rest[at + 1]
            del rest[at : at + 2]

    from lightning_hp.tuning.build import lightning_cli, plainly

    kind, classes = lightning_cli(*(paths.get(option) for option in ("model_class", "data_class", "cli_class")))
    with plainly():
        kind(args=["fit", "--config", file, *rest], save_config_callback=None, **classes)
    return DONE


def _best(given: Namespace) -> int:
    from lightning_hp.tuning.storage import StudyError, find_study

    _, paths = find_study(given.study)
    if not paths.result.is_file():
        raise StudyError(f"study {given.study!r} has not ended yet; see `lightning-hp report {given.study}`")
    if given.yaml:
        _show(paths.best.read_text(encoding="utf-8").rstrip())
    elif given.json:
        _show(paths.result.read_text(encoding="utf-8").rstrip())
    else:
        from lightning_hp.tuning.summary import show_result

        show_result(json.loads(paths.result.read_text(encoding="utf-8")), _console())
    return DONE


def _report(given: Namespace) -> int:
    from lightning_hp.tuning.results import write_reports
    from lightning_hp.tuning.storage import find_study

    study, paths = find_study(given.study)
    written = write_reports(study, paths)
    if given.json:
        _show(paths.evidence.read_text(encoding="utf-8").rstrip())
        return DONE
    from lightning_hp.tuning.summary import show_evidence

    show_evidence(json.loads(paths.evidence.read_text(encoding="utf-8")), _console())
    _show(str(written))
    return DONE


def _sample(given: Namespace) -> int:
    from lightning_hp.search.scales import histogram, sample

    draws = sample(given.low, given.high, given.number, given.scale, given.seed)
    if given.json:
        _show(json.dumps(draws.tolist()))
    else:
        _show(histogram(draws, given.low, given.high, given.scale))
    return DONE


def _space(given: Namespace) -> int:
    from lightning_hp.tuning.summary import show_space

    show_space(given.config, given.trials, _console())
    return DONE


def _dashboard(given: Namespace) -> int:
    from lightning_hp.dashboard.server import serve_command

    return serve_command(
        given.study,
        host=given.host,
        port=given.port,
        read_only=given.read_only,
        password_file=given.password_file,
        hosts=given.hosts,
        open_browser=given.open_browser,
    )


def _retune(given: Namespace) -> int:
    from pathlib import Path

    from lightning_hp.tuning.config import ConfigError, TuneConfig
    from lightning_hp.tuning.storage import find_study

    if given.k < 0:
        raise ConfigError(f"`k` must be a whole number of at least 0, got {given.k}")
    _, paths = find_study(given.study)
    source = given.config or json.loads(paths.study.read_text(encoding="utf-8")).get("source")
    if source is None:
        raise ConfigError(f"`config` is missing: {given.study} does not say which tune.yaml it came from")
    config = TuneConfig.from_file(Path(source))

    import torch
    from rich.console import Console

    from lightning_hp.tuning.progress import StudyDisplay
    from lightning_hp.tuning.retune import retune
    from lightning_hp.tuning.summary import summarise
    from lightning_hp.tuning.tune import cli_builder

    if "OMP_NUM_THREADS" not in os.environ:  # as the workers that tuned it had: the same sums in the same order
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // config.caviar.workers))
    with StudyDisplay(config.name, config.budget.trials, config.monitor, config.mode) as display:
        done = retune(
            str(paths.root),
            config,
            cli_builder(config),
            k=given.k,
            trials=given.trials,
            test=not given.force,
            search=not given.retest_only,
            listen=display,
        )
    if done.test is not None:
        _show(done.test.summary)
    if done.result is not None:
        summarise(done.result, Console())
    return DONE


def _audit(given: Namespace) -> int:
    from lightning_hp.tuning.audit_command import audit_command

    return audit_command(
        given.config,
        given.ckpt,
        data=given.data or (),
        json=given.json,
        shift=given.shift,
        html=given.html,
        cli=given.cli,
    )


def _recalibrate(given: Namespace) -> int:
    from lightning_hp.tuning.audit_command import recalibrate_command

    return recalibrate_command(
        given.config,
        given.ckpt,
        output=given.output,
        data=given.data or (),
        monitor=given.monitor,
        mode=given.mode,
        json=given.json,
        cli=given.cli,
    )


def _status(given: Namespace) -> int:
    from lightning_hp.tuning.status_command import status_command

    return status_command(
        given.paths,
        json=given.json,
        fail_on=given.fail_on,
        write_cron=given.write_cron,
        write_github_action=given.write_github_action,
        ics=given.ics,
    )


def _postpone(given: Namespace) -> int:
    from lightning_hp.tuning.status_command import postpone_command

    return postpone_command(given.name, until=given.until, why=given.why, ledger=given.ledger, by=given.by)


_VERBS = {
    "tune": _tune,
    "best": _best,
    "report": _report,
    "sample": _sample,
    "space": _space,
    "retune": _retune,
    "audit": _audit,
    "recalibrate": _recalibrate,
    "status": _status,
    "postpone": _postpone,
    "dashboard": _dashboard,
}
