"""How much is pruned, in which steps and layers, and by which evidence: what cannot be asked of a method."""

from __future__ import annotations

from itertools import pairwise

from ticketlab.pruning.criteria import criteria
from ticketlab.recipe import PruningSection, Recipe
from ticketlab.recipe_file import Problem
from ticketlab.training.gradients import MEASURED
from ticketlab.workflows.schedule import sees_flips

Rule = tuple[bool, str, str]
"""Whether it is broken, the field of the pruning section, and what is wrong."""


def check_amounts(recipe: Recipe) -> list[Problem]:
    """Settings that the recipe's method would ignore, or cannot follow."""
    rules = [*_of_densities(recipe), *_of_layers(recipe), *_of_evidence(recipe), *_at_init(recipe)]
    found: list[Problem] = [(("pruning", name), message) for is_broken, name, message in rules if is_broken]
    return found + _of_sparsify(recipe)


def _of_densities(recipe: Recipe) -> list[Rule]:
    method, pruning, usual = recipe.method, recipe.pruning, PruningSection()
    given = pruning.densities
    return [
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
    ]


def _of_layers(recipe: Recipe) -> list[Rule]:
    pruning, by_shape = recipe.pruning, recipe.pruning.allocation != "rate"
    of_channels = recipe.method == "early_bird" and recipe.early_bird.granularity == "channels"
    return [
        (by_shape and pruning.scope == "global", "allocation", f"{pruning.allocation} belongs to scope: layer"),
        (
            by_shape and (bool(pruning.rates) or pruning.output_rate is not None),
            "allocation",
            f"{pruning.allocation} decides how much of each layer goes; leave rates and output_rate out",
        ),
        (by_shape and of_channels, "allocation", f"{pruning.allocation} counts single weights, not channels"),
    ]


def _of_evidence(recipe: Recipe) -> list[Rule]:
    method, pruning = recipe.method, recipe.pruning
    name = pruning.criterion
    measured = looks_at_examples(name)
    restarts = method in ("imp", "oneshot") and pruning.after in ("lr_rewind", "finetune")
    is_known = name in criteria  # one that is not is told of elsewhere
    is_idle = is_known and pruning.examples != PruningSection().examples and not measured and not pruning.compensate
    return [
        (
            pruning.compensate and not restarts,
            "compensate",
            "makes up with trained weights: methods imp and oneshot with after: lr_rewind or finetune",
        ),
        (is_idle, "examples", f"'{name}' looks at no examples; leave it out"),
        (measured and method == "early_bird", "criterion", f"'{name}' looks at examples, which a search does not"),
        (
            name == "obs" and method != "oneshot",
            "criterion",
            "'obs' judges weights of a layer that has lost none: use method: oneshot",
        ),
    ]


def looks_at_examples(criterion: str) -> bool:
    """Whether a criterion needs the network and training examples, beside its weights."""
    return criterion in criteria and bool(criteria.needs(criterion) & set(MEASURED))


def _at_init(recipe: Recipe) -> list[Rule]:
    method, pruning = recipe.method, recipe.pruning
    return [
        (
            recipe.prunes_at_init and pruning.after not in ("rewind", "reinit"),
            "after",
            f"{method} prunes before it trains: rewind (the weights as they are) or reinit",
        ),
        (
            recipe.prunes_at_init and pruning.after == "reinit" and pruning.rewind.count > 0,
            "rewind",
            "reinit trains from the beginning; leave it out",
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


def _of_sparsify(recipe: Recipe) -> list[Problem]:
    section, train = recipe.train.sparsify, recipe.train
    if section is None:
        return []
    problems: list[Problem] = []
    if recipe.method not in ("imp", "oneshot", "early_bird"):
        message = f"draws the weights of a trained level 0 to zero, which {recipe.method} does not prune"
        problems.append((("train", "sparsify"), message))
    if section.is_gated and recipe.method == "early_bird":
        message = f"{section.kind} has gates of its own, under which a search sees no masks; use method: imp or oneshot"
        problems.append((("train", "sparsify"), message))
    if section.kind == "l0" and recipe.pruning.after == "rewind" and recipe.pruning.rewind.count:
        message = (
            "l0 trains weights for what its gates let through, and from this step on they would be without; use 0it"
        )
        problems.append((("pruning", "rewind"), message))
    if section.kind == "global_sparse_momentum" and not (train.momentum and train.weight_decay):
        message = "global_sparse_momentum needs optimizer: sgd with momentum and weight_decay, which shrinks the others"
        problems.append((("train", "sparsify"), message))
    return problems
