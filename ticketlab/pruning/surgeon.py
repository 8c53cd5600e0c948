"""Remaining weights make up for removed ones (optimal brain surgeon)."""

from __future__ import annotations

import torch
from torch import Tensor


def compensated(weight: Tensor, kept: Tensor, moments: Tensor) -> Tensor:
    """The weights under a mask for which the layer's outputs differ least from those of the given ones.

    For each unit with the weights S left: w_S = H_SS⁻¹ H_S w, which minimises (w' − w)ᵀ H (w' − w); for one weight the
    update of Hassibi & Stork 1993, equation 5, for several the same at once.

    Args:
        weight: (units, …); the given ones.
        kept: Bool, of the same shape.
        moments: H, second moments of the inputs, (inputs, inputs), positive definite.

    Returns: Of the shape and type of `weight`; +0.0 where it is removed. Units that lose nothing are not changed.
    """
    rows, left = weight.flatten(1).to(moments.dtype), kept.flatten(1)
    wanted = rows @ moments
    found = torch.where(left, rows, torch.zeros_like(rows))
    for unit in (~left).any(1).nonzero().flatten().tolist():
        places = left[unit].nonzero().flatten()
        if len(places):
            part = torch.linalg.cholesky(moments[places][:, places])
            found[unit, places] = torch.cholesky_solve(wanted[unit, places].unsqueeze(1), part).squeeze(1)
    return found.view(weight.shape).to(weight.dtype)
