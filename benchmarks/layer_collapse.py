"""Where masks made before training leave no way through a VGG-16: the weights that lie on live paths, by compression.

For each criterion and compression 10^0.5 … 10^3 (Tanaka et al. 2020, figure 1 and table of accuracies) the effective
density of the mask in per cent, means over seeds; 0 where a layer's last weights meet no others and nothing can be
learnt. Nothing is trained.

    python benchmarks/layer_collapse.py [--recipe recipes/vgg16_cifar10.yaml] [--criteria snip,synflow]
        [--exponents 0.5,1,1.5,2,2.5,3] [--seeds 1] [--examples 100]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from ticketlab.data.files import Places
from ticketlab.fusion.paths import effective_density
from ticketlab.recipe_file import read_recipe
from ticketlab.seeds import derive_seed
from ticketlab.workflows.inputs import load_data
from ticketlab.workflows.make_plan import make_plan
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.tickets import mask_at_init, replicate_seed

CRITERIA = {
    "random": "criterion: random, scope: layer",
    "magnitude": "criterion: magnitude, scope: global",
    "snip": "criterion: snip, scope: global, examples: {examples}",
    "grasp": "criterion: grasp, scope: global, examples: {examples}",
    "synflow": "criterion: synflow, scope: global, rounds: 100",
}


def plan_of(recipe: Path, criterion: str, exponents: Sequence[float], examples: int) -> Plan:
    """The recipe's network, pruned before training by a criterion to each compression."""
    densities = ", ".join(str(10**-exponent) for exponent in exponents)
    pruning = f"{{{CRITERIA[criterion].format(examples=examples)}, densities: [{densities}]}}"
    file = read_recipe(recipe, ["method=at_init", f"pruning={pruning}"])
    return make_plan(*load_data(file, Places.default()))


def live_shares(plan: Plan, replicate: int) -> list[float]:
    """Effective density at each compression; 0 where it cannot be told."""
    weights = plan.build(derive_seed(replicate_seed(plan, replicate), "init")).state_dict()
    model, shape = plan.build(0), plan.data.dataset.input_shape
    masks = (mask_at_init(plan, replicate, level, weights) for level in range(1, plan.levels + 1))
    return [effective_density(model, shape, mask) or 0.0 for mask in masks]


def main() -> None:
    """Print the table as Markdown, a row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/vgg16_cifar10.yaml"))
    parser.add_argument("--criteria", default=",".join(CRITERIA))
    parser.add_argument("--exponents", default="0.5,1,1.5,2,2.5,3")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--examples", type=int, default=100)
    asked = parser.parse_args()
    exponents = [float(exponent) for exponent in asked.exponents.split(",")]
    print("| criterion | " + " | ".join(f"10^{exponent:g}" for exponent in exponents) + " |")
    print("|---" * (len(exponents) + 1) + "|")
    print("| (density) | " + " | ".join(f"{100 * 10**-exponent:.3g}" for exponent in exponents) + " |")
    for criterion in asked.criteria.split(","):
        plan = plan_of(asked.recipe, criterion, exponents, asked.examples)
        found = [live_shares(plan, replicate) for replicate in range(1, asked.seeds + 1)]
        cells = (f"{100 * fmean(column):.3g}" for column in zip(*found, strict=True))
        print(f"| {criterion} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
