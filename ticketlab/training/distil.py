"""Train a small network to answer like a large one, on images without labels (Hinton et al. 2015, at temperature 1)."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from ticketlab.data.batches import Examples, normalise, permutation, steps_per_epoch
from ticketlab.seeds import derive_seed
from ticketlab.training.loop import Step

BATCH = 256
LEARNING_RATE = 2e-3
TIMED_STEPS = 20


def distil_steps(
    model: nn.Module, teacher: nn.Module, examples: Examples, steps: int, seed: int, lr: float = LEARNING_RATE
) -> Iterator[Step]:
    """Train towards the teacher's class probabilities, yielding after each step; labels are never read.

    Adam, learning rate falling to 0 along a cosine; norms keep their statistics, so the network stays what
    evaluation sees. The teacher answers each image once.
    """
    model.eval()
    teacher.eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    answers: Tensor | None = None
    known = torch.zeros(len(examples), dtype=torch.bool)
    per_epoch = steps_per_epoch(len(examples), BATCH)
    order = torch.empty(0)
    for index in range(steps):
        epoch, place = divmod(index, per_epoch)
        if place == 0:
            order = permutation(len(examples), derive_seed(seed, "distil", epoch))
        chosen = order[place * BATCH : (place + 1) * BATCH]
        images = normalise(examples.images[chosen], examples)
        if not bool(known[chosen].all()):
            with torch.no_grad():
                told = functional.softmax(teacher(images), dim=-1)
            answers = torch.empty(len(examples), told.shape[-1]) if answers is None else answers
            answers[chosen] = told
            known[chosen] = True
        assert answers is not None
        optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * index / steps)) / 2
        loss = functional.cross_entropy(model(images), answers[chosen])
        loss.backward()
        optimizer.step()
        for parameter in model.parameters():
            parameter.grad = None
        yield Step(index + 1, loss.detach())


def steps_in(seconds: float, model: nn.Module, teacher: nn.Module, examples: Examples) -> int:
    """How many steps fit in a time here, timed on a copy that is thrown away."""
    few = examples.first(BATCH)
    first = _step_seconds(model, teacher, examples)
    later = _step_seconds(model, teacher, few)  # one batch again and again: the teacher answers once
    per_epoch = steps_per_epoch(len(examples), BATCH)
    if seconds <= per_epoch * first:
        return max(1, int(seconds / first))
    return per_epoch + int((seconds - per_epoch * first) / later)


def _step_seconds(model: nn.Module, teacher: nn.Module, examples: Examples) -> float:
    """Median time of a step, the first one left out; a few of them, in about a second."""
    times = [time.perf_counter()]
    for _ in distil_steps(deepcopy(model), teacher, examples, TIMED_STEPS, 0):
        times.append(time.perf_counter())
        if times[-1] - times[0] > 1 and len(times) > 2:
            break
    return statistics.median(after - before for before, after in pairwise(times[1:]))
