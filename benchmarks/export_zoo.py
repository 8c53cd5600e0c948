"""Every built-in network at full size: a short training on real data, then every format and precision with its gate.

    python benchmarks/export_zoo.py --runs DIR [MODEL …]

Needs MNIST and CIFAR-10 ($TICKETLAB_DATA). Formats whose packages are absent are left out and named. About 40 minutes
of one core, most of it VGG-16's 10,000 test images for each file; networks that are trained already are not repeated.
"""

import argparse
from pathlib import Path

import torch

from ticketlab.data.files import Places
from ticketlab.errors import FormatError
from ticketlab.formats import FORMATS
from ticketlab.recipe_file import read_recipe
from ticketlab.runs.store import RunStore
from ticketlab.workflows.export import check, export_network
from ticketlab.workflows.run import Machine, Started, prune_run
from ticketlab.workflows.ship import shipment

ROOT = Path(__file__).resolve().parents[1]
ZOO = {
    "lenet_300_100": ("lenet_mnist", 1000),
    "lenet_5": ("lenet5_mnist", 600),
    "conv_2": ("conv2_cifar10", 300),
    "conv_4": ("conv4_cifar10", 300),
    "conv_6": ("conv6_cifar10", 300),
    "resnet_20": ("resnet20_cifar10", 150),
    "vgg_16": ("vgg16_cifar10", 60),
}
"""Model → recipe, and steps of training for each of two levels."""


def trained(recipe: str, steps: int, machine: Machine) -> RunStore:
    """A run of two levels: dense, and one with half of the weights."""
    short = [
        f"train.steps={steps}it", f"train.evaluate_every={steps}it", "train.warmup=0it", "train.milestones=[]",
        "data.validation=1000", "pruning.levels=1", "pruning.rate=0.5", "pruning.rewind=0it", "replicates=1",
    ]  # fmt: skip
    file = read_recipe(ROOT / "recipes" / f"{recipe}.yaml", short)
    (store,) = [event.store for event in prune_run(file, machine) if isinstance(event, Started)]
    return store


def main() -> None:
    """Print a line for each file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help=", ".join(ZOO))
    parser.add_argument("--runs", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    machine = Machine(given.runs, Places.default(), "cpu")
    print("| model | format | precision | bytes | largest difference | same answer % | test % (torch) | gate |")
    print("|---|---|---|---|---|---|---|---|")
    for model in given.models or ZOO:
        ready = shipment(trained(*ZOO[model], machine), machine.places)
        for name, made in FORMATS.items():
            for precision in made.precisions:
                try:
                    check(ready.network, [(name, precision)])
                    (file,) = export_network(ready, [(name, precision)], ready.store.path / "export")
                except FormatError as error:
                    print(f"| {model} | {name} | {precision} | left out: {error} |", flush=True)
                    continue
                print(
                    f"| {model} | {name} | {precision} | {file['bytes']:,} | {file['max_abs_diff']:.2g} | "
                    f"{100 * file['top1_agreement']:.1f} | {100 * file['test_accuracy']:.2f} "
                    f"({100 * ready.test_accuracy:.2f}) | {file['reason'] or 'accepted'} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
