"""The verbs of ``lightning-hp``, their arguments and their help texts."""

from __future__ import annotations

from jsonargparse import ArgumentParser

from lightning_hp import __version__


def parser() -> ArgumentParser:
    """The parser of all commands. It is built without importing the modules that do the work."""
    about = "Tune what matters first: PyTorch Lightning and Optuna. Begin with the verb init."
    commands = ArgumentParser(prog="lightning-hp", description=about, version=__version__)
    verbs = commands.add_subcommands(dest="verb", required=True, metavar="VERB")

    def verb(name: str, about: str) -> ArgumentParser:
        parser = ArgumentParser(description=about)
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        verbs.add_subcommand(name, parser, help=about)
        return parser

    init = verb("init", "Write a first tune.yaml for a project: read its files and signatures, train one epoch.")
    init.add_argument(
        "project", type=str, nargs="?", help="LightningCLI file; or package.module:Module for a project without one"
    )
    init.add_argument("--config", type=str, nargs="*", default=[], help="LightningCLI file, or several")
    _add_classes(init)
    init.add_argument("--output", type=str, help="the file to write; default tune.yaml beside the LightningCLI file")
    init.add_argument("--name", type=str, help="study name; default from the file or its folder")
    init.add_argument("--trials", type=int, default=40, help="total number of trials; default 40")
    init.add_argument("--max_epochs", type=int, help="epochs of a complete training; default the file's")
    init.add_argument(
        "--no-run", dest="no_run", action="store_true", help="train nothing: choose no metric, estimate no time"
    )

    tune = verb("tune", "Run the study that a YAML file describes, or continue it.")
    tune.add_argument(
        "config", type=str, help="tune.yaml; or a LightningCLI file, to choose everything else as init does"
    )
    _add_classes(tune)
    tune.add_argument("--trials", type=int, help="total number of trials, also when continued")
    tune.add_argument("--max_epochs", type=int, help="epochs of a complete training")
    tune.add_argument("--time", type=str, help="no new trial starts after this time, HH:MM:SS")
    tune.add_argument("--workers", type=int, help="number of workers, for the engines local, ray and stacked")
    tune.add_argument("--name", type=str, help="study name")
    tune.add_argument("--folder", type=str, help="where the study's files go")
    tune.add_argument("--storage", type=str, help="journal, or an Optuna URL")
    tune.add_argument("--seed", type=int, help="seed of the study")
    tune.add_argument("--start", type=str, help="values to start from: a babysat run, a study, or a JSON file")
    tune.add_argument(
        "--accept-changes",
        dest="accept_changes",
        action="store_true",
        help="continue a study although the project has changed since its first trial",
    )
    tune.add_argument("--restart", action="store_true", help="move the old study aside, and start a new one")
    tune.add_argument("--max_steps", type=int, help="optimiser steps of a complete training")
    tune.add_argument("--worker", action="store_true", help="only run trials, as one more worker of the study")

    verb("fit", "Train a LightningCLI file, such as best.yaml; further options go to LightningCLI.").add_argument(
        "config", type=str, help="LightningCLI file"
    )

    verb(
        "babysit",
        "Train a LightningCLI file; a babysitter watches, and changes hyperparameters. --help shows its options.",
    ).add_argument("config", type=str, help="LightningCLI file")

    worker = verb("worker", "Run trials of a study that another process runs, until there are no more.")
    worker.add_argument("study", type=str, help="study folder, or the name of one in runs/; with --storage its name")
    worker.add_argument("--storage", type=str, default=None, help="Optuna URL; default LIGHTNING_HP_STORAGE, if set")
    worker.add_argument("--folder", type=str, default=None, help="where this worker's files go; default runs/STUDY")
    worker.add_argument(
        "--max-trials", dest="max_trials", type=int, default=None, help="end after this number of trials"
    )
    worker.add_argument(
        "--max-time", dest="max_time", type=str, default=None, help="no new trial starts after this time, such as 2h"
    )
    worker.add_argument(
        "--on-term", dest="on_term", type=str, default="hand-back", help="what SIGTERM does: hand-back or finish"
    )

    watch = verb("watch", "Show the workers of a study, their trials, the stage and the best value.")
    watch.add_argument("study", type=str, help="study folder, or the name of one in runs/; with --storage its name")
    watch.add_argument("--storage", type=str, default=None, help="Optuna URL; default LIGHTNING_HP_STORAGE, if set")
    watch.add_argument("--every", type=float, default=2.0, help="seconds between two looks; 0 to look once")

    best = verb("best", "Show the best trial of a study.")
    best.add_argument("study", type=str, help="study folder, or the name of one in runs/")
    best.add_argument("--json", action="store_true", help="print result.json")
    best.add_argument("--yaml", action="store_true", help="print best.yaml")

    report = verb("report", "Write the report of a study, finished or not, and print which hyperparameters mattered.")
    report.add_argument("study", type=str, help="study folder, or the name of one in runs/")
    report.add_argument("--json", action="store_true", help="print the evidence as JSON")

    draws = verb("sample", "Draw values on a scale and show how they spread.")
    draws.add_argument("--low", type=float, required=True, help="smallest value")
    draws.add_argument("--high", type=float, required=True, help="largest value")
    draws.add_argument("--scale", type=str, default="log", help="linear, log or one_minus_log")
    draws.add_argument("-n", "--number", type=int, default=10_000, help="number of draws")
    draws.add_argument("--seed", type=int, default=None, help="seed of the draws; default another one each time")
    draws.add_argument("--json", action="store_true", help="print all draws as a JSON list")

    space = verb("space", "Show a search space: tier, scale, range and default of each parameter, and the stages.")
    space.add_argument("config", type=str, help="tune.yaml, or the name of a preset")
    space.add_argument("--trials", type=int, default=None, help="number of trials to plan for; default the file's")

    retune = verb(
        "retune", "Test the best of a study on today's data; run a short new study if it is beaten or the data changed."
    )
    retune.add_argument("study", type=str, help="study folder, or the name of one in runs/")
    retune.add_argument("--config", type=str, default=None, help="tune.yaml; default the one it was tuned with")
    retune.add_argument("--k", type=int, default=4, help="number of neighbours of the best that are tested with it")
    retune.add_argument("--trials", type=int, default=None, help="trials of a new study; default a quarter of the old")
    retune.add_argument("--force", action="store_true", help="run the new study without a test")
    retune.add_argument("--retest-only", dest="retest_only", action="store_true", help="test only; run no new study")

    audit = verb(
        "audit", "Check the BatchNorm layers of a checkpoint of any LightningCLI project. Exit code 4: errors."
    )
    audit.add_argument("--html", type=str, default=None, help="also write the audit as a page to this file")
    audit.add_argument("--shift", type=str, default=None, help="compare this split (test, val, ...) with validation")
    fix = verb("recalibrate", "Write a new checkpoint with exact BatchNorm statistics; the old one stays.")
    fix.add_argument("--output", type=str, default=None, help="the repaired checkpoint; default beside the original")
    fix.add_argument("--monitor", type=str, default="val_loss", help="metric that must not get worse")
    fix.add_argument("--mode", type=str, default="min", help="min or max")
    for parser in (audit, fix):
        parser.add_argument("--config", type=str, required=True, help="LightningCLI file")
        parser.add_argument("--ckpt", type=str, required=True, help="checkpoint")
        parser.add_argument(
            "--data", type=str, nargs="*", default=None, help="KEY=VALUE: data settings that replace those of the file"
        )
        _add_classes(parser)
        parser.add_argument("--json", action="store_true", help="print JSON")

    status = verb("status", "Show what is tuned under a folder: age, next dates, what to do. Exit code 3 if due.")
    status.add_argument("paths", type=str, nargs="*", default=[], help="ledgers, or folders to search; default here")
    status.add_argument("--json", action="store_true", help="print one JSON object")
    status.add_argument(
        "--fail-on",
        dest="fail_on",
        type=str,
        default="due",
        help="due or stale: from which status on the exit code is 3",
    )
    status.add_argument("--write-cron", dest="write_cron", action="store_true", help="print a crontab line")
    status.add_argument(
        "--write-github-action", dest="write_github_action", action="store_true", help="print a GitHub workflow"
    )
    status.add_argument("--ics", type=str, default=None, help="also write the re-test dates to this calendar file")

    postpone = verb("postpone", "Move a re-test to a later date, with the reason.")
    postpone.add_argument("name", type=str, help="what was tuned, as `status` names it")
    postpone.add_argument("--until", type=str, required=True, help="the new date, YYYY-MM-DD")
    postpone.add_argument("--why", type=str, required=True, help="the reason")
    postpone.add_argument("--by", type=str, default=None, help="who decided; default the current user")
    postpone.add_argument("--ledger", type=str, default=".", help="the ledger, or a folder to search; default here")

    for name, about in (
        ("nudge", "Set hyperparameters of a babysat run, from its next check on."),
        ("pause", "Tell a babysitter to watch only, and change nothing."),
        ("resume", "Tell a paused babysitter to act again."),
        ("undo", "Take back the last change of a babysat run's hyperparameters."),
        ("stop", "End a babysat run early, in the ordinary way."),
    ):
        ask = verb(name, about)
        ask.add_argument("run", type=str, help="folder of the run, or the name of one in runs/")
        if name == "nudge":
            ask.add_argument("values", type=str, nargs="+", help="NAME=NUMBER, such as learning_rate=0.003")
        ask.add_argument("--why", type=str, default=None, help="the reason; it goes into the log")
        ask.add_argument("--wait", type=float, default=10.0, help="seconds to wait for the answer; default 10")

    dashboard = verb("dashboard", "Show studies in optuna-dashboard, served on this machine.")
    dashboard.add_argument("study", type=str, nargs="?", default="runs", help="study, folder of studies, or Optuna URL")
    dashboard.add_argument("--host", type=str, default="127.0.0.1", help="address to listen on; others need a password")
    dashboard.add_argument("--port", type=int, default=8080, help="port to listen on")
    dashboard.add_argument("--read-only", dest="read_only", action="store_true", help="refuse every change")
    dashboard.add_argument(
        "--password-file",
        dest="password_file",
        type=str,
        default=None,
        help="file whose first line is the password; default LIGHTNING_HP_PASSWORD, if set",
    )
    dashboard.add_argument(
        "--hosts", type=str, nargs="*", default=[], help="further host names of this server, such as that of a proxy"
    )
    dashboard.add_argument("--open", dest="open_browser", action="store_true", help="open the page in the browser")
    return commands


def _add_classes(parser: ArgumentParser) -> None:
    """What a LightningCLI file may not say."""
    parser.add_argument("--model_class", type=str, default=None, help="class path, for files that name no model")
    parser.add_argument("--data_class", type=str, default=None, help="class path, for files that name no data")
    parser.add_argument(
        "--cli_class", "--cli", type=str, default=None, help="the project's own command: class, function or script"
    )
