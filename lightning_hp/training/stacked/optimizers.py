"""One optimizer step for all members of a stack, each with its own hyperparameters, equal to what torch.optim does.

``SGD``, ``Adam`` and ``AdamW`` are known exactly (the class itself, not a subclass). Hyperparameters are read off every
member's own optimizer, group by group, whenever a schedule may have changed them. A stacked parameter is seen as a
matrix of shape (M, size) and a hyperparameter as a column (M, 1), so a member's NaN stays in its own row.
Formulas: ``torch.optim.SGD``, Kingma and Ba 2015 (arXiv:1412.6980), Loshchilov and Hutter 2019 (arXiv:1711.05101),
Reddi et al. 2018 (amsgrad) in the order of operations of ``torch.optim`` 2.13.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from lightning_hp.training.stacked.refusal import NotStackable

Partition = tuple[tuple[str, ...], ...]  # names of the parameters of each group
_SHARED_FLAGS = {SGD: ("nesterov", "maximize"), Adam: ("amsgrad", "maximize"), AdamW: ("amsgrad", "maximize")}


def partition_of(module: nn.Module, optimizer: Optimizer) -> Partition:
    """Return which parameters are in which group, by name; frozen ones are left out.

    Raises:
        NotStackable: If the optimizer holds something that is no parameter of the module.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        unknown = [p for p in group["params"] if id(p) not in names]
        if unknown:
            raise NotStackable("the optimizer holds a tensor that is no parameter of the module")
        groups.append(tuple(names[id(p)] for p in group["params"] if p.requires_grad))
    return tuple(groups)


def optimizer_key(module: nn.Module, optimizer: Optimizer) -> Hashable:
    """Return what the optimizers of a stack must have in common.

    Raises:
        NotStackable: If the optimizer is none that a stack knows.
    """
    kind = type(optimizer)
    if kind not in _SHARED_FLAGS:
        raise NotStackable(f"the optimizer {kind.__name__} is not stacked, only SGD, Adam and AdamW")
    if any(group.get("differentiable") for group in optimizer.param_groups):
        raise NotStackable("a differentiable optimizer is not stacked")
    if optimizer.state:
        raise NotStackable("the optimizer has a state already: a stack begins at the first step")
    flags = tuple(tuple(bool(group[flag]) for flag in _SHARED_FLAGS[kind]) for group in optimizer.param_groups)
    return kind.__name__, flags, partition_of(module, optimizer)


def build_stacked_optimizer(modules: Sequence[nn.Module], optimizers: Sequence[Optimizer]) -> StackedOptimizer:
    """Return the stacked optimizer of members whose `optimizer_key` is the same."""
    kind = StackedSGD if type(optimizers[0]) is SGD else StackedAdam
    return kind(partition_of(modules[0], optimizers[0]), optimizers)


class StackedOptimizer:
    """What the kinds share: the groups, and the members' hyperparameters as columns.

    Attributes:
        groups: Names of the parameters of each group.
        optimizers: The members' own optimizers, whose ``param_groups`` are read.
        moments: State tensors by kind and parameter name, shape (M, size).
        steps: Optimizer steps each member has taken.
    """

    moment_names: tuple[str, ...] = ()

    def __init__(self, groups: Partition, optimizers: Sequence[Optimizer]) -> None:
        """Keep the groups; state tensors are made in the first step."""
        self.groups = groups
        self.optimizers = list(optimizers)
        self.flags = [dict(group) for group in optimizers[0].param_groups]
        self.moments: dict[str, dict[str, Tensor]] = {name: {} for name in self.moment_names}
        self.steps = [0] * len(optimizers)
        self._columns: list[dict[str, Tensor]] | None = None
        self._scratch: dict[str, Tensor] = {}

    def refresh(self) -> None:
        """Read the hyperparameters again before the next step: a schedule may have changed them."""
        self._columns = None

    def values(self, group: int) -> dict[str, list[float]]:
        """Return the hyperparameters of one group, one number a member."""
        raise NotImplementedError

    def step(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """Change the weights in place. The gradients may be overwritten.

        Args:
            weights: Trained parameters by name, shape (M, ...), contiguous.
            gradients: Same names and shapes, contiguous.
        """
        first = next(iter(weights.values()))
        for name in self.moment_names:
            for parameter, tensor in weights.items():
                if parameter not in self.moments[name]:
                    self.moments[name][parameter] = torch.zeros_like(tensor).view(len(tensor), -1)
        columns = self._read(first)
        for number, names in enumerate(self.groups):
            for name in names:
                weight, gradient = weights[name], gradients[name]
                rows = len(weight)
                self._update(name, weight.view(rows, -1), gradient.view(rows, -1), columns[number], self.flags[number])
        self.steps = [count + 1 for count in self.steps]

    def _read(self, like: Tensor) -> list[dict[str, Tensor]]:
        if self._columns is None:
            self._columns = [
                {
                    name: torch.tensor(numbers, dtype=torch.float64).to(like.dtype).to(like.device).unsqueeze(1)
                    for name, numbers in self.values(group).items()
                }
                for group in range(len(self.groups))
            ]
        return self._columns

    def _read_members(self, group: int, read: Callable[[dict[str, Any]], float]) -> list[float]:
        return [float(read(optimizer.param_groups[group])) for optimizer in self.optimizers]

    def _update(self, name: str, w: Tensor, g: Tensor, columns: dict[str, Tensor], flags: dict[str, Any]) -> None:
        raise NotImplementedError

    def scratch(self, like: Tensor, name: str) -> Tensor:
        """Return memory of the shape of a tensor, the same in every step."""
        scratch = self._scratch.get(name)
        if scratch is None or scratch.shape != like.shape or scratch.dtype != like.dtype:
            scratch = self._scratch[name] = torch.empty_like(like)
        return scratch

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these members only."""
        self.optimizers = [self.optimizers[row] for row in rows]
        self.steps = [self.steps[row] for row in rows]
        for tensors in self.moments.values():
            for name, tensor in tensors.items():
                tensors[name] = tensor[torch.tensor(list(rows), dtype=torch.int64, device=tensor.device)]
        self._scratch = {}
        self.refresh()

    def append(self, optimizers: Sequence[Optimizer]) -> None:
        """Take in new members, who have not taken a step yet."""
        self.optimizers += optimizers
        self.steps += [0] * len(optimizers)
        for tensors in self.moments.values():
            for name, tensor in tensors.items():
                tensors[name] = torch.cat([tensor, tensor.new_zeros(len(optimizers), tensor.shape[1])])
        self._scratch = {}
        self.refresh()

    def reset(self) -> None:
        """Forget every step."""
        self.moments = {name: {} for name in self.moment_names}
        self.steps = [0] * len(self.optimizers)
        self.refresh()

    def write_back(self, row: int) -> None:
        """Give a member's own optimizer the state it would have, so that its checkpoint can be trained further."""
        optimizer = self.optimizers[row]
        for number, names in enumerate(self.groups):
            parameters = [p for p in optimizer.param_groups[number]["params"] if p.requires_grad]
            for name, parameter in zip(names, parameters, strict=True):
                state = self._state_of(row, name, parameter, optimizer.param_groups[number])
                if state:
                    optimizer.state[parameter] = state

    def take_over(self, states: Sequence[Mapping[Tensor, Mapping[str, Any]]]) -> None:
        """Go on where the members' own optimizers stand: the reverse of `write_back`.

        Args:
            states: By parameter, as in ``Optimizer.state``, one a member; may be empty.

        Raises:
            NotStackable: If the parameters of a member have not taken the same steps.
        """
        rows: list[dict[str, Mapping[str, Any]]] = []
        for optimizer, state in zip(self.optimizers, states, strict=True):
            own: dict[str, Mapping[str, Any]] = {}
            for group, names in zip(optimizer.param_groups, self.groups, strict=True):
                trained = [p for p in group["params"] if p.requires_grad]
                own |= {name: state.get(p, {}) for name, p in zip(names, trained, strict=True)}
            rows.append(own)
        self.steps = [self._steps_taken(list(own.values())) for own in rows]
        for kind in self.moment_names:
            for number, names in enumerate(self.groups):
                for name, like in zip(names, self._like(number), strict=True):
                    parts = [own[name].get(kind) for own in rows]
                    flat = [(torch.zeros_like(like) if part is None else part.detach()).reshape(-1) for part in parts]
                    self.moments[kind][name] = torch.stack(flat)
        self.refresh()

    def _like(self, group: int) -> list[Tensor]:
        return [p.detach() for p in self.optimizers[0].param_groups[group]["params"] if p.requires_grad]

    def _steps_taken(self, states: Sequence[Mapping[str, Any]]) -> int:
        """Return how many steps one member has taken, read off the states of its parameters."""
        raise NotImplementedError

    def _state_of(self, row: int, name: str, parameter: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def _moment(self, kind: str, row: int, name: str, parameter: Tensor) -> Tensor:
        return self.moments[kind][name][row].view_as(parameter).clone()


class StackedSGD(StackedOptimizer):
    """``torch.optim.SGD``: momentum, dampening, Nesterov, weight decay, maximize."""

    moment_names = ("momentum_buffer",)

    def values(self, group: int) -> dict[str, list[float]]:
        """Return rate, momentum, dampening's factor and weight decay of every member."""
        first = [1.0 if step == 0 else 0.0 for step in self.steps]
        dampening = self._read_members(group, lambda g: g["dampening"] if g["momentum"] else 0.0)
        return {
            "lr": self._read_members(group, lambda g: g["lr"]),
            "momentum": self._read_members(group, lambda g: g["momentum"]),
            # the first gradient enters the buffer whole
            "fresh": [1.0 if one else 1 - part for one, part in zip(first, dampening, strict=True)],
            "weight_decay": self._read_members(group, lambda g: g["weight_decay"]),
        }

    def step(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """As the base; the columns of a member's first step differ from those of the others."""
        super().step(weights, gradients)
        if 1 in self.steps:
            self._columns = None

    def _read(self, like: Tensor) -> list[dict[str, Tensor]]:
        if self._columns is None:
            columns = super()._read(like)
            for group, column in enumerate(columns):
                numbers = self.values(group)
                for name, idle in (("momentum", 0.0), ("fresh", 1.0), ("weight_decay", 0.0)):
                    if all(number == idle for number in numbers[name]):
                        del column[name]
        assert self._columns is not None
        return self._columns

    def _update(self, name: str, w: Tensor, g: Tensor, columns: dict[str, Tensor], flags: dict[str, Any]) -> None:
        scratch = self.scratch(w, name)
        if flags["maximize"]:
            g.neg_()
        if "weight_decay" in columns:
            g.add_(torch.mul(w, columns["weight_decay"], out=scratch))
        if "momentum" in columns:
            momentum, buffer = columns["momentum"], self.moments["momentum_buffer"][name]
            buffer.mul_(momentum)
            buffer.add_(torch.mul(g, columns["fresh"], out=scratch) if "fresh" in columns else g)
            g = g.add_(torch.mul(buffer, momentum, out=scratch)) if flags["nesterov"] else buffer
        w.sub_(torch.mul(g, columns["lr"], out=scratch))

    def _steps_taken(self, states: Sequence[Mapping[str, Any]]) -> int:
        """One or none: only the first step differs, and it does not where nothing is dampened (a buffer of 0 then)."""
        kept = [state.get("momentum_buffer") is not None for state in states]
        if any(kept) and not all(kept) and any(group["dampening"] for group in self.flags):
            raise NotStackable("some parameters have a momentum already, and others, dampened, have none")
        return int(any(kept))

    def _state_of(self, row: int, name: str, parameter: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        if not group["momentum"] or not self.steps[row]:
            return {}
        return {"momentum_buffer": self._moment("momentum_buffer", row, name, parameter)}


class StackedAdam(StackedOptimizer):
    """``torch.optim.Adam`` and ``AdamW``: betas, epsilon, coupled or decoupled weight decay, amsgrad, maximize."""

    moment_names: tuple[str, ...] = ("exp_avg", "exp_avg_sq")

    def __init__(self, groups: Partition, optimizers: Sequence[Optimizer]) -> None:
        """As the base; amsgrad keeps one more state tensor."""
        if any(group["amsgrad"] for group in optimizers[0].param_groups):
            self.moment_names = (*type(self).moment_names, "max_exp_avg_sq")
        super().__init__(groups, optimizers)
        self.decoupled = type(optimizers[0]) is AdamW or bool(
            optimizers[0].param_groups[0].get("decoupled_weight_decay")
        )
        self._numbers: list[dict[str, Tensor]] = []

    def values(self, group: int) -> dict[str, list[float]]:
        """Return rate, betas, epsilon and weight decay of every member."""
        read = self._read_members
        return {
            "lr": read(group, lambda g: g["lr"]),
            "beta1": read(group, lambda g: g["betas"][0]),
            "beta2": read(group, lambda g: g["betas"][1]),
            "eps": read(group, lambda g: g["eps"]),
            "weight_decay": read(group, lambda g: g["weight_decay"]),
        }

    def refresh(self) -> None:
        """As the base, and the numbers behind the columns."""
        super().refresh()
        self._numbers = []

    def _read(self, like: Tensor) -> list[dict[str, Tensor]]:
        """Return the factors of the next step, computed in double precision before they take the weights' type."""
        if not self._numbers:
            for group in range(len(self.groups)):
                numbers = {k: torch.tensor(v, dtype=torch.float64).unsqueeze(1) for k, v in self.values(group).items()}
                self._numbers.append(numbers)
        steps = torch.tensor(self.steps, dtype=torch.float64).add_(1).unsqueeze(1)
        columns = []
        for n in self._numbers:
            column = {
                "new1": 1 - n["beta1"],
                "beta2": n["beta2"],
                "new2": 1 - n["beta2"],
                "root2": (1 - n["beta2"] ** steps).sqrt_(),
                "size": n["lr"] / (1 - n["beta1"] ** steps),
                "eps": n["eps"],
            }
            if bool((n["weight_decay"] != 0).any()):  # on the CPU
                column["decay"] = 1 - n["lr"] * n["weight_decay"] if self.decoupled else n["weight_decay"]
            # one transfer for all of them
            stacked = torch.cat(list(column.values()), dim=1).to(like.dtype).to(like.device)
            columns.append(dict(zip(column, stacked.split(1, dim=1), strict=True)))
        return columns

    def _update(self, name: str, w: Tensor, g: Tensor, columns: dict[str, Tensor], flags: dict[str, Any]) -> None:
        scratch = self.scratch(w, name)
        if flags["maximize"]:
            g.neg_()
        if "decay" in columns and self.decoupled:
            w.mul_(columns["decay"])
        elif "decay" in columns:
            g.add_(torch.mul(w, columns["decay"], out=scratch))
        average, square = self.moments["exp_avg"][name], self.moments["exp_avg_sq"][name]
        average.add_(torch.sub(g, average, out=scratch).mul_(columns["new1"]))
        square.mul_(columns["beta2"]).add_(g.mul_(g).mul_(columns["new2"]))
        if flags["amsgrad"]:
            largest = self.moments["max_exp_avg_sq"][name]
            torch.maximum(largest, square, out=largest)
            square = largest
        torch.sqrt(square, out=g).div_(columns["root2"]).add_(columns["eps"])
        w.sub_(torch.div(average, g, out=scratch).mul_(columns["size"]))

    def _steps_taken(self, states: Sequence[Mapping[str, Any]]) -> int:
        counts = {int(state["step"]) if "step" in state else 0 for state in states}
        if len(counts) > 1:
            raise NotStackable(f"the parameters have taken from {min(counts)} to {max(counts)} steps")
        return counts.pop() if counts else 0

    def _state_of(self, row: int, name: str, parameter: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        if not self.steps[row]:
            return {}
        moments = {kind: self._moment(kind, row, name, parameter) for kind in self.moment_names}
        return {"step": torch.tensor(float(self.steps[row])), **moments}
