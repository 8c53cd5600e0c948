"""From a recipe (names and numbers) to a plan (the objects they stand for): the last point where it can be wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise

from torch import nn

from ticketlab.data.batches import steps_per_epoch
from ticketlab.errors import FusionError, PluginError, PruningError
from ticketlab.fusion.paths import Paths
from ticketlab.models.compact import NORMS
from ticketlab.pruning.allocate import Pool, keep_at, keep_count, make_pools
from ticketlab.pruning.masks import full_mask
from ticketlab.recipe import Recipe
from ticketlab.recipe_file import Problem, RecipeFile
from ticketlab.training.gradients import check_surgeon
from ticketlab.workflows.build import build_model, check_model
from ticketlab.workflows.inputs import Data, check_recipe, split_data
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.rewiring import check_rewiring, make_rewiring
from ticketlab.workflows.schedule import check_schedule, make_schedule
from ticketlab.workflows.targets import EarlyBird, check_search, make_search


def make_plan(file: RecipeFile, data: Data) -> Plan:
    """Turn names into objects; raises RecipeError that lists everything that cannot be run."""
    check_recipe(file)
    recipe, train = file.recipe, file.recipe.train
    splits = split_data(file, data)
    per_epoch = steps_per_epoch(len(splits.train), train.batch_size)
    problems = _check_times(recipe, per_epoch) + _check_examples(recipe, data, len(splits.train))
    shapes: dict[str, tuple[int, ...]] = {}
    sizes: dict[str, int] = {}
    judged: dict[str, int] = {}
    pools: list[Pool] = []
    search: EarlyBird | None = None
    build = partial(build_model, file, data.dataset)
    try:
        model = build(recipe.seed)
        shapes = check_model(model, data.dataset)
        judged = sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        problems += _check_layers(recipe, model)
        if recipe.pruning.reclaim:
            Paths(model, data.dataset.input_shape).reach(full_mask(model))
        if recipe.method == "early_bird" and not problems:
            search = make_search(recipe, model, data.dataset.input_shape, per_epoch)
            judged = {group.name: group.units for group in search.groups} or sizes
        pools = _pools(recipe, judged)
        if recipe.pruning.criterion == "obs" or recipe.pruning.compensate:
            check_surgeon(model, list(shapes))
    except FusionError as error:
        problems.append(
            (("pruning", "reclaim") if recipe.pruning.reclaim else ("early_bird", "granularity"), str(error))
        )
    except PruningError as error:
        problems.append((("pruning",), str(error)))
    except PluginError as error:
        problems.append((("model",), str(error)))
    if problems:
        raise file.error(problems)
    return Plan(
        file=file,
        data=data,
        splits=splits,
        build=build,
        sizes=sizes,
        shapes=shapes,
        judged=judged,
        pools=pools,
        steps_per_epoch=per_epoch,
        steps=train.steps.steps(per_epoch),
        rewind=recipe.pruning.rewind.steps(per_epoch),
        evaluate_every=train.evaluate_every.steps(per_epoch),
        early_bird=search,
        schedule=make_schedule(recipe, per_epoch) if recipe.prunes_in_training else None,
        rewiring=make_rewiring(recipe, per_epoch) if recipe.method == "dynamic" else None,
        half_life=recipe.sign_flips.half_life.steps(per_epoch) if recipe.sign_flips.half_life else None,
    )


def _check_examples(recipe: Recipe, data: Data, examples: int) -> list[Problem]:
    """Settings that do not fit the training examples."""
    problems: list[Problem] = []
    if recipe.train.batch_size > examples:
        message = f"only {examples} training examples beside validation; {recipe.train.batch_size} is too many"
        problems.append((("train", "batch_size"), message))
    if recipe.data.augment and not data.dataset.has_pictures:
        problems.append((("data", "augment"), f"pictures are cropped and flipped; {data.dataset.name} has none"))
    return problems


def _check_layers(recipe: Recipe, model: nn.Module) -> list[Problem]:
    """Settings for kinds of layers that the model does not have."""
    problems: list[Problem] = []
    if recipe.train.slimming and not any(isinstance(layer, NORMS) and layer.affine for layer in model.modules()):
        problems.append((("train", "slimming"), "the model has no batch norm whose scales it could pull to zero"))
    if recipe.train.channels_last and not any(isinstance(layer, nn.Conv2d) for layer in model.modules()):
        problems.append((("train", "channels_last"), "the model has no convolution that it would speed up"))
    return problems


def _check_times(recipe: Recipe, per_epoch: int) -> list[Problem]:
    """Times that do not fit together, once the length of an epoch is known."""
    stop, rewind = recipe.train.steps.steps(per_epoch), recipe.pruning.rewind.steps(per_epoch)
    problems: list[Problem] = []
    if stop == 0:
        problems.append((("train", "steps"), "training needs at least 1it"))
    elif rewind >= stop:
        message = f"step {rewind} is not before the end of training at step {stop}; rewind to an earlier step"
        problems.append((("pruning", "rewind"), message))
    elif recipe.method == "early_bird":
        problems += check_search(recipe, per_epoch)
    elif recipe.prunes_in_training:
        problems += check_schedule(recipe, per_epoch)
    elif recipe.method == "dynamic":
        problems += check_rewiring(recipe, per_epoch)
    return problems


def _first_keeps(pools: Sequence[Pool], sizes: Mapping[str, int], densities: Sequence[float], rate: float) -> list[int]:
    """What each pool keeps at the first density; raises PruningError for two that keep the same."""
    each = [[keep_at(pool, sizes, density, rate) for pool in pools] for density in densities]
    for one, other in pairwise(range(len(each))):
        if each[one] == each[other]:
            raise PruningError(f"densities {densities[one]} and {densities[other]} keep exactly the same here")
    return each[0]


def _pools(recipe: Recipe, sizes: Mapping[str, int]) -> list[Pool]:
    section = recipe.pruning
    pools = make_pools(sizes, section.scope, section.rate, section.output_rate, section.rates, section.ignore)
    if recipe.method == "transfer":
        return pools
    if recipe.method == "early_bird":
        keeps = _first_keeps(pools, sizes, sorted(recipe.early_bird.densities, reverse=True), section.rate)
    elif section.densities:
        keeps = _first_keeps(pools, sizes, section.densities, section.rate)
    else:
        keeps = [keep_count(pool, sizes, 1) for pool in pools]
        stuck = _stuck_at(pools, sizes, recipe.pruning.levels)
        if 1 < stuck <= recipe.pruning.levels:
            raise PruningError(f"nothing is left to remove from level {stuck} on; ask for at most {stuck - 1} levels")
    if section.criterion == "unit_l1" and any(list(sizes)[-1] in pool.layers and pool.rate for pool in pools):
        output = list(sizes)[-1].removesuffix(".weight")
        raise PruningError(f"unit_l1 would remove whole classes from the output layer: add ignore: [{output}]")
    if keeps == [keep_count(pool, sizes, 0) for pool in pools]:
        raise PruningError("nothing would ever be removed; raise the rate, lower the densities or ignore fewer layers")
    return pools


def _stuck_at(pools: Sequence[Pool], sizes: Mapping[str, int], levels: int) -> int:
    """The first level that keeps what the one before it keeps; one more than `levels` where there is none."""
    before = [keep_count(pool, sizes, 0) for pool in pools]
    for level in range(1, levels + 1):
        keeps = [keep_count(pool, sizes, level) for pool in pools]
        if keeps == before:
            return level
        before = keeps
    return levels + 1
