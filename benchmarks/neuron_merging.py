"""Neuron merging's Fashion-MNIST table beside ours: the same network, the same sizes, no labels.

A LeNet-300-100 is trained with the settings of the published code (SGD 0.1, momentum 0.9, weight decay 5e-4, batch 128,
200 epochs, falling at half and three quarters, pixels to -1…1), unless --weights names one. Then, for 50 to 80 % of
units removed, plain L1 removal, neuron merging and least squares at the published widths, and least squares at widths
of its own choice with as many parameters, before and after five seconds of label-free distillation.

    python benchmarks/neuron_merging.py [--weights FILE] [--out FILE] [--seed 1]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from ticketlab.data.batches import normalise, permutation
from ticketlab.data.files import Places
from ticketlab.fusion.widths import error_curves
from ticketlab.training.distil import distil_steps, steps_in
from ticketlab.training.loop import evaluate
from ticketlab.workflows.fuse_request import Request
from ticketlab.workflows.fuse_widths import choose_widths, fuse_to, prepare
from ticketlab.workflows.source import Elsewhere, from_weights

PUBLISHED = {0.5: (88.40, 88.69), 0.6: (85.17, 86.92), 0.7: (71.26, 82.75), 0.8: (66.76, 80.02)}
"""Units removed → accuracy after removal by L1 and after merging; their network has 89.80 (Kim et al. 2020, README)."""


def train(seed: int, out: Path) -> None:
    """The published settings on all 60,000 training images."""
    from dataclasses import replace

    from ticketlab.data.batches import split
    from ticketlab.data.sources import load_dataset

    dataset = load_dataset("fashion_mnist", Places.default())
    images = split(replace(dataset, mean=(0.5,), std=(0.5,)), 1, 0).test
    pixels = normalise(dataset.train_images, images).flatten(1)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True)
    for epoch in range(200):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 if epoch < 100 else 0.1 if epoch < 150 else 0.01)
        for chosen in permutation(len(pixels), 1000 * seed + epoch).split(128):
            optimizer.zero_grad()
            functional.cross_entropy(model(pixels[chosen]), dataset.train_labels[chosen]).backward()
            optimizer.step()
    save_file(model.state_dict(), out)


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--out", type=Path, default=Path("lenet_as_in_neuron_merging.safetensors"))
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.weights is None:
        train(given.seed, given.out)
    described = Elsewhere(given.weights or given.out, "lenet_300_100", "fashion_mnist", (0.5,), (0.5,))
    source = from_weights(described, Places.default(), ())
    splits = source.plan.splits

    def accuracy(model: nn.Module) -> float:
        found = 100 * evaluate(model, splits.test)[1]
        model.eval()
        return found

    bench = prepare(source, Request())
    curves = error_curves(bench.model, bench.groups, bench.images)
    print(f"network before: {accuracy(source.model):.2f} % (published: 89.80)\n")
    print("| units removed | parameters | published L1 → merged | L1 here | merged here | least squares | + refit "
          "| own widths | + refit | seconds | + 5 s distillation |")  # fmt: skip
    print("|" + "---|" * 11)
    for removed, (theirs, merged) in PUBLISHED.items():
        widths = {"fc1": round(300 * (1 - removed)), "fc2": round(100 * (1 - removed))}
        budget = int(bench.costs.parameters(widths))
        row = [
            accuracy(fuse_to(bench, Request(select="l1", combine="drop"), widths)[0].model),
            accuracy(fuse_to(bench, Request(select="l1", combine="neuron_merging"), widths)[0].model),
            *(accuracy(fuse_to(bench, Request(refit=refit), widths)[0].model) for refit in (False, True)),
        ]
        own = next(w for w in choose_widths(bench, Request(params=budget), curves) if isinstance(w, dict))
        row.append(accuracy(fuse_to(bench, Request(refit=False), own)[0].model))
        began = time.perf_counter()
        model = fuse_to(bench, Request(), own)[0].model
        seconds = time.perf_counter() - began
        row.append(accuracy(model))
        for _ in distil_steps(model, source.model, splits.train, steps_in(5, model, source.model, splits.train), 0):
            pass
        cells = " | ".join(f"{value:.2f}" for value in row)
        print(f"| {100 * removed:.0f} % | {budget:,} | {theirs:.2f} → {merged:.2f} | {cells} | {seconds:.1f} | "
              f"{accuracy(model):.2f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
