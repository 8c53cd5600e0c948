"""Consumers refitted by least squares to what they computed before, and the units that this can best do without."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ticketlab.errors import FusionError
from ticketlab.fusion.units import Activations, Regression, Units, seen

RIDGE = 1e-4
"""Penalty on the distance from the old weights, relative to the mean variance of an input."""


@dataclass(frozen=True)
class Elimination:
    """Units in the order in which they can be done without."""

    kept: Tensor
    """Ascending."""
    order: Tensor
    """Units removed, the first to go first."""
    errors: Tensor
    """Relative squared error of the consumers with n, n - 1, … units."""


def refit(regression: Regression, kept: Tensor, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
    """Weight (outputs, inputs) and change of bias of a consumer that no longer reads the other units.

    Minimises ‖z - W x - b‖² + ridge · ‖W - W₀‖² over the inputs x that stay, z being the reference's outputs;
    columns of the units that go are zero.
    """
    _check(ridge)
    stay = _staying(regression, kept)
    old = regression.weight
    gram = regression.cov_in[stay][:, stay]
    weak = ridge * gram.diagonal().mean().clamp(min=1e-12)
    gram = gram + weak * torch.eye(len(gram), dtype=gram.dtype)
    target = regression.cov_cross[stay] + weak * old[:, stay].T
    weight = torch.zeros_like(old)
    # the gram matrix may be singular to rounding (units that never fire), where Cholesky would give up
    weight[:, stay] = torch.linalg.solve(gram, target).T
    return weight, regression.mean_out - weight @ regression.mean_in - regression.bias


def _check(ridge: float) -> None:
    # without any, a unit that never fires makes the equations singular
    if not 0 < ridge < math.inf:
        raise FusionError(f"ridge must be above 0 and finite (got {ridge})")


def _staying(regression: Regression, kept: Tensor) -> Tensor:
    """Inputs of a consumer without those of the units that go."""
    stay = torch.ones(len(regression.cov_in), dtype=torch.bool)
    gone = torch.ones(len(regression.features), dtype=torch.bool)
    gone[kept] = False
    stay[regression.features[gone].reshape(-1)] = False
    return stay.nonzero().squeeze(1)


class _Consumer:
    """Inverse covariance and best weights of one consumer while units go."""

    def __init__(self, features: Tensor, cov: Tensor, cross: Tensor, spread: float, ridge: float) -> None:
        weak = ridge * cov.diagonal().mean().clamp(min=1e-12)
        self.inverse = torch.linalg.inv(cov + weak * torch.eye(len(cov), dtype=cov.dtype))
        self.weight = self.inverse @ cross
        self.features = features
        self.spread = max(spread, 1e-30)

    def losses(self) -> Tensor:
        """Relative squared error that each unit's removal adds: tr(Wᵤᵀ [C⁻¹]ᵤᵤ⁻¹ Wᵤ)."""
        where = self.features
        if where.shape[1] == 1:
            one = where[:, 0]
            sizes: Tensor = self.weight[one].square().sum(dim=1)
            return sizes / self.inverse.diagonal()[one].clamp(min=1e-30) / self.spread
        blocks = self.inverse[where[:, :, None], where[:, None, :]]
        weights = self.weight[where]
        solved = torch.linalg.solve(blocks, weights)
        losses: Tensor = (weights * solved).sum(dim=(1, 2))
        return losses / self.spread

    def remove(self, unit: int) -> None:
        where = self.features[unit]
        block = self.inverse[where][:, where]
        solved = torch.linalg.solve(block, torch.cat((self.inverse[where], self.weight[where]), dim=1))
        across = self.inverse[:, where]
        self.weight -= across @ solved[:, len(self.inverse) :]
        self.inverse -= across @ solved[:, : len(self.inverse)]
        # what is gone must not come back through rounding
        self.inverse[where] = 0
        self.inverse[:, where] = 0
        self.inverse[where, where] = 1
        self.weight[where] = 0


def eliminate(units: Units, keep: int, ridge: float = RIDGE) -> Elimination:
    """Remove units one by one down to `keep`, each time the one that adds least to the consumers' error."""
    consumers = _consumers(units, ridge)
    gone = torch.zeros(len(units), dtype=torch.bool)
    order: list[int] = []
    errors = [0.0]
    while len(units) - len(order) > keep:
        losses = sum(consumer.losses() for consumer in consumers) / len(consumers)
        assert isinstance(losses, Tensor)
        unit = int(losses.masked_fill(gone, torch.inf).argmin())
        errors.append(errors[-1] + float(losses[unit]))
        gone[unit] = True
        order.append(unit)
        for consumer in consumers:
            consumer.remove(unit)
    return Elimination((~gone).nonzero().squeeze(1), torch.tensor(order), torch.tensor(errors))


def _consumers(units: Units, ridge: float) -> list[_Consumer]:
    """Every consumer: regressed as a whole where it is small enough, else its inputs taken the same at every tap."""
    whole = {regression.layer: regression for regression in units.regressions}
    return [_regressed(whole[a.layer], ridge) if a.layer in whole else _by_channel(a, ridge) for a in seen(units)]


def _regressed(r: Regression, ridge: float) -> _Consumer:
    return _Consumer(r.features, r.cov_in, r.cov_cross, float(r.var_out.sum()), ridge)


def _by_channel(a: Activations, ridge: float) -> _Consumer:
    spread = float((a.outgoing * (a.cov @ a.outgoing)).sum())
    return _Consumer(torch.arange(len(a.cov))[:, None], a.cov, a.cov_cross.T @ a.outgoing, spread, ridge)


def channel_map(seen: Activations, kept: Tensor, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
    """(B, c) that best explain the reference's activations by those of the kept units."""
    _check(ridge)
    gram = seen.cov[kept][:, kept]
    weak = ridge * gram.diagonal().mean().clamp(min=1e-12)
    solved = torch.linalg.solve(gram + weak * torch.eye(len(kept), dtype=gram.dtype), seen.cov_cross[:, kept].T)
    mixing = solved.T
    return mixing, seen.reference_mean - mixing @ seen.mean[kept]
