"""FlipOut, hybrid and first flip against magnitude and random pruning, at equal training budgets.

    python benchmarks/sign_flips.py mnist --runs DIR       # five densities, five seeds; fashion_mnist: the same
    python benchmarks/sign_flips.py ablations --runs DIR   # MNIST: what each part of it does
    python benchmarks/sign_flips.py extreme --runs DIR     # MNIST, 0.2 and 0.1 %, ten fresh seeds, three times as long
    python benchmarks/sign_flips.py conv --runs DIR        # a narrow Conv-4 on CIFAR-10, three seeds

Each makes ordinary runs, two at a time; what is finished is not repeated. Then the same with --show prints the tables,
and `ticketlab report --compare` compares the runs.
"""

import argparse
import multiprocessing
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

MAGNITUDE = ["method=gradual", "pruning.criterion=magnitude", "pruning.options={}", "sign_flips={}"]
FLIPOUT = ["pruning.criterion=flipout", "pruning.options={p: 2.0}", "sign_flips={}"]
HYBRID = ["pruning.criterion=hybrid", "pruning.options={mix: 0.3}", "sign_flips.reset=true"]
QUIET, LIVE, ANY = ["train.gradient_noise=0"], ["pruning.reclaim=dead_paths"], ["pruning.reclaim=null"]
RESET = ["sign_flips.reset=true"]

MAIN = {
    "magnitude": [*MAGNITUDE, *QUIET, *ANY],
    "magnitude + noise": [*MAGNITUDE, *ANY],
    "FlipOut": [*FLIPOUT, *ANY],
    "FlipOut without noise": [*FLIPOUT, *QUIET, *ANY],
    "hybrid": [*HYBRID, *ANY],
    "magnitude + noise, live paths": [*MAGNITUDE, *LIVE],
    "hybrid, live paths": [*HYBRID, *LIVE],
}
MORE = {
    "FlipOut, counts reset": [*FLIPOUT, *RESET, *ANY],
    "FlipOut, p = 1": [*FLIPOUT, *ANY, "pruning.options={p: 1.0}"],
    "FlipOut without weight decay": [*FLIPOUT, *ANY, "train.weight_decay=0"],
    "first flip": [*MAGNITUDE, "method=sign_flip", *QUIET, *ANY, "sign_flips={at_once: 1}"],
    "magnitude, cubic": [*MAGNITUDE, *QUIET, *ANY, "schedule.shape=cubic"],
    "random": [*MAGNITUDE, *QUIET, *ANY, "pruning.criterion=random"],
    "FlipOut, counts reset, live paths": [*FLIPOUT, *RESET, *LIVE],
}
SHORT = ["train.steps=10ep", "train.milestones=[8ep]", "schedule={until: 6ep}"]


Task = tuple[str, str, str, list[str]]
"""Heading, name of the method, recipe, overrides."""


def tasks(what: str) -> list[Task]:
    """Every run of an experiment."""
    lenet = "recipes/hybrid_lenet_mnist.yaml"
    every = {**MAIN, **MORE}
    if what == "extreme":
        chosen = ("magnitude", "FlipOut", "magnitude + noise, live paths", "hybrid, live paths",
                 "FlipOut, counts reset, live paths")  # fmt: skip
        fresh = ["seed=10", "replicates=10"]
        return [
            ("MNIST", name, lenet, [*every[name], *fresh, f"pruning.levels={n}"]) for n in (10, 9) for name in chosen
        ]
    if what == "conv":
        small = "recipes/flipout_conv4_cifar10_small.yaml"
        few = ("magnitude", "magnitude + noise", "FlipOut", "hybrid")
        return [("CIFAR-10", name, small, MAIN[name]) for name in few]
    names = {
        "mnist": tuple(MAIN),
        "fashion_mnist": ("magnitude", "magnitude + noise", "FlipOut", "hybrid", "hybrid, live paths"),
        "ablations": ("magnitude", *MORE),
    }[what]
    source = ["data={name: fashion_mnist}"] if what == "fashion_mnist" else []
    return [
        (what, name, lenet, [*SHORT, *source, *every[name], f"pruning.levels={n}"])
        for n in (10, 8, 6, 4, 2)
        for name in names
    ]


def show(what: str, runs: Path) -> None:
    """Markdown tables: test accuracy and, in brackets, the paired difference from plain magnitude."""
    from ticketlab.recipe import recipe_hash
    from ticketlab.recipe_file import read_recipe
    from ticketlab.report import estimate
    from ticketlab.runs.store import RunStore
    from ticketlab.trained_networks import Network, run_networks

    found: dict[str, dict[str, dict[float, dict[int, Network]]]] = {}
    for heading, name, recipe, overrides in tasks(what):
        read = read_recipe(ROOT / recipe, overrides).recipe
        store = RunStore(runs / f"{Path(recipe).stem}-{recipe_hash(read)}")
        networks = run_networks(store) if store.has_result("recipe.yaml") else []
        for network in networks:
            by_density = found.setdefault(heading, {}).setdefault(name, {})
            by_density.setdefault(network.density, {})[network.seed] = network
    for heading, methods in found.items():
        densities = sorted(methods["magnitude"], reverse=True)
        print(f"\n{heading}\n\n| method | " + " | ".join(f"{100 * d:.3g} %" for d in densities) + " |")
        print("|---" * (len(densities) + 1) + "|")
        for name, cells in methods.items():
            row = []
            for density in densities:
                here, base = cells.get(density, {}), methods["magnitude"][density]
                if not here:
                    row.append("–")
                    continue
                accuracy = estimate([100 * n.test_accuracy for n in here.values()])
                text = f"{accuracy.mean:.2f}" + (f" ± {accuracy.high - accuracy.mean:.2f}" if accuracy.high else "")
                both = sorted(set(here) & set(base))
                if name != "magnitude" and both:
                    minus = estimate([100 * (here[s].test_accuracy - base[s].test_accuracy) for s in both])
                    sure = minus.low is not None and minus.high is not None and minus.low * minus.high > 0
                    half = f" ± {minus.high - minus.mean:.2f}" if minus.high is not None else ""
                    text += f" ({'**' * sure}{minus.mean:+.2f}{half}{'**' * sure})"
                row.append(text)
            print(f"| {name} | " + " | ".join(row) + " |")
        counts = {len(cell) for cells in methods.values() for cell in cells.values()}
        print(f"\nn = {', '.join(map(str, sorted(counts)))}")


def work(task: tuple[Task, str]) -> str:
    """Make one run in this process; returns a line about it."""
    import torch

    from ticketlab.data.files import Places
    from ticketlab.recipe_file import read_recipe
    from ticketlab.report import summarise
    from ticketlab.runs.store import Level
    from ticketlab.workflows.run import Machine, Started, prune_run

    torch.set_num_threads(1)
    (heading, method, recipe, overrides), runs = task
    events = list(prune_run(read_recipe(ROOT / recipe, overrides), Machine(Path(runs), Places.default(None), "cpu", 1)))
    name = next(event.store.name for event in events if isinstance(event, Started))
    row = summarise([event for event in events if isinstance(event, Level)])[-1]
    found = row.test_accuracy
    return f"{name} {heading} {method} {100 * row.density:.3g} %: {100 * found.mean:.2f} (n = {found.n})"


def main() -> None:
    """Make the runs of one experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("mnist", "fashion_mnist", "ablations", "extreme", "conv"))
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--show", action="store_true", help="print the tables of finished runs")
    options = parser.parse_args()
    if options.show:
        show(options.what, Path(options.runs))
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        for line in pool.imap_unordered(work, [(task, options.runs) for task in tasks(options.what)]):
            print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
