"""One optimizer step at a time, under a mask; evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from ticketlab.data.batches import Examples, normalise
from ticketlab.models.compact import NORMS
from ticketlab.pruning.masks import Mask
from ticketlab.training.sparsify import Sparsify

EVALUATION_BATCH = 250  # examples; activations of larger ones do not fit the caches, 2 × slower for ResNet-20


@dataclass(frozen=True)
class Step:
    """What one optimizer step leaves behind."""

    index: int
    """Steps done, counted from the start of level 0's schedule."""
    loss: Tensor
    """Mean cross-entropy of the batch before the step; a scalar still on its device."""


@dataclass(frozen=True)
class Adjust:
    """How a step is computed, and what is done to gradients beside masking them."""

    slimming: float = 0.0
    """Strength s of an L1 penalty on batch-norm scales γ: s · sign(γ) is added (Liu et al. 2017, equation 1)."""
    noise: Sequence[tuple[nn.Parameter, float]] = ()
    """Parameters with a strength c each: Gaussian noise of deviation c · ‖gradient‖ is added, drawn from torch's global
    generator (FlipOut)."""
    frozen: Sequence[tuple[nn.Parameter, Tensor]] = ()
    """Instead of the mask, where weights are removed as training goes on: 1 for each that remains, changed by who
    removes one."""
    towards: Sequence[tuple[nn.Parameter, Tensor]] = ()
    """Parameters with the values that they are pulled to: `pull` times the difference is added."""
    pull: float = 0.0
    """μ of the proximal term (Li et al. 2020, equation 2)."""
    bfloat16: bool = False
    """Forward pass in bfloat16 where that loses little (autocast); weights, gradients and optimizer stay float32."""
    sparsify: Sparsify = field(default_factory=Sparsify)
    """What is done to weights before the forward pass, and to gradients after the backward pass."""
    see: Callable[[int], None] | None = None
    """Called with the number of the step, once all gradients are there, those of removed weights among them."""
    channels_last: bool = False
    """Images, and with them activations, are laid out pixel by pixel; weights keep their layout."""


class Steps(Protocol):
    """What an optimizer must be able to do: one of torch's, or `PlainSgd`."""

    param_groups: list[dict[str, Any]]

    def step(self) -> Any:
        """Change the weights by their gradients."""
        ...


def train_steps(
    model: nn.Module,
    batches: Iterator[tuple[Tensor, Tensor]],
    optimizer: Steps,
    learning_rate: Callable[[int], float],
    mask: Mask,
    start: int,
    stop: int,
    adjust: Adjust = Adjust(),
) -> Iterator[Step]:
    """Train from step `start` to `stop`, yielding after each step.

    The weights must already be masked. Gradients of removed weights are set to zero before the optimizer sees
    them; its state starts empty, so removed weights have no momentum, no decay and stay exactly +0.0.
    """
    frozen = adjust.frozen or _sparse_parameters(model, mask)
    parameters = list(model.parameters())
    scales = _scales(model) if adjust.slimming else []
    model.train()
    for index in range(start, stop):
        images, labels = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(index)
        loss = _backward(model, images, labels, index + 1, adjust)
        for parameter, anchor in adjust.towards:
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - anchor, alpha=adjust.pull)
        for parameter, kept in frozen:
            assert parameter.grad is not None
            parameter.grad.mul_(kept)
        for scale in scales:
            if scale.grad is None:
                continue  # a norm that the network does not use
            scale.grad.add_(scale.detach().sign(), alpha=adjust.slimming)
        if adjust.noise:
            _add_noise_(adjust.noise)
            for parameter, kept in frozen:
                parameter.grad.mul_(kept)  # type: ignore[union-attr]
        optimizer.step()
        # what optimizer.zero_grad() does, in a quarter of its time
        for parameter in parameters:
            parameter.grad = None
        yield Step(index + 1, loss)


def _backward(model: nn.Module, images: Tensor, labels: Tensor, step: int, adjust: Adjust) -> Tensor:
    """The loss of a batch; afterwards the gradients of all weights are there."""
    adjust.sparsify.before_()
    loss = functional.cross_entropy(_logits(model, images, adjust), labels)
    loss.backward()
    adjust.sparsify.after_()
    if adjust.see is not None:
        adjust.see(step)
    return loss.detach()


def _logits(model: nn.Module, images: Tensor, adjust: Adjust) -> Tensor:
    if adjust.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    if not adjust.bfloat16:
        return model(images)
    with torch.autocast(images.device.type, torch.bfloat16):
        logits = model(images)
    return logits.float()


def _add_noise_(noise: Sequence[tuple[nn.Parameter, float]]) -> None:
    for parameter, strength in noise:
        if parameter.grad is not None:
            drawn = torch.randn_like(parameter.grad)
            parameter.grad.addcmul_(drawn, torch.linalg.vector_norm(parameter.grad), value=strength)


def _scales(model: nn.Module) -> list[nn.Parameter]:
    """Batch-norm scales that are trained."""
    return [
        layer.weight
        for layer in model.modules()
        if isinstance(layer, NORMS) and layer.affine and layer.weight.requires_grad
    ]


def _sparse_parameters(model: nn.Module, mask: Mask) -> list[tuple[nn.Parameter, Tensor]]:
    """Parameters with removed weights, each with its mask as numbers; full ones need no work."""
    parameters = dict(model.named_parameters())
    return [(parameters[name], kept.to(parameters[name].dtype)) for name, kept in mask.items() if not kept.all()]


def revived(model: nn.Module, mask: Mask) -> list[str]:
    """Layers in which a removed weight is no longer zero: always empty, or training is wrong."""
    parameters = dict(model.named_parameters())
    return [name for name, kept in mask.items() if not kept.all() and parameters[name][~kept].any()]


@torch.inference_mode()
def evaluate(model: nn.Module, examples: Examples) -> tuple[float, float]:
    """Mean cross-entropy and accuracy (a fraction of 1) over all examples; leaves the model in training mode."""
    model.eval()
    losses: list[Tensor] = []
    right: list[Tensor] = []
    for first in range(0, len(examples), EVALUATION_BATCH):
        labels = examples.labels[first : first + EVALUATION_BATCH]
        logits = model(normalise(examples.images[first : first + EVALUATION_BATCH], examples))
        losses.append(functional.cross_entropy(logits, labels, reduction="sum"))
        right.append((logits.argmax(dim=1) == labels).sum())
    model.train()
    # summed on the CPU: not every device knows double precision
    loss = torch.stack(losses).cpu().double().sum().item()
    return loss / len(examples), int(torch.stack(right).sum()) / len(examples)
