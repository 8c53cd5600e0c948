"""Runs as lines of a list: what each is and what came of it; some of them, in an order."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ticketlab.errors import TicketlabError
from ticketlab.recipe_file import read_recipe
from ticketlab.registry import did_you_mean
from ticketlab.report import sparsest, state, summarise
from ticketlab.runs.results import FEDERATED, FUSED
from ticketlab.runs.store import RunStore
from ticketlab.runs.whole import outdated

WHERE = re.compile(r"\s*(\w+)\s*(<=|>=|!=|==|=|<|>)\s*(.+?)\s*")
COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    "=": operator.eq, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One run; what is unknown, or has no meaning for its kind, is None."""

    run: str
    kind: str | None = None
    """What made it: prune, fuse, study or federate."""
    recipe: str | None = None
    method: str | None = None
    model: str | None = None
    data: str | None = None
    stand_in_for: str | None = None
    derived_from: str | None = None
    state: str = "damaged"
    replicates: int = 0
    levels: int = 0
    """Finished by every replicate."""
    density: float | None = None
    """Of the sparsest level that every replicate has finished; of a federation, what it ended with."""
    test_accuracy: float | None = None
    """Mean over replicates, at that density."""
    seconds: float | None = None
    """Of all training in it."""
    created: str | None = None
    updated: str | None = None


SAME = 1e-3
"""Numbers that differ by no more than this share of themselves count as one, because lists show few digits."""
FIELDS = {field.name: str(field.type) for field in fields(Line)}


def line(store: RunStore) -> tuple[Line, str | None]:
    """A run's line, and what is wrong with it; a damaged run has one too, so that it does not hide the others."""
    known = Line(str(store.path))
    try:
        manifest = store.read_manifest()
        told = {name: manifest[name] for name in FIELDS if name in manifest}
        known = replace(known, **{**told, "run": str(store.path), "kind": store.kind, "state": state(store, manifest)})
        return replace(known, model=_model(store), **_results(store)), None
    except TicketlabError as error:
        return replace(known, state="damaged"), str(error)
    except (KeyError, TypeError) as error:
        return replace(known, state="damaged"), str(outdated(str(store.path), error))


def _results(store: RunStore) -> dict[str, Any]:
    """What came of a run, as far as it is known."""
    if store.has_result(FUSED):
        record = store.read_result(FUSED)
        return {"test_accuracy": record["after"]["test_accuracy"], "seconds": record["seconds"]}
    if store.has_result(FEDERATED):
        rounds = store.read_result(FEDERATED)["rounds"]
        seconds = sum(one["seconds"] for one in rounds)
        return {"density": rounds[-1]["density"], "test_accuracy": rounds[-1]["test_accuracy"], "seconds": seconds}
    if store.kind != "prune":
        return {}
    found = [store.levels(replicate) for replicate in store.replicates()]
    common = min(map(len, found), default=0)
    results: dict[str, Any] = {
        "replicates": len(found),
        "levels": common,
        "seconds": sum(level.seconds for levels in found for level in levels),
    }
    if common:
        end = sparsest(summarise([level for levels in found for level in levels[:common]]))
        results |= {"density": end.density, "test_accuracy": end.test_accuracy.mean}
    return results


def _model(store: RunStore) -> str | None:
    """Name of the recipe's model; None where there is no recipe that this version can read."""
    try:
        return read_recipe(store.witness).recipe.model.name if store.witness.exists() else None
    except TicketlabError:
        return None


def fitting(lines: Iterable[Line], conditions: Sequence[str]) -> list[Line]:
    """Lines for which all conditions such as `density<0.1` or `method=imp` hold; what is unknown fits none.

    Raises TicketlabError for a condition that cannot be read, or about a field that no line has.
    """
    tests = [_test(text) for text in conditions]
    return [one for one in lines if all(test(one) for test in tests)]


def _test(text: str) -> Callable[[Line], bool]:
    found = WHERE.fullmatch(text)
    if not found:
        raise TicketlabError(f"--where {text}: write it as FIELD<VALUE, such as density<0.1 or method=imp")
    name, sign, wanted = found.groups()
    value = _value(name, wanted, text)

    def test(one: Line) -> bool:
        known = getattr(one, name)
        if name == "run" and Path(wanted).name == wanted:  # a name, where the field has a path
            known = Path(known).name
        if isinstance(value, float) and known is not None and math.isclose(known, value, rel_tol=SAME):
            known = value  # as it is shown
        return known is not None and COMPARE[sign](known, value)

    return test


def _value(name: str, text: str, condition: str) -> str | float:
    """What a field is compared with, as the field's type has it."""
    if name not in FIELDS:
        raise TicketlabError(f"--where {condition}: no field '{name}'{did_you_mean(name, FIELDS)}")
    if FIELDS[name].startswith("str"):
        return text
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise TicketlabError(f"--where {condition}: {name} is a number, '{text}' is none") from error


def ordered(lines: Sequence[Line], by: str | None) -> list[Line]:
    """Lines with the largest value of a field last, or of `-FIELD` the smallest; those without one come first.

    As they come where no field is named.
    """
    if by is None:
        return list(lines)
    name = by.removeprefix("-")
    if name not in FIELDS:
        raise TicketlabError(f"--sort {by}: no such field{did_you_mean(name, FIELDS)}")
    known = [one for one in lines if getattr(one, name) is not None]
    unknown = [one for one in lines if getattr(one, name) is None]
    return unknown + sorted(known, key=lambda one: getattr(one, name), reverse=name != by)
