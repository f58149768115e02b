"""`ReplayPolicy`: a new run does at the same steps what a babysat run did."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lightning_hp.callbacks.panda.history import START, History, Intervention, intervention_from_dict
from lightning_hp.callbacks.panda.journal import read_rows
from lightning_hp.callbacks.panda.settings import Settings


class ReplayPolicy:
    """The interventions of a ``panda.jsonl``, one after the other, a person's included; nothing else is decided.

    With the same module, data and seed the run ends with the same weights, rollbacks and probes included.

    Args:
        log: The ``panda.jsonl`` of the run.

    Raises:
        ValueError: If the log does not begin with the beginning of a training.
        OSError: If it cannot be read.

    Example:
        >>> trainer = Trainer(callbacks=[PandaBabysitter(policy=ReplayPolicy("runs/one/panda.jsonl"))])
    """

    def __init__(self, log: str | Path) -> None:
        rows = [row for row in read_rows(Path(log)) if not row.get("lost")]
        if not rows or rows[0].get("what") != "training":
            raise ValueError(f"`log` must begin with the beginning of a training, got {str(log)!r}")
        self.settings = Settings(on_overfitting=None)
        self._todo: list[tuple[int, Intervention]] = []
        self._keep: dict[int, set[str]] = {}
        saved = {START: int(rows[0]["step"])}
        for row in rows:
            if "intervention" not in row or row["rule"] == "reload":
                continue
            what = intervention_from_dict(row["intervention"])
            saved |= dict.fromkeys(what.save, int(row["step"]))
            if what.restore is not None and saved.get(what.restore) != int(row["to"]):
                self._keep.setdefault(int(row["to"]), set()).add(what.restore)
            self._todo.append((int(row["step"]), dataclasses.replace(what, by="replay")))

    def decide(self, history: History) -> Intervention | None:
        """The recorded intervention of this step, if there is one."""
        done = sum(entry.what.rule != "reload" for entry in history.done)
        if done < len(self._todo) and self._todo[done][0] <= history.step:
            return self._todo[done][1]
        return None

    def keep(self, history: History) -> tuple[str, ...]:
        """Snapshots that the recorded run went back to later."""
        return tuple(sorted(self._keep.get(history.step, ())))

    def window(self, history: History, usual: int, step: int) -> int:
        """Up to the next step at which something happened, so that there is a check just then."""
        events = [*(when for when, _ in self._todo), *self._keep]
        return min([usual, *(event - step for event in events if event > step)])
