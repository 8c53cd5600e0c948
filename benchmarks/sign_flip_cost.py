"""What counting sign flips and adding gradient noise cost per training step, as shares of the plain step.

Run: python benchmarks/sign_flip_cost.py [--data DIR] [--rounds N] [--batch N]

The plain step and the ones with more to do run interleaved in short chunks in one process on one thread; figures are
medians over rounds, ratios of medians, and the median of the ratios within each round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ticketlab.data.batches import shuffled_batches, split
from ticketlab.data.files import Places
from ticketlab.data.sources import load_dataset
from ticketlab.models import models
from ticketlab.pruning.masks import full_mask
from ticketlab.pruning.sign_flips import SignFlips
from ticketlab.recipe import TrainSection
from ticketlab.training.loop import Adjust, train_steps
from ticketlab.training.optim import make_optimizer
from ticketlab.training.trainable import make_trainable

CASES = {"lenet_300_100": ("mnist", 100), "conv_4": ("cifar10", 2)}
"""Network → data set, steps of one variant before the next one has its turn."""
VARIANTS = ("plain", "counting", "counting, half-life", "noise")


def stepper(name: str, data: str, places: Places, batch: int, variant: str) -> Callable[[], object]:
    """One training step of a variant."""
    dataset = load_dataset(data, places)
    examples = split(dataset, 5000, 0).train
    torch.manual_seed(0)
    model = models.find(name)(dataset.input_shape, dataset.classes)
    net = make_trainable(model, model.state_dict(), full_mask(model), torch.device("cpu"))
    train = TrainSection.model_validate({"steps": "1it", "batch_size": batch, "lr": 1e-4})
    adjust = Adjust(noise=net.noise(1.0 if variant == "noise" else 0.0))
    optimizer = make_optimizer(net.model.parameters(), train)
    batches = shuffled_batches(examples, batch, 0, 0)
    steps = train_steps(net.model, batches, optimizer, lambda _: train.lr, net.mask, 0, sys.maxsize, adjust)
    if not variant.startswith("counting"):
        return lambda: next(steps)
    flips = SignFlips(dict(net.prunable()), 10**6, 1000 if "half" in variant else None)

    def step() -> object:
        next(steps)
        return flips.update_()

    return step


def measure(name: str, places: Places, batch: int, rounds: int) -> dict[str, list[float]]:
    """Seconds per step of each variant, round by round."""
    data, chunk = CASES[name]
    steps = {variant: stepper(name, data, places, batch, variant) for variant in VARIANTS}
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for index in range(rounds + 1):
        for variant, step in steps.items():
            began = time.perf_counter()
            for _ in range(chunk):
                step()
            if index:  # the first round warms up
                times[variant].append((time.perf_counter() - began) / chunk)
    return times


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--batch", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"batch {options.batch}, one thread, median of {options.rounds} rounds\n")
    print("| network | step | ms | more than plain: medians | within a round |\n|---|---|---|---|---|")
    for name in CASES:
        times = measure(name, Places.default(options.data), options.batch, options.rounds)
        plain = times["plain"]
        for variant, found in times.items():
            ratio = statistics.median(found) / statistics.median(plain) - 1
            within = statistics.median(a / b for a, b in zip(found, plain, strict=True)) - 1
            print(f"| {name} | {variant} | {1e3 * statistics.median(found):.3f} | {ratio:+.1%} | {within:+.1%} |")


if __name__ == "__main__":
    main()
