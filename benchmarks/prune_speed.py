"""Speed of one pruning step of LeNet-300-100 on MNIST, against a plain loop and against the bare matrix products.

Run: python benchmarks/prune_speed.py [--data DIR] [--rounds N] [--json FILE]

All variants run interleaved in short chunks in one process on one thread; figures are medians over rounds and
ratios of medians. Replicates per minute are measured with whole processes: two of ours at once, one thread each,
against one plain loop with all threads, as it is usually run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune as torch_prune

from ticketlab.data.batches import shuffled_batches, split
from ticketlab.data.files import Places, read_files
from ticketlab.data.sources import MNIST, load_dataset
from ticketlab.models import models
from ticketlab.pruning.allocate import keep_count, make_pools, prune
from ticketlab.pruning.masks import Mask, density, full_mask, masked
from ticketlab.recipe import TrainSection
from ticketlab.runs.manifest import cpu_name
from ticketlab.training import sparse, trainable
from ticketlab.training.loop import train_steps
from ticketlab.training.optim import make_optimizer

BATCH = 60
CHUNK = 50
"""Steps of one variant before the next one has its turn."""
TRAIN = TrainSection.model_validate({"steps": "1it", "batch_size": BATCH, "lr": 1.2e-3})
CPU = torch.device("cpu")


def network() -> nn.Module:
    """The network with the same initial weights each time."""
    torch.manual_seed(0)
    return models.find("lenet_300_100")((1, 28, 28), 10)


def magnitude_mask(level: int) -> Mask:
    """The recipe's mask of a level, by the magnitude of random weights: the shape of a real ticket's costs."""
    model = network()
    mask, weights = full_mask(model), dict(model.named_parameters())
    sizes = {name: kept.numel() for name, kept in mask.items()}
    pools = make_pools(sizes, "layer", rate=0.2, output_rate=0.1)
    keeps = [keep_count(pool, sizes, level) for pool in pools]
    return prune({name: weights[name].abs() for name in mask}, mask, pools, keeps)


def ours(places: Places, mask: Mask, may_be_sparse: bool = True) -> Callable[[], object]:
    """One step of ticketlab."""
    examples = split(load_dataset("mnist", places), 5000, 0).train
    model = network()
    limit, sparse.PAYS_BELOW = sparse.PAYS_BELOW, sparse.PAYS_BELOW if may_be_sparse else -1.0
    net = trainable.make_trainable(model, masked(model.state_dict(), mask), mask, CPU)
    sparse.PAYS_BELOW = limit
    steps = train_steps(
        net.model,
        shuffled_batches(examples, BATCH, 0, 0),
        make_optimizer(net.model.parameters(), TRAIN),
        lambda _: TRAIN.lr,
        net.mask,
        0,
        sys.maxsize,
    )
    return lambda: next(steps)


def plain(places: Places, mask: Mask, resident: bool = False) -> Callable[[], object]:
    """One step as tutorials write it: torchvision through a DataLoader, masks by torch.nn.utils.prune."""
    model = network()
    for name, kept in mask.items():
        torch_prune.custom_from_mask(model.get_submodule(name.removesuffix(".weight")), "weight", kept)
    optimizer = torch.optim.Adam(model.parameters(), lr=TRAIN.lr)
    examples = split(load_dataset("mnist", places), 5000, 0).train
    batches = shuffled_batches(examples, BATCH, 0, 0) if resident else loader(places)

    def step() -> object:
        images, labels = next(batches)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    return step


def loader(places: Places) -> Iterator[tuple[Tensor, Tensor]]:
    """torchvision's MNIST with ToTensor and Normalize, without worker processes, over and over."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / MNIST.folder
        folder.mkdir(parents=True)
        for name, content in read_files(MNIST, places)[0].items():
            (folder / name).write_bytes(content)
        change = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
        dataset = datasets.MNIST(root, transform=change)
    while True:
        yield from DataLoader(dataset, batch_size=BATCH, shuffle=True, drop_last=True)


def products() -> Callable[[], object]:
    """The eight matrix products of one dense step and nothing else."""
    sizes = (784, 300, 100, 10)
    activations = [torch.randn(BATCH, size) for size in sizes[:-1]]
    weights = [torch.randn(after, before) for before, after in itertools.pairwise(sizes)]
    gradients = [torch.randn(BATCH, size) for size in sizes[1:]]

    def step() -> object:
        for index, (features, weight, gradient) in enumerate(zip(activations, weights, gradients, strict=True)):
            features @ weight.t()
            gradient.t() @ features
            if index:
                gradient @ weight
        return None

    return step


def pieces(places: Places) -> dict[str, Callable[[], object]]:
    """Parts of our dense step, each alone."""
    examples = split(load_dataset("mnist", places), 5000, 0).train
    batches = shuffled_batches(examples, BATCH, 0, 0)
    images, labels = next(batches)
    model = network()
    trained = network()
    functional.cross_entropy(trained(images), labels).backward()
    optimizer = make_optimizer(trained.parameters(), TRAIN)

    def passes() -> None:
        functional.cross_entropy(model(images), labels).backward()
        for parameter in model.parameters():
            parameter.grad = None

    return {
        "part: forward and backward": passes,
        "part: fused Adam": optimizer.step,
        "part: batch": lambda: next(batches),
    }


def bf16(places: Places) -> Callable[[], object]:
    """One dense step with autocast to bfloat16 and float32 master weights."""
    examples = split(load_dataset("mnist", places), 5000, 0).train
    model, batches = network(), shuffled_batches(examples, BATCH, 0, 0)
    optimizer = make_optimizer(model.parameters(), TRAIN)

    def step() -> object:
        images, labels = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images)
        loss = functional.cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        for parameter in model.parameters():
            parameter.grad = None
        return loss

    return step


def interleaved(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds per step of each variant."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, step in variants.items():
            began = time.perf_counter()
            for _ in range(CHUNK):
                step()
            if number:  # the first round warms up
                times[name].append(1e3 * (time.perf_counter() - began) / CHUNK)
    return {name: statistics.median(found) for name, found in times.items()}


def worker(kind: str, places: Places, steps: int) -> None:
    """Body of a process that is timed from outside: train, print seconds."""
    torch.set_num_threads(1 if kind == "ours" else os.cpu_count() or 1)
    step = ours(places, full_mask(network())) if kind == "ours" else plain(places, full_mask(network()))
    for _ in range(CHUNK):
        step()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    print((time.perf_counter() - began) / steps)


def together(kind: str, processes: int, steps: int, places: Places) -> float:
    """Seconds per step of one replicate when several run at once."""
    data = ["--data", str(places.root)] if places.root else []
    command = [sys.executable, __file__, *data, "--worker", kind, "--steps", str(steps)]
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(processes)]
    return statistics.mean(float(process.communicate()[0]) for process in running)


def replicates_per_minute(places: Places, rounds: int, steps: int = 4000) -> dict[str, float]:
    """Replicates of `steps` steps per minute on this machine, ours and plain in turn."""
    cores = os.cpu_count() or 1
    found: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(rounds):
        found["ours"].append(cores * 60 / (steps * together("ours", cores, 2000, places)))
        found["plain"].append(60 / (steps * together("plain", 1, 300, places)))
    return {kind: statistics.median(values) for kind, values in found.items()}


def main() -> None:
    """Measure, print a table, optionally write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", choices=["ours", "plain"])
    parser.add_argument("--steps", type=int, default=2000)
    arguments = parser.parse_args()
    places = Places.default(arguments.data)
    if arguments.worker:
        worker(arguments.worker, places, arguments.steps)
        return
    torch.set_num_threads(1)
    levels = {level: magnitude_mask(level) for level in (0, 5, 7, 9, 11, 15)}
    variants = {"products": products(), "plain loop": plain(places, levels[0])}
    variants["plain loop, resident data"] = plain(places, levels[0], resident=True)
    variants |= pieces(places)
    variants["bf16 autocast"] = bf16(places)
    for level, mask in levels.items():
        variants[f"ours, {100 * density(mask):.2f} %"] = ours(places, mask)
        if level >= 7:
            variants[f"masked only, {100 * density(mask):.2f} %"] = ours(places, mask, may_be_sparse=False)
    times = interleaved(variants, arguments.rounds)
    dense = times["ours, 100.00 %"]
    print(f"{cpu_name()}, torch {torch.__version__}, batch {BATCH}, one thread, {arguments.rounds} rounds")
    print(f"{'variant':32s} {'ms/step':>8s} {'÷ ours dense':>13s} {'÷ products':>11s}")
    for name, value in times.items():
        print(f"{name:32s} {value:8.3f} {value / dense:13.2f} {value / times['products']:11.2f}")
    rates = replicates_per_minute(places, max(3, arguments.rounds // 10))
    print(f"replicates of 4,000 steps per minute: ours {rates['ours']:.2f}, plain {rates['plain']:.2f}, "
          f"ratio {rates['ours'] / rates['plain']:.1f}")  # fmt: skip
    if arguments.json:
        content = {"cpu": cpu_name(), "torch": torch.__version__, "ms_per_step": times, "per_minute": rates}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
