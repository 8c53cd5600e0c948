"""One client's share of a round: train under the ticket's mask on its own examples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ticketlab.codec import Sparse
from ticketlab.data.batches import Examples, shuffled_batches, steps_per_epoch
from ticketlab.errors import FormatError
from ticketlab.models.compact import all_finite, same_shapes
from ticketlab.pruning.masks import full_mask
from ticketlab.recipe import TrainSection
from ticketlab.training.loop import evaluate, train_steps
from ticketlab.training.optim import learning_rate, make_optimizer
from ticketlab.training.trainable import make_trainable


@dataclass(frozen=True)
class Trained:
    """A client's answer."""

    state: dict[str, Tensor]
    """Removed weights are exactly zero."""
    examples: int
    accuracy: float
    """Of the network that came, on the client's own examples, before training: a share of 1."""
    loss: float
    """Mean of the last epoch's batches."""


def train_locally(
    model: nn.Module, received: Sparse, train: TrainSection, examples: Examples, epochs: int, seed: int
) -> Trained:
    """Train for some epochs from what the server sent; raises FormatError where that is not this network."""
    if not same_shapes(received.state, model.state_dict()):
        raise FormatError("the server's network has other layers than this client's")
    if not all_finite(received.state):
        raise FormatError("the server's network has numbers that are not finite")
    model.load_state_dict(received.state)
    accuracy = evaluate(model, examples)[1]
    device = torch.device("cpu")
    trainable = make_trainable(model, received.state, received.mask or full_mask(model), device)
    per_epoch = steps_per_epoch(len(examples), train.batch_size)
    steps = epochs * per_epoch
    batches = shuffled_batches(examples, train.batch_size, seed, 0)
    losses: list[Tensor] = []
    for step in train_steps(
        trainable.model,
        batches,
        make_optimizer(trainable.model.parameters(), train),
        lambda index: learning_rate(train, index, per_epoch),
        trainable.mask,
        0,
        steps,
    ):
        losses.append(step.loss)
    loss = float(torch.stack(losses[-per_epoch:]).mean())
    return Trained(trainable.whole(trainable.model.state_dict()), len(examples), accuracy, loss)
