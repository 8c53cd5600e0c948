"""Batch-norm statistics of a network whose weights were not trained where they stand."""

from __future__ import annotations

import torch
from torch import nn

from ticketlab.data.batches import Examples, normalise
from ticketlab.models.compact import NORMS
from ticketlab.training.loop import EVALUATION_BATCH


@torch.no_grad()
def recalibrate_(model: nn.Module, examples: Examples) -> None:
    """Give batch norms the statistics that these examples have in this network; leaves the model in evaluation mode.

    Means over whole batches of their means and variances, all batches counting the same (torch's `momentum=None`), as
    `torch.optim.swa_utils.update_bn` has them; the last batch, if it is smaller, is left out. Running statistics that
    are interpolated like weights belong to no network: variances of a sum are not sums of variances (Izmailov et al.
    2018, section 3.2). Networks without batch norm stay as they are.
    """
    model.eval()  # dropout would change what the norms see
    norms = [layer for layer in model.modules() if isinstance(layer, NORMS) and layer.track_running_stats]
    if not norms:
        return
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    size = min(EVALUATION_BATCH, len(examples))
    for first in range(0, len(examples) - size + 1, size):
        model(normalise(examples.images[first : first + size], examples))
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    model.eval()
