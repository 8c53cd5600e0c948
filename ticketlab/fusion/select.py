"""Which units stay: one function per criterion, (units, keep) → ascending indices of the kept ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from ticketlab.fusion.least_squares import eliminate
from ticketlab.fusion.units import Units, seen
from ticketlab.registry import Registry

selectors: Registry[Callable[..., Tensor]] = Registry("selection")


@selectors.register("random")
def random(units: Units, keep: int) -> Tensor:
    """Any units, all sets equally likely: the control."""
    return torch.randperm(len(units), generator=units.generator)[:keep].sort().values


@selectors.register("l1")
def l1(units: Units, keep: int) -> Tensor:
    """Largest Σ|incoming weight|, bias included (Li et al. 2017; Neuron Merging's `l1-norm`)."""
    return _top(units.rows().abs().sum(dim=1), keep)


@selectors.register("in_out")
def in_out(units: Units, keep: int) -> Tensor:
    """Largest ‖incoming‖ · ‖outgoing‖, which rescaling a ReLU unit does not change."""
    return _top(units.rows().norm(dim=1) * units.outgoing.norm(dim=1), keep)


@selectors.register("activation_out", needs={"activations"})
def activation_out(units: Units, keep: int) -> Tensor:
    """Largest deviation of the activation · ‖outgoing‖: the change that dropping the unit's variation makes."""
    changes = [a.cov.diagonal().clamp(min=0) * a.outgoing.square().sum(dim=1) for a in seen(units)]
    return _top(torch.stack(changes).sum(dim=0), keep)


@selectors.register("pivoted_qr", needs={"activations"})
def pivoted_qr(units: Units, keep: int) -> Tensor:
    """Column-pivoted QR of the activations: each next unit is the one least explained by those before it.

    As the first consumer sees them.
    """
    values, vectors = np.linalg.eigh(seen(units)[0].cov.numpy())
    root = np.sqrt(values.clip(min=0))[:, None] * vectors.T  # rootᵀ · root = covariance, so the pivots are the same
    order = scipy.linalg.qr(root, mode="r", pivoting=True)[1]
    return torch.from_numpy(order[:keep].astype(np.int64)).sort().values


@selectors.register("greedy", needs={"patches"})
def greedy(units: Units, keep: int) -> Tensor:
    """Drop one unit after the other, each time the one whose loss the others can best make up for.

    Backward elimination with the optimal brain surgeon's formula on the consumers' inputs (Hassibi & Stork 1993).
    """
    return eliminate(units, keep).kept


def _top(saliency: Tensor, keep: int) -> Tensor:
    # stable: ties fall to the earlier unit
    return saliency.argsort(descending=True, stable=True)[:keep].sort().values
