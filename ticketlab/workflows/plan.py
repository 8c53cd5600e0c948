"""From a recipe (names and numbers) to a plan (the objects they stand for): the last point where it can be wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from ticketlab.data.batches import Splits, split, steps_per_epoch
from ticketlab.data.dataset import Dataset
from ticketlab.data.files import Places
from ticketlab.data.sources import datasets, load_with_stand_in
from ticketlab.errors import FusionError, PluginError, PruningError, TicketlabError
from ticketlab.fusion.paths import Paths
from ticketlab.models.build import find_builder
from ticketlab.models.compact import NORMS
from ticketlab.pruning.allocate import Pool, keep_at, keep_by_shape, keep_count, keep_cubic, make_pools
from ticketlab.pruning.criteria import Evidence, criteria
from ticketlab.pruning.masks import Mask, full_mask
from ticketlab.recipe import DataSection, Recipe, Where, recipe_hash
from ticketlab.recipe_file import Problem, RecipeFile
from ticketlab.registry import check_options, did_you_mean, file_digest, load_file
from ticketlab.report import SAME_DENSITY
from ticketlab.training.gradients import check_surgeon
from ticketlab.workflows.amounts import check_amounts
from ticketlab.workflows.build import build_model, check_model
from ticketlab.workflows.rewiring import Rewiring, check_dynamic, check_rewiring, make_rewiring
from ticketlab.workflows.schedule import Schedule, check_counting, check_schedule, make_schedule
from ticketlab.workflows.targets import EarlyBird, check_method, check_search, make_search
from ticketlab.workflows.ticket_source import TicketSource, check_ticket


@dataclass(frozen=True)
class Data:
    """The data set in use and, where it is a stand-in, what for and why."""

    dataset: Dataset
    stand_in_for: str | None = None
    reason: str | None = None


Load = Callable[[RecipeFile, Places], tuple[RecipeFile, Data]]
"""How `load_data` is called."""


@dataclass(frozen=True)
class Plan:
    """Everything that a run needs, checked."""

    file: RecipeFile
    data: Data
    splits: Splits
    build: Callable[[int], nn.Module]
    """Seed → the network with its initial weights, on the CPU."""
    sizes: dict[str, int]
    """Weights of each prunable layer."""
    shapes: dict[str, tuple[int, ...]]
    """Shape of each prunable weight, (units, inputs, …)."""
    judged: dict[str, int]
    """What competes for its place: the same, or the channels of each group."""
    pools: list[Pool]
    steps_per_epoch: int
    steps: int
    """Optimizer step at which every level ends."""
    rewind: int
    """Step whose weights a ticket restarts from."""
    evaluate_every: int
    early_bird: EarlyBird | None = None
    """What is searched for while level 0 trains."""
    schedule: Schedule | None = None
    """When the one training of all levels is pruned; None where each level is a training of its own."""
    rewiring: Rewiring | None = None
    """When weights are replaced while levels train."""
    half_life: int | None = None
    """Steps after which a sign flip counts half."""
    source: TicketSource | None = None
    """Of a transfer: the run that its ticket comes from."""
    given: Mask | None = None
    """Of a transfer, the first replicate's mask; None until its source is looked up."""

    @property
    def recipe(self) -> Recipe:
        """The recipe as run: with the stand-in's name where one is used."""
        return self.file.recipe

    @property
    def name(self) -> str:
        """Name of the run directory."""
        return run_name(self.file)

    @property
    def hash(self) -> str:
        """Hash of what decides the results."""
        return run_hash(self.file)

    @property
    def levels(self) -> int:
        """Levels after level 0."""
        if self.recipe.method == "transfer":
            return 1
        return len(self.early_bird.targets) if self.early_bird else self.recipe.levels

    @cached_property
    def competing(self) -> list[str]:
        """Weights that may be removed; those of `pruning.ignore` may not."""
        return [name for name in self.sizes if any(name in pool.layers and pool.rate for pool in self.pools)]

    @property
    def has_channels(self) -> bool:
        """Whether tickets are smaller dense networks instead of masks."""
        return self.early_bird is not None and bool(self.early_bird.groups)

    @cached_property
    def paths(self) -> Paths:
        """Paths through the network; raises FusionError where it cannot be traced."""
        return Paths(self.build(0), self.data.dataset.input_shape)

    def keeps(self, level: int) -> list[int]:
        """Weights (or channels) that each pool keeps at a level."""
        if level and self.recipe.method == "transfer":
            assert self.given is not None, "the source is looked up before its ticket is counted"
            return [sum(int(self.given[name].sum()) for name in pool.layers) for pool in self.pools]
        if level and self.early_bird:
            return self.keeps_at(self.early_bird.targets[level - 1].density)
        if self.schedule and self.recipe.schedule.shape == "cubic":
            ends = zip(self.pools, self._keeps(self.levels), strict=True)
            return [keep_cubic(pool, self.judged, end, level, self.levels) for pool, end in ends]
        return self._keeps(level)

    def _keeps(self, level: int) -> list[int]:
        """Likewise, of prunings that each remove the same share."""
        densities = self.recipe.pruning.densities
        if level and densities:
            whole = self.levels if self.schedule else 1  # of one training, its last level has the density
            return self.keeps_at(densities[0] ** (level / whole) if self.schedule else densities[level - 1])
        return self._as_allocated([keep_count(pool, self.judged, level) for pool in self.pools])

    def keeps_at(self, density: float) -> list[int]:
        """Weights (or channels) that each pool keeps at a density."""
        rate = self.recipe.pruning.rate
        return self._as_allocated([keep_at(pool, self.judged, density, rate) for pool in self.pools])

    def _as_allocated(self, keeps: list[int]) -> list[int]:
        """As many weights in all, dealt out to layers by their shapes where the recipe says so."""
        allocation = self.recipe.pruning.allocation
        if allocation == "rate":
            return keeps
        known = {pool.layers[0]: keep for pool, keep in zip(self.pools, keeps, strict=True)}
        shapes = {pool.layers[0]: self.shapes[pool.layers[0]] for pool in self.pools if pool.rate}
        return list((known | keep_by_shape(shapes, sum(known[name] for name in shapes), allocation == "erk")).values())

    def keeps_on_the_way(self, level: int, done: float) -> list[int]:
        """Weights that each pool keeps when this share of the prunings to a level is over, by the same share each."""
        return [
            max(end, math.floor(count * (end / count) ** done + 0.5))
            for count, end in zip(self.keeps(0), self.keeps(level), strict=True)
        ]

    @property
    def densities(self) -> list[float]:
        """Density of each level."""
        total = sum(self.judged.values())
        return [sum(self.keeps(level)) / total for level in range(self.levels + 1)]

    def find_level(self, where: Where) -> int | None:
        """The level that is meant; None where there is none."""
        known = self.densities
        if where.level is not None:
            return where.level if where.level < len(known) else None
        wanted = where.density
        assert wanted is not None
        nearest = min(range(len(known)), key=lambda level: abs(known[level] - wanted))
        return nearest if abs(known[nearest] - wanted) <= SAME_DENSITY * wanted else None

    def start(self, level: int) -> int:
        """Step at which a level's training starts; for tickets that continue, the earliest one possible."""
        if self.schedule and level:
            return self.schedule.starts[level - 1]
        return 0 if level == 0 or self.recipe.pruning.after in ("reinit", "continue") else self.rewind

    def steps_from(self, level: int) -> int:
        """Optimizer steps of one replicate from a level on, as far as can be known before."""
        return sum(self.stop(index) - self.start(index) for index in range(level, self.levels + 1))

    def stop(self, level: int) -> int:
        """Step at which a level's training ends."""
        return self.start(level + 1) if self.schedule and level < self.levels else self.steps


def _stuck_at(pools: Sequence[Pool], sizes: Mapping[str, int], levels: int) -> int:
    """The first level that keeps what the one before it keeps; one more than `levels` where there is none."""
    before = [keep_count(pool, sizes, 0) for pool in pools]
    for level in range(1, levels + 1):
        keeps = [keep_count(pool, sizes, level) for pool in pools]
        if keeps == before:
            return level
        before = keeps
    return levels + 1


def run_name(file: RecipeFile) -> str:
    """Name of the run directory of a recipe that names the data in use."""
    variant = f"-{file.recipe.variant}" if file.recipe.variant else ""
    return f"{file.path.stem}{variant}-{run_hash(file)}"


def run_hash(file: RecipeFile) -> str:
    """Hash of what decides the results of a recipe that names the data in use."""
    return recipe_hash(file.recipe, user_files(file))


def user_files(file: RecipeFile) -> dict[str, str]:
    """Digest of each Python file that the recipe names."""
    named = [*file.recipe.plugins, *([file.recipe.model.file] if file.recipe.model.file else [])]
    return {name: file_digest(file.path.parent / name) for name in named}


def check_recipe(file: RecipeFile) -> None:
    """Load plugins and check every name and option; raises RecipeError that lists all problems."""
    problems: list[Problem] = []
    for index, name in enumerate(file.recipe.plugins):
        try:
            load_file(file.path.parent / name)
        except PluginError as error:
            problems.append((("plugins", index), str(error)))
    recipe = file.recipe
    if recipe.variants:
        names = ", ".join(recipe.variants)
        problems.append((("variants",), f"this command takes one recipe: choose with --set variant=NAME of {names}"))
    problems += _check(
        ("pruning", "criterion"), lambda: criteria.find(recipe.pruning.criterion), recipe.pruning.options
    )
    problems += _check_needs(recipe.pruning.criterion) or _check_values(recipe)
    problems += _check(("model", "name"), lambda: find_builder(recipe.model, file.path.parent), recipe.model.options)
    for key, data in (("name", recipe.data.name), ("offline", recipe.data.offline)):
        if data is not None:
            problems += _check(("data", key), partial(datasets.find, data), {})
    problems += check_method(recipe) + check_amounts(recipe) + check_dynamic(recipe)
    problems += check_counting(recipe) + check_ticket(recipe)
    if problems:
        raise file.error(problems)


def _check_needs(criterion: str) -> list[Problem]:
    """Evidence that a criterion asks for and no run records."""
    recorded = {field.name for field in fields(Evidence)}
    unknown = sorted(criteria.needs(criterion) - recorded) if criterion in criteria else []
    return [
        (("pruning", "criterion"), f"'{criterion}' needs '{name}', which no run records{did_you_mean(name, recorded)}")
        for name in unknown
    ]


def _check_values(recipe: Recipe) -> list[Problem]:
    """Options that a built-in criterion refuses, tried on two weights."""
    name, options = recipe.pruning.criterion, recipe.pruning.options
    if name not in criteria or not criteria.find(name).__module__.startswith("ticketlab.pruning"):
        return []
    some = torch.tensor([0.25, 0.75], dtype=torch.float64)
    known = {field.name: some for field in fields(Evidence)}
    evidence = Evidence(**{**known, "generator": torch.Generator(), "progress": 0.5})  # type: ignore[arg-type]
    try:
        criteria.find(name)(some, evidence, **options)
    except PruningError as error:
        return [(("pruning", "options"), str(error))]
    except TypeError:
        unknown = check_options(criteria.find(name), options)  # told elsewhere
        return [] if unknown else [(("pruning", "options"), f"options of '{name}' are numbers")]
    return []


def _check(key: tuple[str, str], find: Callable[[], Callable[..., Any]], options: Mapping[str, Any]) -> list[Problem]:
    try:
        function = find()
    except TicketlabError as error:
        return [(key, str(error))]
    return [((key[0], "options", option), message) for option, message in check_options(function, options)]


def load_data(file: RecipeFile, places: Places) -> tuple[RecipeFile, Data]:
    """The recipe's data set or its stand-in, and the recipe that names the one in use."""
    check_recipe(file)  # plugins may register data sets
    section = file.recipe.data
    dataset, reason = load_with_stand_in(section.name, section.offline, places)
    if reason is None:
        return file, Data(dataset, file.stand_in_for, "The run was made with it." if file.stand_in_for else None)
    # a stand-in is smaller: hold out at most a tenth of it, and leave a federation's clients half of the rest
    validation = min(section.validation, len(dataset.train_labels) // 10)
    half = (len(dataset.train_labels) - validation) // 2
    examples = None if section.examples is None else min(section.examples, half)
    recipe = file.recipe.with_data(dataset.name, validation, examples)
    return replace(file, recipe=recipe, stand_in_for=section.name), Data(dataset, section.name, reason)


def load_once() -> Load:
    """`load_data` that reads the data once for all recipes that use it in the same way."""
    loaded: dict[DataSection, Data] = {}

    def load(file: RecipeFile, places: Places) -> tuple[RecipeFile, Data]:
        section = file.recipe.data
        if section in loaded:
            return file, loaded[section]
        file, data = load_data(file, places)
        if data.stand_in_for is None:
            loaded[section] = data
        return file, data

    return load


def _split(file: RecipeFile, data: Data) -> Splits:
    """The recipe's split of its data; raises RecipeError where there are too few examples for it."""
    section, available = file.recipe.data, len(data.dataset.train_labels)
    if section.validation >= available:
        message = (
            f"only {available} training examples; {section.validation} is too many; write validation: {available // 8}"
        )
        raise file.error([(("data", "validation"), message)])
    if section.examples is not None and section.examples > available - section.validation:
        message = f"only {available - section.validation} training examples beside validation"
        raise file.error([(("data", "examples"), f"{message}; {section.examples} is too many")])
    return split(data.dataset, section.validation, section.split_seed, section.examples)


def make_plan(file: RecipeFile, data: Data) -> Plan:
    """Turn names into objects; raises RecipeError that lists everything that cannot be run."""
    check_recipe(file)
    recipe, train = file.recipe, file.recipe.train
    splits = _split(file, data)
    per_epoch = steps_per_epoch(len(splits.train), train.batch_size)
    problems = _check_times(recipe, per_epoch)
    if train.batch_size > len(splits.train):
        message = f"only {len(splits.train)} training examples beside validation; {train.batch_size} is too many"
        problems.append((("train", "batch_size"), message))
    if recipe.data.augment and not data.dataset.has_pictures:
        problems.append((("data", "augment"), f"pictures are cropped and flipped; {data.dataset.name} has none"))
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
        if train.slimming and not any(isinstance(layer, NORMS) and layer.affine for layer in model.modules()):
            problems.append((("train", "slimming"), "the model has no batch norm whose scales it could pull to zero"))
        if train.channels_last and not any(isinstance(layer, nn.Conv2d) for layer in model.modules()):
            problems.append((("train", "channels_last"), "the model has no convolution that it would speed up"))
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
