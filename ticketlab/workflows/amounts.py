"""How much is pruned, in which steps and layers: what cannot be asked of a method."""

from __future__ import annotations

from itertools import pairwise

from ticketlab.recipe import PruningSection, Recipe
from ticketlab.recipe_file import Problem
from ticketlab.workflows.schedule import sees_flips


def check_amounts(recipe: Recipe) -> list[Problem]:
    """Settings of densities, allocation and rounds that the recipe's method would ignore, or cannot follow."""
    method, pruning, usual = recipe.method, recipe.pruning, PruningSection()
    given, by_shape = pruning.densities, pruning.allocation != "rate"
    rules = [
        (bool(given) and method == "early_bird", "densities", "early_bird has its own: early_bird.densities"),
        (bool(given) and pruning.rate != usual.rate, "rate", "pruning.densities says how much; leave rate out"),
        (
            bool(given) and not recipe.prunes_in_training and pruning.levels != usual.levels,
            "levels",
            "there is one level for each of pruning.densities; leave levels out",
        ),
        (
            recipe.prunes_in_training and len(given) > 1,
            "densities",
            f"{method} is one training with one density at its end; make a run for each: "
            "-s pruning.densities='[0.2]','[0.1]'",
        ),
        (any(one <= other for one, other in pairwise(given)), "densities", "name them from dense to sparse, each once"),
        (
            pruning.compensate and (method not in ("imp", "oneshot") or pruning.after not in ("lr_rewind", "finetune")),
            "compensate",
            "makes up with trained weights: methods imp and oneshot with after: lr_rewind or finetune",
        ),
        (by_shape and pruning.scope == "global", "allocation", f"{pruning.allocation} belongs to scope: layer"),
        (
            by_shape and (bool(pruning.rates) or pruning.output_rate is not None),
            "allocation",
            f"{pruning.allocation} decides how much of each layer goes; leave rates and output_rate out",
        ),
        (
            by_shape and method == "early_bird" and recipe.early_bird.granularity == "channels",
            "allocation",
            f"{pruning.allocation} counts single weights, not channels",
        ),
        (
            recipe.prunes_at_init and pruning.after not in ("rewind", "reinit"),
            "after",
            f"{method} prunes before it trains: rewind (the weights as they are) or reinit",
        ),
        (
            recipe.prunes_at_init and sees_flips(recipe),
            "criterion",
            f"'{pruning.criterion}' looks at sign flips, and before training there are none",
        ),
        (
            pruning.rounds > 1 and not recipe.prunes_at_init,
            "rounds",
            f"belongs to methods at_init and dynamic, not to {method}",
        ),
    ]
    found: list[Problem] = [(("pruning", name), message) for is_broken, name, message in rules if is_broken]
    if recipe.train.sparsify and method not in ("imp", "oneshot", "early_bird"):
        message = f"draws the weights of a trained level 0 to zero, which {method} does not prune"
        found.append((("train", "sparsify"), message))
    return found
