"""FlipOut, hybrid and first flip against magnitude and random pruning, at equal training budgets.

    python benchmarks/sign_flips.py table    --runs DIR    # MNIST and Fashion-MNIST, five densities, five seeds
    python benchmarks/sign_flips.py extreme  --runs DIR    # MNIST, 0.2 and 0.1 %, ten fresh seeds
    python benchmarks/sign_flips.py conv     --runs DIR    # a narrow Conv-4 on CIFAR-10, three seeds

Each makes ordinary runs, two at a time; what is finished is not repeated. Then: ticketlab report --compare.
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


def tasks(what: str) -> list[tuple[str, list[str]]]:
    """(recipe, overrides) of every run."""
    lenet = "recipes/hybrid_lenet_mnist.yaml"
    if what == "extreme":
        chosen = ("magnitude", "FlipOut", "magnitude + noise, live paths", "hybrid, live paths",
                  "FlipOut, counts reset, live paths")  # fmt: skip
        wanted = {name: {**MAIN, **MORE}[name] for name in chosen}
        fresh = ["seed=10", "replicates=10"]
        return [(lenet, [*rest, *fresh, f"pruning.levels={n}"]) for n in (10, 9) for rest in wanted.values()]
    if what == "conv":
        small = "recipes/flipout_conv4_cifar10_small.yaml"
        return [(small, rest) for name, rest in MAIN.items() if "without" not in name]
    densities = (10, 8, 6, 4, 2)
    mnist = [(lenet, [*SHORT, *rest, f"pruning.levels={n}"]) for n in densities for rest in {**MAIN, **MORE}.values()]
    few = ("magnitude", "magnitude + noise", "FlipOut", "hybrid", "hybrid, live paths")
    fashion = ["data={name: fashion_mnist}"]
    return mnist + [(lenet, [*SHORT, *fashion, *MAIN[name], f"pruning.levels={n}"]) for n in densities for name in few]


def work(task: tuple[str, list[str], str]) -> str:
    """Make one run in this process; returns a line about it."""
    import torch

    from ticketlab.data.files import Places
    from ticketlab.recipe_file import read_recipe
    from ticketlab.report import summarise
    from ticketlab.runs.store import Level
    from ticketlab.workflows.run import Machine, Started, prune_run

    torch.set_num_threads(1)
    recipe, overrides, runs = task
    events = list(prune_run(read_recipe(ROOT / recipe, overrides), Machine(Path(runs), Places.default(None), "cpu", 1)))
    name = next(event.store.name for event in events if isinstance(event, Started))
    row = summarise([event for event in events if isinstance(event, Level)])[-1]
    found = row.test_accuracy
    return f"{name} {100 * row.density:.3g} %: {100 * found.mean:.2f} (n = {found.n})  {' '.join(overrides)}"


def main() -> None:
    """Make the runs of one experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "extreme", "conv"))
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        for line in pool.imap_unordered(work, [(*task, options.runs) for task in tasks(options.what)]):
            print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
