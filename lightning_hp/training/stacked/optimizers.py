"""One optimizer step for all members of a stack, each with its own hyperparameters, equal to what torch.optim does.

``SGD``, ``Adam`` and ``AdamW`` are known exactly (the class itself, not a subclass). Hyperparameters are read off every
member's own optimizer, group by group, whenever a schedule may have changed them. The parameters of a group are one
matrix (M, P), see :mod:`.layout`, and a hyperparameter is a column (M, 1), so a member's NaN stays in its own row.
Formulas: ``torch.optim.SGD``, Kingma and Ba 2015 (arXiv:1412.6980), Loshchilov and Hutter 2019 (arXiv:1711.05101),
Reddi et al. 2018 (amsgrad), with fewer and larger operations than ``torch.optim``: equal to it but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from lightning_hp.training.stacked.layout import Layout, Partition
from lightning_hp.training.stacked.refusal import NotStackable
from lightning_hp.training.stacked.state import part_of, resized

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


def build_stacked_optimizer(optimizers: Sequence[Optimizer], layout: Layout) -> StackedOptimizer:
    """Return the stacked optimizer of members whose `optimizer_key` is the same."""
    return (StackedSGD if type(optimizers[0]) is SGD else StackedAdam)(layout, optimizers)


class StackedOptimizer:
    """What the kinds share: the matrices, and the members' hyperparameters as columns.

    Attributes:
        layout: Which parameter lies where in the matrices.
        optimizers: The members' own optimizers, whose ``param_groups`` are read.
        moments: State matrices by kind, in the order of the layout's blocks, (M, P) each; none before the first step.
        steps: Optimizer steps each member has taken.
    """

    moment_names: tuple[str, ...] = ()

    def __init__(self, layout: Layout, optimizers: Sequence[Optimizer]) -> None:
        """Keep the layout; state matrices are made in the first step."""
        self.layout = layout
        self.optimizers = list(optimizers)
        self.flags = [dict(group) for group in optimizers[0].param_groups]
        self.moments: dict[str, list[Tensor]] = {}
        self.steps = [0] * len(optimizers)
        self._columns: list[dict[str, Tensor]] | None = None
        self._scratch: dict[int, Tensor] = {}

    def refresh(self) -> None:
        """Read the hyperparameters again before the next step: a schedule may have changed them."""
        self._columns = None

    def values(self, group: int) -> dict[str, list[float]]:
        """Return the hyperparameters of one group, one number a member."""
        raise NotImplementedError

    def step(self, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Change the weights in place.

        Args:
            weights: The matrices of the trained parameters, (M, P) each.
            gradients: Same shapes; may be overwritten.
        """
        for kind in self.moment_names:
            if kind not in self.moments:
                self.moments[kind] = [torch.zeros_like(matrix) for matrix in weights]
        for number, columns in enumerate(self._read(weights)):
            flags = self.flags[self.layout.blocks[number].group]
            self._update(number, weights[number], gradients[number], columns, flags)
        self.steps = [count + 1 for count in self.steps]

    def _read(self, weights: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Return the hyperparameters of every block as columns (M, 1)."""
        if self._columns is None:
            self._columns = [
                {
                    name: torch.tensor(numbers, dtype=torch.float64).to(matrix.dtype).to(matrix.device).unsqueeze(1)
                    for name, numbers in self.values(block.group).items()
                }
                for block, matrix in zip(self.layout.blocks, weights, strict=True)
            ]
        return self._columns

    def _read_members(self, group: int, read: Callable[[dict[str, Any]], float]) -> list[float]:
        return [float(read(optimizer.param_groups[group])) for optimizer in self.optimizers]

    def _update(self, number: int, w: Tensor, g: Tensor, columns: dict[str, Tensor], flags: dict[str, Any]) -> None:
        """Change the weights of one block, (M, P), in place."""
        raise NotImplementedError

    def scratch(self, number: int, like: Tensor) -> Tensor:
        """Return memory of the shape of a block's matrix, the same in every step."""
        scratch = self._scratch.get(number)
        if scratch is None or scratch.shape != like.shape:
            scratch = self._scratch[number] = torch.empty_like(like)
        return scratch

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these members only."""
        self.optimizers = [self.optimizers[row] for row in rows]
        self.steps = [self.steps[row] for row in rows]
        for kind, matrices in self.moments.items():
            self.moments[kind] = [
                matrix[torch.tensor(list(rows), dtype=torch.int64, device=matrix.device)] for matrix in matrices
            ]
        self.refresh()

    def append(self, optimizers: Sequence[Optimizer]) -> None:
        """Take in new members, who have not taken a step yet."""
        self.optimizers += optimizers
        self.steps += [0] * len(optimizers)
        for kind, matrices in self.moments.items():
            self.moments[kind] = [
                torch.cat([matrix, matrix.new_zeros(len(optimizers), matrix.shape[1])]) for matrix in matrices
            ]
        self.refresh()

    def fit(self, layout: Layout) -> None:
        """Follow the weights to another layout, after members of another size have come or gone."""
        if layout != self.layout:
            shapes = {
                name: shape for block in layout.blocks for name, shape in zip(block.names, block.shapes, strict=True)
            }
            for kind, matrices in self.moments.items():
                views = self.layout.views(matrices)
                self.moments[kind] = layout.pack(
                    {name: resized(view, (len(view), *shapes[name])) for name, view in views.items()}
                )
        self.layout, self._scratch = layout, {}

    def reset(self) -> None:
        """Forget every step."""
        self.moments = {}
        self.steps = [0] * len(self.optimizers)
        self.refresh()

    def write_back(self, row: int) -> None:
        """Give a member's own optimizer the state it would have, so that its checkpoint can be trained further."""
        optimizer = self.optimizers[row]
        moments = {kind: self.layout.views(matrices) for kind, matrices in self.moments.items()}
        for number, names in enumerate(self.layout.partition):
            for name, parameter in zip(names, self._trained(optimizer, number), strict=True):
                own = {kind: part_of(views[name][row], parameter.shape).clone() for kind, views in moments.items()}
                if state := self._state_of(row, own, optimizer.param_groups[number]):
                    optimizer.state[parameter] = state

    def take_over(self, states: Sequence[Mapping[Tensor, Mapping[str, Any]]]) -> None:
        """Go on where the members' own optimizers stand: the reverse of `write_back`.

        Args:
            states: By parameter, as in ``Optimizer.state``, one a member; may be empty.

        Raises:
            NotStackable: If the parameters of a member have not taken the same steps.
        """
        rows: list[dict[str, Mapping[str, Any]]] = []
        likes: dict[str, Tensor] = {}
        for optimizer, state in zip(self.optimizers, states, strict=True):
            own: dict[str, Mapping[str, Any]] = {}
            for number, names in enumerate(self.layout.partition):
                for name, parameter in zip(names, self._trained(optimizer, number), strict=True):
                    own[name], likes[name] = state.get(parameter, {}), parameter.detach()
            rows.append(own)
        self.steps = [self._steps_taken(list(own.values())) for own in rows]
        for kind in self.moment_names:
            tensors = {
                name: torch.stack(
                    [
                        torch.zeros_like(like) if own[name].get(kind) is None else own[name][kind].detach()
                        for own in rows
                    ]
                )
                for name, like in likes.items()
            }
            self.moments[kind] = self.layout.pack(tensors)
        self.refresh()

    @staticmethod
    def _trained(optimizer: Optimizer, group: int) -> list[Tensor]:
        return [parameter for parameter in optimizer.param_groups[group]["params"] if parameter.requires_grad]

    def _steps_taken(self, states: Sequence[Mapping[str, Any]]) -> int:
        """Return how many steps one member has taken, read off the states of its parameters."""
        raise NotImplementedError

    def _state_of(self, row: int, moments: dict[str, Tensor], group: dict[str, Any]) -> dict[str, Any]:
        """Return the state of one parameter as its own optimizer keeps it.

        Args:
            row: The member.
            moments: Its part of the state matrices, by kind.
            group: Its optimizer's parameter group.
        """
        raise NotImplementedError


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

    def step(self, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """As the base; the columns of a member's first step differ from those of the others."""
        super().step(weights, gradients)
        if 1 in self.steps:
            self._columns = None

    def _read(self, weights: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        if self._columns is None:
            for block, column in zip(self.layout.blocks, super()._read(weights), strict=True):
                numbers = self.values(block.group)
                for name, idle in (("momentum", 0.0), ("fresh", 1.0), ("weight_decay", 0.0)):
                    if all(number == idle for number in numbers[name]):
                        del column[name]
        assert self._columns is not None
        return self._columns

    def _update(self, number: int, w: Tensor, g: Tensor, columns: dict[str, Tensor], flags: dict[str, Any]) -> None:
        if flags["maximize"]:
            g.neg_()
        if "weight_decay" in columns:
            g.addcmul_(w, columns["weight_decay"])
        if "momentum" in columns:
            momentum, buffer = columns["momentum"], self.moments["momentum_buffer"][number]
            fresh = torch.mul(g, columns["fresh"], out=self.scratch(number, w)) if "fresh" in columns else g
            torch.addcmul(fresh, buffer, momentum, out=buffer)
            g = g.addcmul_(buffer, momentum) if flags["nesterov"] else buffer
        w.addcmul_(g, columns["lr"], value=-1)

    def _steps_taken(self, states: Sequence[Mapping[str, Any]]) -> int:
        """One or none: only the first step differs, and it does not where nothing is dampened (a buffer of 0 then)."""
        kept = [state.get("momentum_buffer") is not None for state in states]
        if any(kept) and not all(kept) and any(group["dampening"] for group in self.flags):
            raise NotStackable("some parameters have a momentum already, and others, dampened, have none")
        return int(any(kept))

    def _state_of(self, row: int, moments: dict[str, Tensor], group: dict[str, Any]) -> dict[str, Any]:
        return {**moments} if group["momentum"] and self.steps[row] else {}


class StackedAdam(StackedOptimizer):
    """``torch.optim.Adam`` and ``AdamW``: betas, epsilon, coupled or decoupled weight decay, amsgrad, maximize."""

    moment_names: tuple[str, ...] = ("exp_avg", "exp_avg_sq")

    def __init__(self, layout: Layout, optimizers: Sequence[Optimizer]) -> None:
        """As the base; amsgrad keeps one more state matrix."""
        if any(group["amsgrad"] for group in optimizers[0].param_groups):
            self.moment_names = (*type(self).moment_names, "max_exp_avg_sq")
        super().__init__(layout, optimizers)
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

    def _read(self, weights: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Return the factors of the next step, computed in double precision before they take the weights' type.

        With a for the mean of gradients, s for that of their squares and t steps, the step is

            lr / (1 - beta1^t) * a / (sqrt(s / (1 - beta2^t)) + eps) = size * a / (sqrt(s) + eps * root2)

        where root2 = sqrt(1 - beta2^t) and size = lr * root2 / (1 - beta1^t).
        """
        if not self._numbers:
            for block in self.layout.blocks:
                numbers = self.values(block.group)
                self._numbers.append({k: torch.tensor(v, dtype=torch.float64).unsqueeze(1) for k, v in numbers.items()})
        steps = torch.tensor(self.steps, dtype=torch.float64).add_(1).unsqueeze(1)
        columns = []
        for n, matrix in zip(self._numbers, weights, strict=True):
            root2 = (1 - n["beta2"] ** steps).sqrt_()
            column = {
                "new1": 1 - n["beta1"],
                "beta2": n["beta2"],
                "new2": 1 - n["beta2"],
                "size": n["lr"] * root2 / (1 - n["beta1"] ** steps),
                "eps": n["eps"] * root2,
            }
            if bool((n["weight_decay"] != 0).any()):  # on the CPU
                column["decay"] = 1 - n["lr"] * n["weight_decay"] if self.decoupled else n["weight_decay"]
            # one transfer for all of them
            stacked = torch.cat(list(column.values()), dim=1).to(matrix.dtype).to(matrix.device)
            columns.append(dict(zip(column, stacked.split(1, dim=1), strict=True)))
        return columns

    def _update(self, number: int, w: Tensor, g: Tensor, columns: dict[str, Tensor], flags: dict[str, Any]) -> None:
        if flags["maximize"]:
            g.neg_()
        if "decay" in columns and self.decoupled:
            w.mul_(columns["decay"])
        elif "decay" in columns:
            g.addcmul_(w, columns["decay"])
        average, square = self.moments["exp_avg"][number], self.moments["exp_avg_sq"][number]
        average.lerp_(g, columns["new1"])
        scratch = torch.mul(g, columns["new2"], out=self.scratch(number, w))
        square.mul_(columns["beta2"]).addcmul_(g, scratch)  # no lerp: an infinite square must stay infinite
        if flags["amsgrad"]:
            largest = self.moments["max_exp_avg_sq"][number]
            square = torch.maximum(largest, square, out=largest)
        torch.sqrt(square, out=g).add_(columns["eps"])
        w.addcdiv_(torch.mul(average, columns["size"], out=scratch), g, value=-1)

    def _steps_taken(self, states: Sequence[Mapping[str, Any]]) -> int:
        counts = {int(state["step"]) if "step" in state else 0 for state in states}
        if len(counts) > 1:
            raise NotStackable(f"the parameters have taken from {min(counts)} to {max(counts)} steps")
        return counts.pop() if counts else 0

    def _state_of(self, row: int, moments: dict[str, Tensor], group: dict[str, Any]) -> dict[str, Any]:
        return {"step": torch.tensor(float(self.steps[row])), **moments} if self.steps[row] else {}
