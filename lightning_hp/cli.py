"""``lightning-hp VERB``: the entry of all commands. A verb is imported when it runs, so that ``--help`` is quick.

Exit codes: 0 done or fresh, 1 error, 2 wrong usage, 3 stale, 4 an audit found errors, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from lightning_hp.commands.arguments import parser

DONE, ERROR, WRONG_USAGE = 0, 1, 2
INTERRUPTED, TERMINATED = 130, 143
#: verb -> the function that runs it, in ``lightning_hp.commands``; it takes the parsed options and gives the exit code
_VERBS = {
    "init": "init.init_verb",
    "tune": "tune.tune_verb",
    "worker": "worker.worker_verb",
    "watch": "watch.watch_verb",
    "best": "best.best_verb",
    "report": "report.report_verb",
    "sample": "sample.sample_verb",
    "space": "space.space_verb",
    "retune": "retune.retune_verb",
    "audit": "audit.audit_verb",
    "recalibrate": "recalibrate.recalibrate_verb",
    "status": "status.status_verb",
    "postpone": "postpone.postpone_verb",
    "dashboard": "dashboard.dashboard_verb",
    "nudge": "nudge.nudge_verb",
    "pause": "nudge.pause_verb",
    "resume": "nudge.resume_verb",
    "undo": "nudge.undo_verb",
    "stop": "nudge.stop_verb",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments behind the program's name; None for those of this process.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # the user's own modules, as `python -m` would find them
    debug = "--debug" in arguments
    try:
        if arguments and arguments[0] == "fit":  # its options are those of the project's own LightningCLI
            from lightning_hp.commands.fit import fit_verb

            return fit_verb([a for a in arguments[1:] if a != "--debug"])
        if arguments and arguments[0] == "babysit":  # its further options too
            from lightning_hp.commands.babysit import babysit_verb

            return babysit_verb([a for a in arguments[1:] if a != "--debug"])
        if arguments == ["work"]:  # for processes, not for people
            from lightning_hp.commands.work import work_verb

            return work_verb()
        if arguments == ["rank"]:  # likewise
            from lightning_hp.tuning.workers.ranks import run_rank

            return run_rank()
        if not arguments:
            parser().print_help(sys.stderr)
            return WRONG_USAGE
        options = parser().parse_args(arguments)
        module, _, function = _VERBS[options.verb].partition(".")
        run = getattr(importlib.import_module(f"lightning_hp.commands.{module}"), function)
        return int(run(options[options.verb]))
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
