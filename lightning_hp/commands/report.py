"""``lightning-hp report``: write the report of a study, finished or not, and print what mattered."""

from __future__ import annotations

import json

from jsonargparse import Namespace

from lightning_hp.commands.output import output_console, write_line
from lightning_hp.report.text import show_evidence
from lightning_hp.report.write import write_reports
from lightning_hp.study.storage import find_study


def report_verb(options: Namespace) -> int:
    """Write the report and print the evidence.

    Raises:
        StudyError: If there is no such study.
    """
    study, paths = find_study(options.study)
    report = write_reports(study, paths)
    evidence = paths.evidence.read_text(encoding="utf-8")
    if options.json:
        write_line(evidence.rstrip())
        return 0
    show_evidence(json.loads(evidence), output_console())
    write_line(str(report))
    return 0
