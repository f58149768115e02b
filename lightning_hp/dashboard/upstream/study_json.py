"""A study with its trials as JSON, which an open page asks for again and again, put together from parts that are kept.

Optuna's dashboard turns every trial into JSON at every request, and reads all of them to see which parameters there
are. A finished trial does not change, so here its JSON is made once. What is sent is what the dashboard itself would
send (a test compares them), with three differences: of a big study most trials come without their curves
(:mod:`.curve_limit`); figures and columns come in order; and there is a mark (``ETag``) of what was sent, so that a
page that holds it already need not read it, and draw it, again.

It uses the dashboard's own functions, which are private: where they are missing, the dashboard answers for itself.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lightning_hp.dashboard.combined_storage import CombinedStorage
from lightning_hp.dashboard.upstream.curve_limit import numbers_with_curve, without_curve
from lightning_hp.dashboard.upstream.numbers import moved_trial
from lightning_hp.study.upstream import study_number, trial_number

#: the answers of so many studies are kept, of the last asked for; a trial takes some 3 kB
STUDIES_KEPT = 4
_OF_TRIAL = re.compile(r"^dashboard:(?:artifacts:)?(\d+):")
_NOTHING: dict[str, Any] = {}


@dataclass
class _Part:
    """One finished trial as it was sent last."""

    trial: FrozenTrial
    about: Mapping[str, Any]
    curve: bool
    sent: bytes
    mark: bytes


@dataclass
class _Kept:
    """The answers of one study that are kept."""

    extra: Any
    parts: dict[int, _Part] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class StudyJson:
    """Answers of ``/api/studies/N``.

    Args:
        combined: The studies.

    Raises:
        ImportError: If the installed dashboard has other functions than this was written for.
    """

    def __init__(self, combined: CombinedStorage) -> None:
        from optuna_dashboard._custom_plot_data import get_plotly_graph_objects
        from optuna_dashboard._inmemory_cache import _CachedExtraStudyProperty
        from optuna_dashboard._pareto_front import get_pareto_front_trials
        from optuna_dashboard._serializer import serialize_frozen_trial, serialize_study_detail

        self._figures = get_plotly_graph_objects
        self._extra = _CachedExtraStudyProperty
        self._pareto = get_pareto_front_trials
        self._trial = serialize_frozen_trial
        self._detail = serialize_study_detail
        self._combined = combined
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._lock = threading.Lock()

    def answer(self, number: int, after: int) -> tuple[bytes, str] | None:
        """The JSON of a study, and its mark: the same as long as the study is, whatever ``after`` is.

        Args:
            number: Of the study.
            after: Trials before this one are left out, since the page has them.

        Returns:
            None where the dashboard has to answer for itself: there is no such study, or it is a preferential one.
        """
        study = next((s for s in self._combined.get_all_studies() if study_number(s) == number), None)
        if study is None or study.system_attrs.get("preference:is_preferential"):
            return None
        with self._lock:
            kept = self._kept.setdefault(number, _Kept(self._extra()))
            self._kept.move_to_end(number)
            while len(self._kept) > STUDIES_KEPT:
                self._kept.popitem(last=False)
        with kept.lock:
            trials, moved = self._combined.trials_as_kept(number)
            directions = study.directions
            if len(trials) < len(kept.parts):  # another study, of the number of one that was deleted
                kept.extra, kept.parts = self._extra(), {}
            curves = numbers_with_curve(trials, directions[0])
            about = _by_trial(study.system_attrs)
            fresh: list[FrozenTrial] = []
            parts = []
            marks = blake2b(digest_size=16)
            for trial in trials:
                part = self._part(number, trial, moved, about, curves is None or trial.number in curves, kept, fresh)
                marks.update(part.mark)
                parts.append(part.sent)
            if fresh:
                kept.extra._cursor = -1  # or it would pass over trials that have ended since
                kept.extra.update(fresh)
            detail = self._detail(
                study, [moved_trial(t, moved) for t in self._best(trials, directions)], [],
                kept.extra.intersection_search_space, kept.extra.union_search_space,
                sorted(kept.extra.union_user_attrs), kept.extra.has_intermediate_values,
                dict(sorted(self._figures(study.system_attrs).items())), [],
            )  # fmt: skip
        del detail["trials"]
        rest = json.dumps(detail, separators=(",", ":")).encode()
        marks.update(rest)
        return b"".join((b'{"trials":[', b",".join(parts[after:]), b"],", rest[1:])), f'"{marks.hexdigest()}"'

    def _part(
        self,
        number: int,
        trial: FrozenTrial,
        moved: int,
        about: Mapping[int, Mapping[str, Any]],
        curve: bool,
        kept: _Kept,
        fresh: list[FrozenTrial],
    ) -> _Part:
        own = about.get(trial_number(trial) + moved, _NOTHING)
        last = kept.parts.get(trial.number)
        if last is None or last.trial is not trial:
            fresh.append(trial)
        elif last.curve == curve and last.about == own:
            return last
        limited = moved_trial(trial if curve or not trial.state.is_finished() else without_curve(trial), moved)
        sent = json.dumps(self._trial(number, limited, own), separators=(",", ":")).encode()
        part = _Part(trial, own, curve, sent, blake2b(sent, digest_size=8).digest())
        if trial.state.is_finished():  # another one may still be written to
            kept.parts[trial.number] = part
        return part

    def _best(self, trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> list[FrozenTrial]:
        complete = [t for t in trials if t.state is TrialState.COMPLETE]
        if not complete:
            return []
        if len(directions) > 1:
            return list(self._pareto(trials=trials, directions=directions))
        choose = max if directions[0] is StudyDirection.MAXIMIZE else min
        return [choose(complete, key=lambda t: t.values[0])]


def _by_trial(attributes: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """The attributes of a study that are about a trial (its note, its artifacts), by trial."""
    by_trial: dict[int, dict[str, Any]] = {}
    for key, value in attributes.items():
        match = _OF_TRIAL.match(key)
        if match:
            by_trial.setdefault(int(match[1]), {})[key] = value
    return by_trial
