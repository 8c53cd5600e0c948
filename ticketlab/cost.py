"""What a network costs: parameters, non-zeros, multiply-accumulates, bytes, latency."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ticketlab.pruning.masks import Mask

Shape = Sequence[int]

SECONDS = 1.0
"""Of measuring one call's latency, about."""
TURN_SECONDS = 0.002
"""Of a turn: hundreds of calls of a small network, so that filling the caches again counts little."""
LEAST_ROUNDS = 11


@dataclass(frozen=True)
class Size:
    """A network's size; `macs` are of one example and count zeros too."""

    params: int
    nonzeros: int
    """Parameters that are not zero."""
    macs: int
    bytes: int
    """Of all parameters and buffers."""


def size(model: nn.Module, shape: Shape) -> Size:
    """Count a network; `shape` is of one example."""
    parameters = list(model.parameters())
    return Size(
        params=sum(p.numel() for p in parameters),
        nonzeros=sum(int(p.count_nonzero()) for p in parameters),
        macs=sum(layer_macs(model, shape).values()),
        bytes=sum(value.nbytes for value in model.state_dict().values()),
    )


def layer_macs(model: nn.Module, shape: Shape) -> dict[str, int]:
    """Multiply-accumulates of each layer for one example: half of torch's FLOP count."""
    mode = model.training
    like = next(model.parameters())
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, *shape, dtype=like.dtype, device=like.device))
    model.train(mode)
    root, counts = type(model).__name__, counter.get_flop_counts()
    return {
        name: sum(counts.get(f"{root}.{name}", {}).values()) // 2
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    }


def training_flops(model: nn.Module, shape: Shape) -> dict[str, int]:
    """Floating-point operations of each layer for one example, forward and backward; zeros count too.

    Two for each multiply-accumulate, once forward and once for the gradients of the weights; a third time for the
    gradients of the inputs, which a layer that reads the images does not need.
    """
    reads_images: set[str] = set()
    macs = layer_macs(model, shape)

    def look(name: str) -> object:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if not inputs[0].requires_grad:
                reads_images.add(name)

        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(look(name)) for name in macs]  # type: ignore[arg-type]
    mode = model.training
    like = next(model.parameters())
    model.eval()(torch.zeros(1, *shape, dtype=like.dtype, device=like.device))
    model.train(mode)
    for handle in hooks:
        handle.remove()
    return {name: 2 * count * (2 if name in reads_images else 3) for name, count in macs.items()}


def shares(mask: Mask) -> dict[str, float]:
    """Share of its weights that each layer of a mask keeps."""
    return {name: int(kept.sum()) / kept.numel() for name, kept in mask.items()}


def masked_flops(
    dense: Mapping[str, int], kept: Mapping[str, float], stored: Mapping[str, float]
) -> tuple[float, float]:
    """Operations that are executed, and those with remaining weights alone; masked layers are multiplied whole.

    Args:
        dense: Operations of each layer, by layer.
        kept: Share of weights that remain, by weight; 1 for those that are not named.
        stored: The share that layers store which compute with a part of their weights only.
    """
    executed = sum(count * stored.get(f"{layer}.weight", 1.0) for layer, count in dense.items())
    left = sum(count * kept.get(f"{layer}.weight", 1.0) for layer, count in dense.items())
    return executed, left


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call; quantiles of turns, each the mean of the calls in it."""

    p10: float
    median: float


@torch.inference_mode()
def latencies(models: Mapping[str, nn.Module], images: Tensor) -> dict[str, float]:
    """Microseconds of one call of each network on the same input, as torch runs it; medians."""
    found = interleaved({name: partial(model.eval(), images) for name, model in models.items()}, rounds=15)
    return {name: timing.median for name, timing in found.items()}


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int = 100) -> dict[str, Timing]:
    """Time calls in short turns, round after round, so that a slow moment of the machine strikes all alike.

    Args:
        rounds: At most; slow calls get fewer, at least 11, so that measuring one takes about a second.
    """
    alone = {}
    for name, call in calls.items():
        call()
        alone[name] = _call_seconds(call, 2)
    turns = {name: max(1, int(TURN_SECONDS / took)) for name, took in alone.items()}
    longest = max((alone[name] * turns[name] for name in calls), default=1.0)
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = deque(calls)
    for _ in range(max(LEAST_ROUNDS, min(rounds, int(SECONDS / longest)))):
        for name in order:
            times[name].append(_call_seconds(calls[name], turns[name]))
        order.rotate(1)  # so that none always begins
    return {
        name: Timing(1e6 * statistics.quantiles(found, n=10, method="inclusive")[0], 1e6 * statistics.median(found))
        for name, found in times.items()
    }


def _call_seconds(call: Callable[[], object], count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - began) / count
