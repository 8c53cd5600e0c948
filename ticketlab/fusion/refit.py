"""After the last fusion: the small network's weights once more, fitted to the answers of the network before.

No labels: the target is the reference's class probabilities on images. All weights by a fixed number of L-BFGS
iterations where that is cheap; elsewhere the last layer alone, which is a convex problem (softmax regression).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ticketlab.fusion.groups import recorded
from ticketlab.fusion.units import BATCH
from ticketlab.models.compact import LINEAR

ITERATIONS = 20
PENALTY = 1e-4
"""On the squared distance from the weights before, beside a mean cross-entropy."""
WORK = 8e10
"""Multiply-accumulates that fitting all weights may take, a few seconds of one core."""
PASSES = 75
"""Forward passes that the iterations cost per image: 20 of 1.25 evaluations, forward and backward."""
LEAST_IMAGES = 2048
"""Fewer would be learnt by heart."""


def refit_(model: nn.Module, reference: nn.Module, images: Tensor, macs: int) -> str:
    """Fit the small network to the reference on images; returns what was fitted: all, output or none.

    Args:
        macs: Multiply-accumulates of the small network for one image.
    """
    model.eval()
    reference.eval()
    count = min(len(images), int(WORK / (PASSES * max(macs, 1))))
    if count >= min(LEAST_IMAGES, len(images)):
        few = images[:count]
        _minimise(list(model.parameters()), lambda: model(few), probabilities(reference, few))
        return "all"
    name = output_layer(model, images[:2])
    if name is None:
        return "none"
    layer = model.get_submodule(name)
    inputs = _inputs(model, images, name)
    _minimise(list(layer.parameters()), lambda: layer(inputs), probabilities(reference, images))
    return "output"


def _minimise(parameters: Sequence[nn.Parameter], logits: Callable[[], Tensor], answers: Tensor) -> None:
    """L-BFGS on the cross-entropy to the answers; the weights stay as they were if it ends in no number."""
    before = [parameter.detach().clone() for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=ITERATIONS, history_size=ITERATIONS, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        moved = sum((p - b).square().sum() for p, b in zip(parameters, before, strict=True))
        value = functional.cross_entropy(logits(), answers) + PENALTY * moved
        value.backward()
        return value

    optimizer.step(loss)
    finite = all(bool(parameter.isfinite().all()) for parameter in parameters)
    for parameter, old in zip(parameters, before, strict=True):
        parameter.grad = None
        if not finite:
            parameter.data.copy_(old)


@torch.no_grad()
def probabilities(model: nn.Module, images: Tensor) -> Tensor:
    """Class probabilities of a network, (images, classes)."""
    return torch.cat([functional.softmax(model(batch), dim=-1) for batch in images.split(BATCH)])


@torch.no_grad()
def output_layer(model: nn.Module, images: Tensor) -> str | None:
    """The linear layer whose output is the network's; None where something comes after it."""
    names = [name for name, layer in model.named_modules() if isinstance(layer, LINEAR)]
    with recorded(model, names) as passes:
        logits = model(images)
    last = names[-1] if names and names[-1] in passes and passes[names[-1]][1] is logits else None
    return last if last is not None and isinstance(model.get_submodule(last), nn.Linear) else None


@torch.no_grad()
def _inputs(model: nn.Module, images: Tensor, name: str) -> Tensor:
    found = []
    with recorded(model, [name]) as passes:
        for batch in images.split(BATCH):
            model(batch)
            found.append(passes[name][0])
    return torch.cat(found)
