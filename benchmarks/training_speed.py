"""What bfloat16 and channels-last memory do to a training step, and what bfloat16 does to accuracy.

Run: python benchmarks/training_speed.py [--data DIR] [--networks NAMES] [--rounds N] [--accuracy STEPS] [--json FILE]

All variants of a network take turns in short chunks, in one process on one thread; figures are processor times, medians
over rounds, and medians of each round's ratio to plain float32. A step is the whole of it: batch, forward, backward,
optimizer. bfloat16 is autocast in the forward pass over float32 weights; channels-last is the layout of images and
activations, while weights keep theirs. `--accuracy` trains each network so many steps with three seeds in float32 and
in bfloat16 with channels-last, and tells the difference in test accuracy, paired by seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from ticketlab.data.batches import Splits, shuffled_batches, split
from ticketlab.data.files import Places
from ticketlab.data.sources import load_dataset
from ticketlab.models import models
from ticketlab.recipe import TrainSection
from ticketlab.report import estimate
from ticketlab.runs.manifest import cpu_name
from ticketlab.training.loop import Adjust, evaluate, train_steps
from ticketlab.training.optim import make_optimizer


@dataclass(frozen=True)
class Task:
    """A network as its recipe trains it."""

    model: str
    data: str
    batch: int
    train: TrainSection
    chunk: int
    """Steps of one variant before the next one has its turn."""


@dataclass(frozen=True)
class Variant:
    """How a step computes."""

    bfloat16: bool
    channels_last: bool

    @property
    def name(self) -> str:
        """As the table tells it."""
        return ("bf16" if self.bfloat16 else "float32") + (" channels-last" if self.channels_last else "")


def _train(batch: int, optimizer: str, lr: float, momentum: float = 0.0) -> TrainSection:
    told = {"steps": "1it", "batch_size": batch, "optimizer": optimizer, "lr": lr, "momentum": momentum}
    return TrainSection.model_validate(told)


TASKS = {
    "lenet_300_100": Task("lenet_300_100", "mnist", 60, _train(60, "adam", 1.2e-3), 50),
    "lenet_5": Task("lenet_5", "mnist", 60, _train(60, "adam", 1.2e-3), 10),
    "conv_4": Task("conv_4", "cifar10", 60, _train(60, "adam", 3e-4), 2),
    "resnet_20": Task("resnet_20", "cifar10", 128, _train(128, "sgd", 0.1, 0.9), 2),
    "vgg_16": Task("vgg_16", "cifar10", 128, _train(128, "sgd", 0.1, 0.9), 1),
}
FLOAT32 = Variant(False, False)
VARIANTS = [FLOAT32, Variant(False, True), Variant(True, False), Variant(True, True)]
SEEDS = 3


def network(task: Task, splits: Splits, seed: int) -> nn.Module:
    """The network with the seed's initial weights."""
    torch.manual_seed(seed)
    model: nn.Module = models.find(task.model)(tuple(splits.train.images.shape[1:]), 10)
    return model


def steps(task: Task, splits: Splits, model: nn.Module, variant: Variant, seed: int) -> Iterator[float]:
    """Train without end; yields each step's loss."""
    optimizer = make_optimizer(model.parameters(), task.train)
    adjust = Adjust(bfloat16=variant.bfloat16, channels_last=variant.channels_last)
    batches = shuffled_batches(splits.train, task.batch, seed, 0)
    for step in train_steps(model, batches, optimizer, lambda _: task.train.lr, {}, 0, sys.maxsize, adjust):
        yield step.loss.item()


def interleaved(task: Task, splits: Splits, rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds per step of each variant, and how many times faster than float32."""
    running = {v.name: steps(task, splits, network(task, splits, 0), v, 0) for v in VARIANTS}
    times: dict[str, list[float]] = {name: [] for name in running}
    for number in range(rounds + 1):
        for name, training in running.items():
            spent = _timed(lambda training=training: next(training), task.chunk)
            if number:  # the first round warms up
                times[name].append(1e3 * spent)
    base = times[FLOAT32.name]
    return {
        name: {
            "ms_per_step": statistics.median(found),
            "speedup": statistics.median(plain / own for plain, own in zip(base, found, strict=True)),
        }
        for name, found in times.items()
    }


def _timed(step: Callable[[], object], count: int) -> float:
    """Processor seconds of one step, mean of so many: what others on the machine do hardly counts."""
    began = time.thread_time()
    for _ in range(count):
        step()
    return (time.thread_time() - began) / count


def accuracies(task: Task, splits: Splits, count: int, variant: Variant) -> list[float]:
    """Test accuracy after so many steps, seed by seed; judged in float32."""
    found = []
    for seed in range(SEEDS):
        model = network(task, splits, seed)
        training = steps(task, splits, model, variant, seed)
        for _ in range(count):
            next(training)
        found.append(evaluate(model, splits.test)[1])
    return found


def main() -> None:
    """Measure, print a table, optionally write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--networks", default=",".join(TASKS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--accuracy", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    places = Places.default(arguments.data)
    record: dict[str, object] = {"cpu": cpu_name(), "torch": torch.__version__}
    print(f"{cpu_name()}, torch {torch.__version__}, one thread, {arguments.rounds} rounds")
    for name in arguments.networks.split(","):
        task = TASKS[name]
        splits = split(load_dataset(task.data, places), 5000, 0)
        found = record[name] = interleaved(task, splits, arguments.rounds)
        for variant, row in found.items():
            print(f"{name:14s} {variant:22s} {row['ms_per_step']:9.2f} ms/step {row['speedup']:6.2f} ×", flush=True)
        if arguments.accuracy:
            plain, half = (accuracies(task, splits, arguments.accuracy, v) for v in (FLOAT32, Variant(True, True)))
            minus = estimate([other - own for own, other in zip(plain, half, strict=True)])
            record[f"{name} accuracy"] = {"float32": plain, "bf16": half, "bf16_minus_float32": asdict(minus)}
            told = " ".join(f"{100 * value:.2f}" for value in (*plain, *half))
            ends = f"{100 * (minus.low or 0):+.2f} to {100 * (minus.high or 0):+.2f}, n = {minus.n}"
            print(f"{name:14s} accuracy after {arguments.accuracy} steps, float32 and bf16, %: {told}")
            print(f"{name:14s} bf16 - float32, points: {100 * minus.mean:+.2f} ({ends})", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
