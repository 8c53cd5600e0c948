"""Saliency of a weight: one function per criterion. A criterion never sorts, counts or sees a rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ticketlab.errors import PruningError
from ticketlab.registry import Registry


@dataclass(frozen=True)
class Evidence:
    """What training recorded about one weight tensor; tensors are of its shape."""

    initial: Tensor | None = None
    """The weights at the rewind step."""
    generator: torch.Generator | None = None
    """Randomness for criteria that draw; seeded by replicate and level (or, in a search, step)."""
    progress: float = 1.0
    """Share of the training since the rewind step that lies behind."""


class Criterion(Protocol):
    """(weight, evidence, *, options) → saliency of the weight's shape; higher stays longer."""

    def __call__(self, weight: Tensor, evidence: Evidence, /) -> Tensor:
        """Saliency of each weight."""


criteria: Registry[Criterion] = Registry("criterion")


@criteria.register("magnitude")
def magnitude(weight: Tensor, evidence: Evidence) -> Tensor:
    """|w|: large weights survive (Han et al. 2015; "large final" in Zhou et al. 2019)."""
    return weight.abs()


@criteria.register("magnitude_increase", needs={"initial"})
def magnitude_increase(weight: Tensor, evidence: Evidence) -> Tensor:
    """|w| − |w at the rewind step|: weights that grew survive (Zhou et al. 2019, section 3)."""
    if evidence.initial is None:
        raise PruningError("magnitude_increase needs the weights at the rewind step")
    return weight.abs() - evidence.initial.abs()


@criteria.register("extrapolated", needs={"initial"})
def extrapolated(weight: Tensor, evidence: Evidence, *, power: float = 0.5) -> Tensor:
    """|w₀ + (w − w₀) / progress^power|: the magnitude that a weight is on its way to; |w| at the end of training.

    For tickets drawn early. Weights wander from their start about as the root of the steps, so that after a quarter
    of the training they have gone half their way (docs/early-bird.md has the measurements).
    """
    if evidence.initial is None:
        raise PruningError("extrapolated needs the weights at the rewind step")
    if evidence.progress <= 0:
        return weight.abs()
    return torch.lerp(evidence.initial, weight, evidence.progress**-power).abs()


@criteria.register("random", needs={"generator"})
def random(weight: Tensor, evidence: Evidence) -> Tensor:
    """A uniform draw for each weight: the control that a criterion has to beat."""
    if evidence.generator is None:
        raise PruningError("random needs a generator")
    return torch.rand(weight.shape, generator=evidence.generator).to(weight.device)
