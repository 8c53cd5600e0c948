"""The registry that model files fill, and the initialisations that the papers use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import nn

from ticketlab.registry import Registry, did_you_mean

Shape = tuple[int, int, int]
Widths = dict[str, int]
"""Layer → units, for a narrower edition of a network; layers left out keep their usual width."""

models: Registry[Callable[..., nn.Module]] = Registry("model")


def glorot_normal_(model: nn.Module) -> None:
    """Weights of variance 2 / (fan_in + fan_out), biases 0 (Glorot & Bengio 2010; Frankle & Carbin 2019)."""
    _initialise_(model, nn.init.xavier_normal_)


def kaiming_normal_(model: nn.Module) -> None:
    """Weights of variance 2 / fan_in, biases 0 (He et al. 2015)."""
    _initialise_(model, lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"))


def _initialise_(model: nn.Module, fill_: Callable[[Any], Any]) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            fill_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


Scales = Literal["ones", "half", "uniform"]
"""What batch-norm scales start from: 1, ½ (network slimming, Liu et al. 2017), or U(0, 1) (Frankle et al. 2020)."""


def scales_(model: nn.Module, start: Scales) -> None:
    """Set the batch-norm scales of a network."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and start == "uniform":
            nn.init.uniform_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, {"ones": 1.0, "half": 0.5}[start])


def widths_of(asked: Widths | None, usual: Widths, classes: int) -> list[int]:
    """Width of each layer in order; raises ValueError for a layer that there is not and for other outputs."""
    asked = asked or {}
    for name, width in asked.items():
        if name not in usual:
            raise ValueError(f"widths: no layer '{name}'{did_you_mean(name, usual)}")
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"widths: {name} needs a whole number of units, at least 1 (got {width!r})")
    if asked.get("output", classes) != classes:
        raise ValueError(f"widths: output must stay {classes}, one for each class")
    return [asked.get(name, width) for name, width in usual.items()]
