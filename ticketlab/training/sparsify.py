"""What draws weights to zero while the dense network trains, so that pruning it loses less."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from ticketlab.pruning.allocate import lowest
from ticketlab.recipe import SparsifySection


class Sparsify(Protocol):
    """What is done to weights and gradients around a step."""

    def before_(self) -> None:
        """Before the forward pass."""

    def after_(self) -> None:
        """After the backward pass, before the optimizer's step."""


@dataclass(frozen=True)
class Penalty:
    """Adds strength · ∂R/∂w to the gradients, R a sum over tensors."""

    weights: Sequence[nn.Parameter]
    gradient: Callable[[Tensor], Tensor]
    strength: float

    def before_(self) -> None:
        """Nothing."""

    def after_(self) -> None:
        """Add the penalty's gradients."""
        for weight in self.weights:
            if weight.grad is not None:
                weight.grad.add_(self.gradient(weight.detach()), alpha=self.strength)


def l1(weight: Tensor) -> Tensor:
    """∂/∂w of Σ|w|: sign(w)."""
    return weight.sign()


def hoyer_square(weight: Tensor) -> Tensor:
    """∂/∂w of (Σ|w|)² / Σw²: 2 sign(w) · (Σ|w| / Σw²) · (1 − |w| Σ|w| / Σw²).

    Small weights are drawn to zero and large ones away from it, whatever the scale of the layer. Source: Yang, Wen & Li
    2020 (DeepHoyer), equation 3; 0 for a tensor of zeros.
    """
    squares = weight.square().sum()
    if not squares:
        return torch.zeros_like(weight)
    ratio = weight.abs().sum() / squares
    return 2 * weight.sign() * ratio * (1 - weight.abs() * ratio)


def group_lasso(weight: Tensor) -> Tensor:
    """∂/∂w of Σ √n ‖w_g‖, a group g for the n weights into each unit or filter: √n w / ‖w_g‖, 0 for a group of zeros.

    Source: Wen et al. 2016 (structured sparsity learning), equation 3, with the √n of Yuan & Lin 2006.
    """
    norms = weight.flatten(1).norm(dim=1).view(-1, *[1] * (weight.dim() - 1))
    return math.sqrt(weight[0].numel()) * torch.where(norms > 0, weight / norms, torch.zeros_like(weight))


@dataclass(frozen=True)
class GlobalSparseMomentum:
    """Only the share of all weights with the largest |w · ∂L/∂w| learns in a step; weight decay shrinks the others.

    Source: Ding et al. 2019 (global sparse momentum SGD), equations 5 and 6.
    """

    weights: Sequence[nn.Parameter]
    share: float

    def before_(self) -> None:
        """Nothing."""

    def after_(self) -> None:
        """Set the gradients of all other weights to zero."""
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        known = [weight for weight in self.weights if weight.grad is not None]
        moved = [(weight.detach() * found).abs().flatten() for weight, found in zip(known, gradients, strict=True)]
        every = torch.cat(moved)
        learn = max(1, math.floor(self.share * len(every) + 0.5))
        parts = (~lowest(every, len(every) - learn)).split([len(part) for part in moved])
        for found, learns in zip(gradients, parts, strict=True):
            found.mul_(learns.view_as(found))


@dataclass
class TargetedDropout:
    """Of the weights into each unit the smaller ones, `share` of them, are dropped in a step with a probability.

    Source: Gomez et al. 2019 (targeted dropout), section 4, for weights. Draws from torch's global generator.
    """

    weights: Sequence[nn.Parameter]
    share: float
    probability: float
    kept: list[Tensor] = field(default_factory=list)
    """Values of this step before the drop."""
    dropped: list[Tensor] = field(default_factory=list)

    def before_(self) -> None:
        """Drop: the network answers, and learns, without them."""
        self.kept = [weight.detach().clone() for weight in self.weights]
        self.dropped = [self._draw(weight) for weight in self.kept]
        for weight, gone in zip(self.weights, self.dropped, strict=True):
            weight.data.masked_fill_(gone, 0.0)

    def _draw(self, weight: Tensor) -> Tensor:
        rows = weight.flatten(1)
        count = math.floor(self.share * rows.shape[1])
        candidates = torch.zeros_like(rows, dtype=torch.bool)
        candidates.scatter_(1, rows.abs().argsort(dim=1, stable=True)[:, :count], True)
        return (candidates & (torch.rand_like(rows) < self.probability)).view_as(weight)

    def after_(self) -> None:
        """Put the values back; what was dropped learns nothing."""
        for weight, before, gone in zip(self.weights, self.kept, self.dropped, strict=True):
            weight.data.copy_(before)
            if weight.grad is not None:
                weight.grad.masked_fill_(gone, 0.0)


PENALTIES: dict[str, Callable[[Tensor], Tensor]] = {"l1": l1, "hoyer_square": hoyer_square, "group_lasso": group_lasso}


def make_sparsify(section: SparsifySection, weights: Sequence[nn.Parameter]) -> Sparsify:
    """What a recipe asks for, for these weights."""
    if section.kind in PENALTIES:
        return Penalty(weights, PENALTIES[section.kind], section.strength)
    if section.kind == "global_sparse_momentum":
        return GlobalSparseMomentum(weights, section.share)
    return TargetedDropout(weights, section.share, section.probability)
