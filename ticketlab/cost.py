"""What a network costs: parameters, non-zeros, multiply-accumulates, bytes, latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

Shape = Sequence[int]


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
    root = type(model).__name__
    counts = counter.get_flop_counts()
    return {
        name: sum(counts.get(f"{root}.{name}", {}).values()) // 2
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    }


@torch.inference_mode()
def latencies(models: Mapping[str, nn.Module], image: Tensor, rounds: int = 30, calls: int = 20) -> dict[str, float]:
    """Microseconds of one call of each network on the same input; medians of interleaved rounds, as torch runs them."""
    for model in models.values():
        model.eval()
        for _ in range(3):
            model(image)
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            began = time.perf_counter()
            for _ in range(calls):
                model(image)
            times[name].append((time.perf_counter() - began) / calls)
    return {name: 1e6 * statistics.median(found) for name, found in times.items()}
