"""The fault catalogue of audit.py: each entry makes one broken net and says which rule and layer should come first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from audit_nets import Recipe, Run, batches, build, digits, loss_of, train
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_hp.batchnorm.statistics import Moments, find_layers


@dataclass
class Fault:
    """One kind of fault.

    Attributes:
        rules: ids of which one must come first. layer: index of the layer to blame, None if any layer is right.
        advice: flagged at INFO counts. base: gives the loss without the fault, for repairable kinds.
    """

    name: str
    rules: tuple[str, ...]
    make: Callable[[int], tuple[Run, float | None]]
    layer: int | None = None
    advice: bool = False


def recipe_of(seed: int, **changes: object) -> Recipe:
    """Alternate MLPs of several shapes and CNNs, so that no fault is judged on one architecture."""
    kinds = [
        Recipe(width=64, depth=2),
        Recipe(width=128, depth=3, optimizer="sgd", lr=0.05),
        Recipe(kind="cnn", depth=2, lr=3e-3),
        Recipe(width=48, depth=2, batch=64, lr=3e-3),
        Recipe(kind="cnn", depth=3, optimizer="sgd", lr=0.05),
    ]
    return replace(kinds[seed % len(kinds)], seed=seed, **changes)  # type: ignore[arg-type]


def bn(net: nn.Module, index: int) -> nn.Module:
    return list(find_layers(net).values())[index]


def after_training(change: Callable[[Run], None], **recipe: object) -> Callable[[int], tuple[Run, float | None]]:
    """A healthy net, changed once it is trained."""

    def make(seed: int) -> tuple[Run, float | None]:
        run = train(recipe_of(seed, **recipe))
        base = run.loss()
        torch.manual_seed(seed + 77)
        with torch.no_grad():
            change(run)
        return run, base

    return make


def trained(rows: bool = False, twin: bool = False, **recipe: object) -> Callable[[int], tuple[Run, float | None]]:
    """A net trained with a faulty recipe; `twin` also trains the same without, for the loss that was lost."""

    def make(seed: int) -> tuple[Run, float | None]:
        faulty = recipe_of(seed, **recipe)
        if rows:
            faulty = replace(faulty, kind="mlp")
        run = train(faulty)
        base = train(replace(faulty, momentum=0.1)).loss() if twin else None
        return run, base

    return make


def nan_batch(seed: int) -> tuple[Run, float | None]:
    """Mixed precision: the scaler skips the step of an overflowing batch, but the statistics have taken it."""

    def before(net: nn.Module, epoch: int, index: int, x: Tensor, y: Tensor) -> None:
        if epoch == 5 and index == 3:
            with torch.no_grad():
                bad = x.clone()
                bad[0] = float("inf")
                net(bad)

    return train(recipe_of(seed), before=before), None


def validation_in_train_mode(seed: int) -> tuple[Run, float | None]:
    run = train(recipe_of(seed))
    base, start = run.loss(), run.watch.counts()
    run.net.train()
    with torch.no_grad():
        run.net(run.data[2][:64])
    run.extra["eval_updates"] = {n: c - start[n] for n, c in run.watch.counts().items()}
    run.watch.resync()
    return run, base


def foreign_forwards(run: Run) -> None:
    for part in range(3):
        run.net(1.0 - run.data[0][part * 64 : part * 64 + 64])
    run.watch.resync()


def checkpointed(seed: int) -> tuple[Run, float | None]:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        return net(x)

    class Checkpointed(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x.requires_grad_(), use_reentrant=False)  # type: ignore[no-any-return]

    return train(recipe_of(seed, build=lambda r: Checkpointed(build(replace(r, build=None)))), forward=forward), None


def two_domains(seed: int) -> tuple[Run, float | None]:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        out = net(x)
        net(1.0 - 0.7 * x)
        return out

    return train(recipe_of(seed), forward=forward), None


def fine_tuned(seed: int, how: str) -> tuple[Run, float | None]:
    """A backbone trained on digits, then the head alone on darker, noisier digits."""
    first = train(recipe_of(seed))
    base = first.loss()
    head = list(first.net.children())[-1]
    for p in first.net.parameters():
        p.requires_grad_(False)
    for p in head.parameters():
        p.requires_grad_(True)
    if how == "tracking_off":
        for layer in find_layers(first.net).values():
            layer.track_running_stats = False
    x, y, xv, yv = first.data
    torch.manual_seed(seed)
    other = (1.0 - 0.5 * x + 0.2 * torch.randn_like(x), y, xv, yv)
    return train(replace(first.recipe, epochs=3), data=other, net=first.net), base


def eval_mode_training(seed: int) -> tuple[Run, float | None]:
    return train(recipe_of(seed), before=lambda net, *_: net.eval() and None), None


def partly_eval(seed: int) -> tuple[Run, float | None]:
    """Someone puts one layer in eval mode halfway and forgets it."""

    def before(net: nn.Module, epoch: int, index: int, x: Tensor, y: Tensor) -> None:
        if epoch == 2:
            bn(net, 1).eval()

    return train(recipe_of(seed), before=before), None


def half_precision(dtype: torch.dtype, momentum: float) -> Callable[[int], tuple[Run, float | None]]:
    """The whole net in half precision, as Lightning's precision "bf16-true" and "16-true" make it."""

    def make(seed: int) -> tuple[Run, float | None]:
        recipe = recipe_of(seed, momentum=momentum, kind="mlp", optimizer="sgd", lr=0.02, epochs=4)
        x, y, xv, yv = digits(seed % 5)
        return train(recipe, data=(x.to(dtype), y, xv.to(dtype), yv), net=build(recipe).to(dtype)), None

    return make


def remainder(seed: int) -> tuple[Run, float | None]:
    run = train(recipe_of(seed, kind="mlp", batch=32))
    run.extra.update(dataset_rows=32 * 37 + 1, batch_size=32, drop_last=False)
    return run, None


def sorted_classes(seed: int) -> tuple[Run, float | None]:
    x, y, xv, yv = digits(seed % 5)
    order = y.argsort(stable=True)
    return train(recipe_of(seed, shuffle=False), data=(x[order], y[order], xv, yv)), None


def split_batches(key: str, batch: int) -> Callable[[int], tuple[Run, float | None]]:
    def make(seed: int) -> tuple[Run, float | None]:
        run = train(recipe_of(seed, batch=batch, kind="mlp", epochs=4))
        run.extra[key] = 2
        return run, None

    return make


def zero_weights(run: Run) -> None:
    affine = [m for m in run.net.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    affine[1].weight[: max(2, affine[1].weight.shape[0] // 4)] = 0.0
    run.net.train()
    for xb, _ in batches(run.data[0], run.data[1], run.recipe, 99):
        run.net(xb)
    run.watch.resync()


def set_part(index: int, attribute: str, value: float) -> Callable[[Run], None]:
    def change(run: Run) -> None:
        vector = getattr(bn(run.net, index), attribute)
        vector[: max(2, vector.numel() // 4)] = value

    return change


def move_mean(run: Run) -> None:
    layer = bn(run.net, 1)
    layer.running_mean += 0.3 * layer.running_var.sqrt() * torch.randn(layer.running_mean.numel()).sign()


def stretch(run: Run) -> None:
    bn(run.net, 1).running_var.mul_(1.5)


def forget(run: Run) -> None:
    for layer in find_layers(run.net).values():
        layer.reset_running_stats()


def permute(run: Run) -> None:
    layer = bn(run.net, 1)
    order = torch.randperm(layer.running_mean.numel())
    layer.running_mean.copy_(layer.running_mean[order])
    layer.running_var.copy_(layer.running_var[order])


def noisy_weights(run: Run) -> None:
    for p in run.net.parameters():
        if p.dim() >= 2:
            p += 0.2 * p.std() * torch.randn_like(p)


def pruned(run: Run) -> None:
    for p in run.net.parameters():
        if p.dim() >= 2:
            p[p.abs() < p.abs().flatten().quantile(0.5)] = 0.0


def quantised(run: Run) -> None:
    for p in run.net.parameters():
        if p.dim() >= 2:
            step = p.abs().max() / 3.5
            p.copy_((p / step).round() * step)


def averaged(seed: int) -> tuple[Run, float | None]:
    """SWA over a constant, high learning rate, with the statistics of the last model."""
    sums: dict[str, Tensor] = {}
    taken = 0

    def after(net: nn.Module, epoch: int, index: int, x: Tensor, y: Tensor) -> None:
        nonlocal taken
        if epoch >= 2 and index == 0:
            taken += 1
            for name, p in net.named_parameters():
                sums[name] = sums.get(name, 0) + p.detach().clone()

    recipe = recipe_of(seed, epochs=12)
    recipe = replace(recipe, lr=0.3 if recipe.optimizer == "sgd" else 0.02)
    run = train(recipe, after=after)
    with torch.no_grad():
        for name, p in run.net.named_parameters():
            p.copy_(sums[name] / taken)
    return run, None


def mode_dependent(seed: int) -> tuple[Run, float | None]:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0.5 * torch.randn_like(x) if self.training else x

    return train(recipe_of(seed, build=lambda r: nn.Sequential(Noisy(), *build(replace(r, build=None))))), None


def unscaled_validation(seed: int) -> tuple[Run, float | None]:
    run = train(recipe_of(seed))
    wrong = run.data[2] * 16.0
    run.data = (run.data[0], run.data[1], wrong, run.data[3])
    run.extra["validation"] = input_moments(run.net, wrong)
    return run, None


@torch.no_grad()
def input_moments(net: nn.Module, x: Tensor) -> dict[str, Moments]:
    seen: dict[str, Moments] = {}
    modes = [m.training for m in net.modules()]
    net.eval()
    handles = [
        layer.register_forward_pre_hook(lambda _m, args, name=name: seen.__setitem__(name, Moments.of(args[0])))
        for name, layer in find_layers(net).items()
    ]
    net(x)
    for handle in handles:
        handle.remove()
    for module, mode in zip(net.modules(), modes, strict=True):
        module.training = mode
    return seen


def corrupt_batch(run: Run) -> None:
    run.net.train()
    bad = run.data[0][:32].clone()
    bad[:3] *= 100.0
    run.net(bad)
    run.watch.resync()


def stale(seed: int) -> tuple[Run, float | None]:
    """A pretrained net, fine-tuned whole on other data with statistics that hardly move."""
    first = train(recipe_of(seed))
    for layer in find_layers(first.net).values():
        layer.momentum = 0.001
    x, y, xv, yv = first.data
    other = (0.4 + 0.5 * x, y, 0.4 + 0.5 * xv, yv)
    return train(replace(first.recipe, epochs=4, momentum=0.001), data=other, net=first.net), None


def ema_weights(seed: int) -> tuple[Run, float | None]:
    """Weights of an exponential average, statistics of the raw model, at a high learning rate."""
    average: dict[str, Tensor] = {}

    def after(net: nn.Module, *_: object) -> None:
        for name, p in net.named_parameters():
            average[name] = p.detach().clone() if name not in average else average[name].lerp(p.detach(), 0.01)

    recipe = recipe_of(seed)
    run = train(replace(recipe, lr=0.3 if recipe.optimizer == "sgd" else 0.02), after=after)
    with torch.no_grad():
        for name, p in run.net.named_parameters():
            p.copy_(average[name])
    return run, None


def overfitted(seed: int) -> tuple[Run, float | None]:
    x, y, xv, yv = digits(seed % 5)
    run = train(recipe_of(seed, kind="mlp", epochs=30), data=(x[:320], y[:320], xv, yv))
    run.extra.update(any_decay=False, early_stopping=False)
    run.extra.update(train_metric=loss_of(run.net, x[:320], y[:320]), val_metric=run.loss())
    return run, None


def decayed(seed: int) -> tuple[Run, float | None]:
    run = train(recipe_of(seed, decay=1e-3, decay_affine=True))
    run.extra["decayed"] = set(find_layers(run.net))
    return run, None


def tracking_instance_norm(recipe: Recipe) -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, bias=False), nn.InstanceNorm2d(8, track_running_stats=True),
        nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10),
    )  # fmt: skip


def instance_norm(seed: int) -> tuple[Run, float | None]:
    return train(Recipe(seed=seed, build=tracking_instance_norm)), None


ANY = ("BN06", "BN07")
FAULTS: tuple[Fault, ...] = (
    Fault("inf batch, step skipped", ("BN01",), nan_batch, layer=0),
    Fault("negative variance in one layer", ("BN01",), after_training(set_part(1, "running_var", -0.1)), layer=1),
    Fault("statistics not loaded", ("BN02",), after_training(forget)),
    Fault("one layer not loaded", ("BN02",), after_training(lambda r: bn(r.net, 1).reset_running_stats()), layer=1),
    Fault("momentum 0", ("BN02",), trained(momentum=0.0, twin=True)),
    Fault("validation in train mode", ("BN03",), validation_in_train_mode),
    Fault("3 forwards on foreign data", ANY, after_training(foreign_forwards), layer=0),
    Fault("activation checkpointing", ("BN04",), checkpointed),
    Fault("two domains, shared BN", ("BN04",), two_domains),
    Fault("one layer left in eval mode", ("BN04",), partly_eval, layer=1),
    Fault("trained in eval mode", ("BN02", "BN04"), eval_mode_training),
    Fault("frozen backbone, BN moves", ("BN05",), lambda s: fine_tuned(s, "moves")),
    Fault("tracking switched off", ("BN05",), lambda s: fine_tuned(s, "tracking_off")),
    Fault("m=0.01, 2 epochs", ("BN10",), trained(momentum=0.01, epochs=2, batch=32, twin=True)),
    Fault("m=0.1, 9 steps", ("BN10",), trained(momentum=0.1, epochs=1, batch=128)),
    Fault("m=0.001, fine-tuned elsewhere", ("BN10", *ANY), stale),
    Fault("momentum 1.0, batch 16", ("BN09",), trained(momentum=1.0, batch=16, rows=True, twin=True)),
    Fault("momentum 0.9, batch 32", ("BN09",), trained(momentum=0.9, batch=32, rows=True, twin=True)),
    Fault("batch 2", ("BN12",), trained(batch=2, epochs=2, rows=True)),
    Fault("batch 4", ("BN12",), trained(batch=4, epochs=2, rows=True)),
    Fault("2 ranks of 8, no SyncBN", ("BN12",), split_batches("world_size", 8)),
    Fault("accumulated batches of 8", ("BN12",), split_batches("accumulate", 8)),
    Fault("bfloat16 buffers, m=0.01", ("BN11",), half_precision(torch.bfloat16, 0.01)),
    Fault("float16 buffers", ("BN11",), half_precision(torch.float16, 0.1)),
    Fault("remainder of one row", ("BN13",), remainder),
    Fault("class-sorted batches", ("BN14",), sorted_classes, layer=0),
    Fault("dead weights in a layer", ("BN15",), after_training(zero_weights), layer=1),
    Fault("gamma collapsed", ("BN15",), after_training(set_part(1, "weight", 1e-6)), layer=1),
    Fault("dead behind ReLU", ("BN15",), after_training(set_part(1, "bias", -20.0)), layer=1),
    Fault("epsilon 10", ("BN15",), trained(eps=10.0)),
    Fault("mean moved 0.3 sd in one layer", ANY, after_training(move_mean), layer=1),
    Fault("variance x1.5 in one layer", ANY, after_training(stretch), layer=1),
    Fault("channels permuted in one layer", ANY, after_training(permute), layer=1),
    Fault("weights + 20% noise", ANY, after_training(noisy_weights)),
    Fault("half of the weights pruned", ANY, after_training(pruned)),
    Fault("weights in 3 bits", ANY, after_training(quantised)),
    Fault("SWA weights, last statistics", ANY, averaged),
    Fault("EMA weights, raw statistics", ANY, ema_weights),
    Fault("one corrupt batch at the end", ANY, after_training(corrupt_batch), layer=0),
    Fault("noise in train mode only", ("BN17",), mode_dependent, layer=0),
    Fault("validation not scaled", ("BN18",), unscaled_validation, layer=0),
    Fault("redundant bias", ("BN16",), trained(bias=True), advice=True),
    Fault("weight decay on gamma, beta", ("BN16",), decayed, advice=True),
    Fault("dropout before BN", ("BN16",), trained(dropout=0.5, rows=True), layer=1, advice=True),
    Fault("norm on A", ("BN16",), trained(norm_on="a", rows=True), advice=True),
    Fault("InstanceNorm with tracking", ("BN16",), instance_norm, advice=True),
    Fault("momentum None", ("BN16", *ANY), trained(momentum=None), advice=True),
    Fault("BN as only regulariser", ("BN16",), overfitted, advice=True),
)  # fmt: skip
