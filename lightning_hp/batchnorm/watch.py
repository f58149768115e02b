"""Observes a running training: update counters, a check for NaN and infinity, and now and then a recorded step.

The watch never draws random numbers, never changes the model and takes no forward pass. A check reads two things: the
update counters (their growth over the batches since the last check gives updates per batch) and the sum of all
statistics (NaN and infinity survive summing). On an accelerator the sum is read one check later, so that no check
waits for the device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_hp.batchnorm.observe import CallRecorder, Step
from lightning_hp.batchnorm.rules_state import bad_channels
from lightning_hp.batchnorm.snapshot import Facts, LayerState, state_of
from lightning_hp.batchnorm.statistics import Averaging, Moments, find_layers, noise_factor, recover_batch_moments

__all__ = ["TrainingWatch"]

_RECORD_EVERY = 16  # batches; a recorded step costs a copy of its inputs
_COUNT_EVERY = 50  # batches; counters say the same whenever they are read
_FULL_CHECK_EVERY = 10  # batches
_FIRST_STEPS = 8  # recorded at once, so that short runs have something to replay
_RECOVERED = 64  # batch moments kept for models whose calls cannot be recorded


class TrainingWatch:
    """Watches one model through one training.

    Args:
        model: the model, with its layers materialised.
        every_n_steps: batches between checks.
        record: whether to record steps for a data pass at all.
        max_rows: rows to keep for the data pass.
        hooks: False where hooks would be traced into a compiled training step; batch moments are then recovered from
        buffers.

    Example:
        >>> watch = TrainingWatch(model)
        >>> for index, batch in enumerate(loader):
        ...     watch.before_batch(index, len(loader), last_epoch=False)
        ...     training_step(batch)
        ...     watch.after_batch(step)
        >>> snapshot = measure(model, watch.steps, watch.facts(), watch.training)
    """

    def __init__(
        self,
        model: nn.Module,
        every_n_steps: int = 10,
        record: bool = True,
        max_rows: int = 2048,
        hooks: bool = True,
    ) -> None:
        if every_n_steps < 1:
            raise ValueError(f"`every_n_steps` must be at least 1, got {every_n_steps!r}")
        self.layers = find_layers(model)
        self.every_n_steps = every_n_steps
        self.recorder = CallRecorder(model, max_rows=max_rows) if record and hooks and self.layers else None
        if self.recorder is not None and not self.recorder.possible:
            self.recorder = None
        self._recover_only = record and self.recorder is None
        self.training = {name: layer.training for name, layer in self.layers.items()}
        self.nonfinite: dict[str, int] = {}
        self.recovered: dict[str, list[Moments]] = {}
        self._initial = {
            name: (state.running_mean.clone(), state.running_var.clone(), state.updates)
            for name, state in ((name, state_of(name, layer)) for name, layer in self.layers.items())
        }
        self._gamma = {
            n: layer.weight.detach().abs().median().item() for n, layer in self.layers.items() if layer.affine
        }
        self._find_buffers()
        self._counted = [name for name, x in self.layers.items() if x.num_batches_tracked is not None]
        self._counting = [self.layers[name] for name in self._counted]
        self._find_counters()
        self._last_counts = self._counts()
        self._momenta = [layer.momentum for layer in self._counting]
        self.averaging = {
            name: Averaging(1.0, noise_factor(momentum, count))
            for name, momentum, count in zip(self._counted, self._momenta, self._last_counts, strict=True)
        }
        self._grown = dict.fromkeys(self._counted, 0)
        self._batches = self._attempts = self._covered = self._counted_at = 0
        self._count_every = max(every_n_steps, _COUNT_EVERY)
        self._recording = False
        self._before: list[Tensor] | None = None
        self._counts_before: list[int] = []
        self._pending: tuple[int, Tensor] | None = None

    def _find_buffers(self) -> None:
        # Looked up again now and then: some tools put new tensors in place of the buffers.
        pairs = ((x.running_mean, x.running_var) for x in self.layers.values())
        self._buffers = [b.detach() for pair in pairs for b in pair if b is not None]
        self._quick = self._buffers[-2] if self._buffers and self._buffers[-2].device.type == "cpu" else None
        self._one_device = len({b.device for b in self._buffers}) <= 1

    def _find_counters(self) -> None:
        self._counters = [x.num_batches_tracked for x in self._counting if x.num_batches_tracked is not None]

    @property
    def steps(self) -> list[Step]:
        """Recorded steps, oldest first."""
        return self.recorder.steps if self.recorder is not None else []

    def _counts(self) -> list[int]:
        if not self._counters:
            return []
        return [int(v) for v in torch.stack([c.detach() for c in self._counters]).tolist()]

    def wants(self, index: int, last_epoch: bool) -> bool:
        """False if `before_batch` would do nothing; one comparison, for the many batches in between."""
        return index % _RECORD_EVERY == 0 or last_epoch or self._batches < 2 * _FIRST_STEPS

    def before_batch(self, index: int, batches: float | None, last_epoch: bool) -> None:
        """Call before each training batch.

        Args:
            index: index of the batch in its epoch.
            batches: batches in the epoch; None or infinity if unknown.
            last_epoch: whether the training is known to end with this epoch, so that its inputs are what counts.
        """
        if not self.layers or (self.recorder is None and not self._recover_only):
            return
        stride = -(-self.every_n_steps // _RECORD_EVERY) * _RECORD_EVERY
        if last_epoch and batches and math.isfinite(batches):
            stride = max(1, int(batches) // 32)
        if self._recover_only:
            # Nothing can be recorded (compiled training step): take batch moments from buffer differences.
            if index % stride == 0:
                self._before = [b.detach().clone() for b in self._buffers]
                self._counts_before = self._counts()
        elif self.recorder is not None and (index % stride == 0 or self.recorder.count < _FIRST_STEPS):
            self.recorder.start()
            self._recording = True

    def after_batch(self, step: int) -> bool:
        """Call after each training batch; checks every `every_n_steps` of them.

        Args:
            step: what to report as the step of a fault.

        Returns:
            True if a check found a statistic that is not finite for the first time.
        """
        if self._recording and self.recorder is not None:
            self.recorder.stop()
            self._recording = False
            self._attempts += 1
            self._recover_only = self._attempts >= _FIRST_STEPS and not self.recorder.count
        if self._before is not None:
            self._recover(self._before)
            self._before = None
        self._batches += 1
        if not self.layers:
            return False
        momenta = [layer.momentum for layer in self._counting]
        if momenta != self._momenta:  # a schedule: the batches before ran with the old ones
            self.count(momenta=momenta)
        if self._batches % self._count_every == 0:
            self.count()
        if self._batches % self.every_n_steps:
            return False
        if self._batches % _FULL_CHECK_EVERY and self._batches % self._count_every and self._quick is not None:
            # A batch that is not finite spoils every layer behind it in the same forward, so the last one tells at the
            # price of one operation. Branches and single broken buffers wait for the next full check.
            return not math.isfinite(float(self._quick.sum())) and self._locate(step)
        return self.check(step)

    def abandon(self) -> None:
        """Take hooks off after an exception in a batch."""
        if self.recorder is not None:
            self.recorder.stop(keep=False)
        self._recording, self._before = False, None

    def count(self, modes: bool = True, momenta: list[float | None] | None = None) -> None:
        """Read counters and modes; the growth since the last time belongs to the training batches in between.

        Args:
            modes: False where the model is no longer as it was in training (validation has begun).
            momenta: new momenta, from the last batch on; None while they are as before.
        """
        self._find_counters()
        now, batches = self._counts(), max(self._batches - self._counted_at, 1)
        for place, (name, new, old) in enumerate(zip(self._counted, now, self._last_counts, strict=True)):
            if new < old:  # reset_running_stats(), as weight averaging does before it collects statistics anew
                usual = self._grown[name] / self._covered if self._covered else 1.0
                self._grown[name] += round(usual * batches) - new  # those before the reset left no trace
                self.averaging[name], old = Averaging(), 0
                start = self._initial[name]
                self._initial[name] = (torch.zeros_like(start[0]), torch.ones_like(start[1]), 0)
                last = new if momenta is not None else 0
            else:
                last = round((new - old) / batches) if momenta is not None else 0
            self._grown[name] += new - old
            weights = self.averaging[name].after(new - old - last, self._momenta[place], old)
            self.averaging[name] = weights.after(last, (momenta or self._momenta)[place], new - last)
        self._last_counts = now
        if momenta is not None:
            self._momenta = momenta
        self._covered += self._batches - self._counted_at
        self._counted_at = self._batches
        self._find_buffers()
        if modes:
            self.training = {name: layer.training for name, layer in self.layers.items()}

    def check(self, step: int) -> bool:
        """Look for statistics that are not finite. Returns True if some were found for the first time."""
        if not self._buffers:
            return False
        total = torch.cat(self._buffers).sum() if self._one_device else sum(b.sum().cpu() for b in self._buffers)
        assert isinstance(total, Tensor)
        due = (step, total)
        if total.device.type != "cpu":
            due, self._pending = self._pending or due, due
        if math.isfinite(float(due[1])):
            return False
        return self._locate(due[0])

    def _locate(self, step: int) -> bool:
        fresh = False
        for name, layer in self.layers.items():
            if name not in self.nonfinite and bad_channels(state_of(name, layer)):
                self.nonfinite[name] = step
                fresh = True
        return fresh

    def states(self) -> dict[str, LayerState]:
        """State of each layer now, with the mode it had in training."""
        return {name: state_of(name, layer, self.training.get(name)) for name, layer in self.layers.items()}

    def trainable_layers(self) -> list[str]:
        """Layers that were in train mode and tracking at the last check: those whose statistics training made."""
        return [n for n, layer in self.layers.items() if self.training.get(n, True) and layer.track_running_stats]

    def resync(self) -> None:
        """Forget counter growth that did not come from training batches (validation, a repair)."""
        self._last_counts = self._counts()
        self._counted_at = self._batches

    def counts(self) -> dict[str, int]:
        """Update counter of each layer now."""
        return dict(zip(self._counted, self._counts(), strict=True))

    def _recover(self, before: list[Tensor]) -> None:
        counts = dict(zip(self._counted, self._counts(), strict=True))
        old = dict(zip(self._counted, self._counts_before, strict=True))
        for position, (name, layer) in enumerate(self.layers.items()):
            m = layer.momentum
            if m is None or not 0 < m <= 1 or counts.get(name, 0) - old.get(name, 0) != 1:
                continue
            mean, var = before[2 * position], before[2 * position + 1]
            assert layer.running_mean is not None
            assert layer.running_var is not None
            got_mean = recover_batch_moments(mean.cpu(), layer.running_mean.detach().cpu(), m)
            got_var = recover_batch_moments(var.cpu(), layer.running_var.detach().cpu(), m)
            kept = self.recovered.setdefault(name, [])
            kept.append(Moments(2.0, got_mean, got_var.clamp_min(0.0)))  # n = 2 makes m2 the unbiased variance
            del kept[:-_RECOVERED]

    def facts(self) -> Facts:
        """What was observed, for the rules."""
        self.check(self._batches)
        if self._batches > self._counted_at:
            self.count()
        shrink = {
            name: 1.0 - self.layers[name].weight.detach().abs().median().item() / before
            for name, before in self._gamma.items()
            if before > 0
        }
        seen = max(self._covered, 1)
        return Facts(
            averaging=dict(self.averaging),
            updates_per_step={name: grown / seen for name, grown in self._grown.items()} if self._covered else {},
            nonfinite=dict(self.nonfinite),
            initial=dict(self._initial),
            gamma_shrink=shrink,
            trained_steps=self._batches,
        )
