"""What a recipe names, looked up: plugins, criteria, models and data; and the name of its run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch

from ticketlab.data.batches import Splits, split
from ticketlab.data.dataset import Dataset
from ticketlab.data.files import Places
from ticketlab.data.sources import datasets, load_with_stand_in
from ticketlab.errors import PluginError, PruningError, TicketlabError
from ticketlab.models.build import find_builder
from ticketlab.pruning.criteria import Evidence, criteria
from ticketlab.recipe import DataSection, Recipe, recipe_hash
from ticketlab.recipe_file import Problem, RecipeFile
from ticketlab.registry import check_options, did_you_mean, file_digest, load_file
from ticketlab.workflows.amounts import check_amounts
from ticketlab.workflows.rewiring import check_dynamic
from ticketlab.workflows.schedule import check_counting
from ticketlab.workflows.targets import check_method
from ticketlab.workflows.ticket_source import check_ticket


@dataclass(frozen=True)
class Data:
    """The data set in use and, where it is a stand-in, what for and why."""

    dataset: Dataset
    stand_in_for: str | None = None
    reason: str | None = None


Load = Callable[[RecipeFile, Places], tuple[RecipeFile, Data]]
"""How `load_data` is called."""


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


def split_data(file: RecipeFile, data: Data) -> Splits:
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
