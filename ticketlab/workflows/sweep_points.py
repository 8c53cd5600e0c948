"""Lists in `--set`: which points a sweep has, and that every one of them can be run."""

from __future__ import annotations

import itertools
import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel

from ticketlab.errors import RecipeError, TicketlabError
from ticketlab.recipe import Recipe
from ticketlab.recipe_file import parse_value, read_recipe, unless_set
from ticketlab.registry import did_you_mean
from ticketlab.workflows.inputs import load_once
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.run import Machine, plan_on

MAX_POINTS = 1000
"""More are a mistake in typing."""

T = TypeVar("T")


@dataclass(frozen=True)
class Point:
    """One recipe of a sweep."""

    overrides: tuple[str, ...]
    """All of them, one value each."""
    swept: tuple[tuple[str, str], ...]
    """Field and value of those that differ between points."""

    @property
    def name(self) -> str:
        """What the user is told of it."""
        return ", ".join(f"{field}={value}" for field, value in self.swept)

    def settings(self) -> dict[str, Any]:
        """Swept fields and their values as YAML has them."""
        return {field: parse_value(value) for field, value in self.swept}


def points_of(overrides: Sequence[str], variants: Mapping[str, Sequence[str]] | None = None) -> list[Point]:
    """The points of each variant that is asked for, all if none is; without variants those of the overrides alone."""
    variants = variants or {}
    asked = [value for text in overrides for value in _values(text) if text.startswith("variant=")]
    if unknown := [name for name in asked if name not in variants]:
        raise RecipeError(f"--set variant={unknown[0]}: no such variant{did_you_mean(unknown[0], variants)}")
    if not variants:
        return _points(overrides)
    rest = [text for text in overrides if not text.startswith("variant=")]
    found = []
    for name in asked or variants:
        for point in _points([*unless_set(variants[name], rest), *rest]):
            found.append(Point((f"variant={name}", *point.overrides), (("variant", name), *point.swept)))
    return found


def _points(overrides: Sequence[str]) -> list[Point]:
    """The product of all lists of values; a single point where there is no list.

    `seed=0,1,2` lists values of a field that holds one; values of a field that holds a list are lists themselves:
    `early_bird.densities=[0.5],[0.2]`. Raises RecipeError that names every list that cannot be read so.
    """
    texts = [_values(text) for text in overrides]
    fields = [text.partition("=")[0] for text in overrides]
    problems = [problem for text, values in zip(overrides, texts, strict=True) for problem in _problems(text, values)]
    swept = [field for field, values in zip(fields, texts, strict=True) if len(values) > 1]
    problems += [f"--set {field}: is set more than once" for field in dict.fromkeys(swept) if fields.count(field) > 1]
    if math.prod(map(len, texts)) > MAX_POINTS:
        problems.append(f"--set: these lists make {math.prod(map(len, texts)):,} points; {MAX_POINTS:,} at most")
    if problems:
        raise RecipeError("\n".join(problems))
    found = []
    for values in itertools.product(*texts):
        one = tuple(
            text if len(choices) == 1 else f"{field}={value}"
            for text, field, choices, value in zip(overrides, fields, texts, values, strict=True)
        )
        differing = zip(fields, values, texts, strict=True)
        found.append(Point(one, tuple((field, value) for field, value, choices in differing if len(choices) > 1)))
    return found


def _values(override: str) -> list[str]:
    """The parts of an override's value between commas that stand in no bracket and no quotes."""
    parts, depth, quote = [""], 0, ""
    for character in override.partition("=")[2]:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and not parts[-1].strip():
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += character
    return [part.strip() for part in parts]


def _problems(override: str, values: Sequence[str]) -> Iterator[str]:
    """What makes a list of values no sweep."""
    field, _, text = override.partition("=")
    if len(values) == 1:
        return
    if "" in values:
        yield f"--set {override}: a value between two commas is missing (a text with a comma stands in quotes)"
    elif len(set(values)) < len(values):
        yield f"--set {override}: a value is there twice"
    elif _holds_list(field) and not all(value.startswith("[") for value in values):
        lists = ",".join(value if value.startswith("[") else f"[{value}]" for value in values)
        one = "" if any(value.startswith("[") for value in values) else f"{field}=[{text}] for one list, or "
        yield f"--set {override}: {field} is a list; write {one}{field}={lists} for a sweep over lists"


def _holds_list(field: str) -> bool:
    """Whether a field of the recipe is a list; free options and unknown fields are not."""
    found: Any = Recipe
    for part in field.split("."):
        if not (isinstance(found, type) and issubclass(found, BaseModel)) or part not in found.model_fields:
            return False
        found = found.model_fields[part].annotation
        if get_origin(found) in (Union, types.UnionType):
            found = next(kind for kind in get_args(found) if kind is not types.NoneType)
    return get_origin(found) is tuple


def check_points(recipe: Path, points: Sequence[Point], machine: Machine, look: Callable[[Plan], T]) -> list[T]:
    """Plan every point and look at each plan; raises RecipeError with all that is wrong with any of them."""
    load = load_once()
    found: list[T] = []
    names: dict[str, Point] = {}
    wrong: dict[str, list[Point]] = {}
    for point in points:
        try:
            plan = plan_on(read_recipe(recipe, point.overrides), machine, load)
            if plan.name in names:
                raise RecipeError(_same(names[plan.name], point))
            names[plan.name] = point
            found.append(look(plan))
        except TicketlabError as error:
            for line in str(error).splitlines():
                wrong.setdefault(line, []).append(point)
    if wrong:
        told = (
            line if len(of) == len(points) or of[0].name in line else f"{line} (with {of[0].name})"
            for line, of in wrong.items()
        )
        raise RecipeError("\n".join(told))
    return found


def _same(one: Point, other: Point) -> str:
    return (
        f"--set: {one.name} and {other.name} are one and the same run; replicates and levels can be added to a run "
        "later, so ask for the largest number alone"
    )
