"""One client's share of a round: train under a mask on its own examples, judge, look at gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from ticketlab.data.batches import Examples, normalise, shuffled_batches, steps_per_epoch
from ticketlab.errors import FailedRun
from ticketlab.models.compact import all_finite
from ticketlab.pruning.masks import Mask, full_mask, masked
from ticketlab.training.loop import Adjust, evaluate, train_steps
from ticketlab.training.plain_sgd import PlainSgd
from ticketlab.training.trainable import Trainable, make_trainable

if TYPE_CHECKING:
    from ticketlab.federate.rules.rule import Work


@dataclass(frozen=True)
class Trained:
    """A network after a client's steps."""

    state: dict[str, Tensor]
    """Removed weights are exactly zero."""
    loss: float
    """Mean of the last epoch's batches; NaN where there was no step."""


def fit(
    work: Work,
    mask: Mask,
    state: Mapping[str, Tensor],
    part: tuple[float, float] = (0.0, 1.0),
    anchor: Mapping[str, Tensor] | None = None,
) -> Trained:
    """Train from a state under a mask; raises FailedRun where training diverges.

    Args:
        part: Stretch of the round's steps, from and to, as shares of 1.
        anchor: The server's weights, to which FedProx pulls where the settings ask for it; left out: `state`.
    """
    settings, examples = work.settings, work.train
    trainable = make_trainable(work.model, state, mask or full_mask(work.model), torch.device("cpu"))
    per_epoch = steps_per_epoch(len(examples), settings.batch_size)
    adjust = Adjust()
    if settings.proximal:
        adjust = Adjust(
            towards=_anchors(work, trainable, mask, state if anchor is None else anchor), pull=settings.proximal
        )
    start, stop = (round(share * settings.epochs * per_epoch) for share in part)
    losses = [
        step.loss
        for step in train_steps(
            trainable.model,
            shuffled_batches(examples, settings.batch_size, work.seed, start),
            PlainSgd(trainable.model.parameters(), settings.lr, settings.momentum),
            lambda _: settings.lr,
            trainable.mask,
            start,
            stop,
            adjust,
        )
    ]
    loss = float(torch.stack(losses[-per_epoch:]).mean()) if losses else float("nan")
    found = trainable.whole(trainable.model.state_dict())
    if not all_finite(found):
        raise FailedRun(f"training diverged here (learning rate {settings.lr:g})")
    # layers that are trained as sparse ones come last; vectors of all values depend on the order
    return Trained({name: found[name] for name in state}, loss)


def judge(model: nn.Module, state: Mapping[str, Tensor], examples: Examples) -> float:
    """Accuracy of a state, a fraction of 1."""
    model.load_state_dict(state)
    return evaluate(model, examples)[1]


def dense_gradient(
    model: nn.Module, state: Mapping[str, Tensor], examples: Examples, batch: int | None
) -> dict[str, Tensor]:
    """Gradient of the mean loss with respect to every parameter, removed weights too.

    Args:
        batch: Of the first so many examples; None: of all of them.
    """
    model.load_state_dict(state)
    model.train()
    model.zero_grad()
    count = len(examples) if batch is None else min(batch, len(examples))
    for first in range(0, count, GRADIENT_BATCH):
        labels = examples.labels[first : min(first + GRADIENT_BATCH, count)]
        images = normalise(examples.images[first : first + len(labels)], examples)
        (functional.cross_entropy(model(images), labels, reduction="sum") / count).backward()
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    return found


GRADIENT_BATCH = 256


def _anchors(
    work: Work, trainable: Trainable, mask: Mask, anchor: Mapping[str, Tensor]
) -> list[tuple[nn.Parameter, Tensor]]:
    """Each parameter as it is trained, with the value that it is pulled to, in the same shape."""
    device = torch.device("cpu")
    there = make_trainable(work.model, masked(anchor, mask), mask or full_mask(work.model), device).model
    pairs = zip(trainable.model.parameters(), there.parameters(), strict=True)
    return [(parameter, value.detach().clone()) for parameter, value in pairs]
