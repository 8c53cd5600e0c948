"""Claims of a recipe, measured: what is missing is run first, then each claim gets its interval and verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from ticketlab.claims import (
    Bounds,
    Values,
    expected_in_words,
    measured,
    measured_in_words,
    seeds_to_decide,
    terms,
    verdict,
)
from ticketlab.errors import RecipeError, RunError, Stop, TicketlabError
from ticketlab.pruning.controls import controls
from ticketlab.pruning.criteria import criteria
from ticketlab.recipe import ClaimSection
from ticketlab.recipe_file import Problem, RecipeFile, override
from ticketlab.registry import did_you_mean
from ticketlab.runs.results import CLAIMS, control_folder
from ticketlab.runs.store import RunStore
from ticketlab.workflows.controls import control_run
from ticketlab.workflows.inputs import load_once
from ticketlab.workflows.learn_mask import WEIGHTS
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.run import Event, Machine, plan_on, told
from ticketlab.workflows.stability import BranchPoint, Interpolation, barriers_by_seed
from ticketlab.workflows.stability_search import Analysis, stability_run
from ticketlab.workflows.supermask import NO_MASK, check_supermasks, supermask_run, untrained_accuracy
from ticketlab.workflows.ticket_source import check_restarts
from ticketlab.workflows.trunk import Branched, data_facts, pruned

BARRIER = "barrier"
OWN = ("ticket", "dense")
"""Terms that stand for networks of the run itself."""
SUPERMASK = "supermask"
"""Terms such as `supermask.magnitude.init`: untrained weights under a criterion's mask, or under `no_mask`."""


@dataclass(frozen=True)
class Claim:
    """A claim whose names all stand for something."""

    section: ClaimSection
    level: int
    terms: tuple[str, ...]
    levels: Mapping[str, int]
    """Level of each of `others` in its own run."""

    @property
    def controls(self) -> list[str]:
        """Terms that are controls of the level."""
        return [name for name in self.terms if name in controls]

    def place(self, term: str) -> tuple[tuple[str, ...], int]:
        """Overrides of the run, and the level in it, of a term that is no control."""
        if term in self.section.others:
            return self.section.others[term], self.levels[term]
        return (), 0 if term == "dense" else self.level

    @property
    def supermasks(self) -> list[tuple[str, str]]:
        """Criterion and kind of weights of terms that are supermasks."""
        return [mask for mask in map(_supermask, self.terms) if mask]

    @property
    def bounds(self) -> Bounds:
        """Where the mean is expected."""
        section = self.section
        if section.expected is not None and section.tolerance is not None:
            return Bounds(section.expected - section.tolerance, section.expected + section.tolerance)
        low, high = section.at_least, section.at_most
        return Bounds(-math.inf if low is None else low, math.inf if high is None else high)


def verify_run(
    file: RecipeFile, machine: Machine, should_stop: Stop = lambda: False, may_train: bool = True
) -> Iterator[Event | Branched | dict[str, Any]]:
    """Run what the claims of a recipe need, judge them; yields what is seen, at last the record.

    Args:
        may_train: False judges what is there.

    Raises RecipeError for claims that cannot be measured, RunError where nothing is there to judge.
    """
    planned = partial(plan_on, machine=machine, load=load_once())
    claims = find_claims(file, planned)
    seeds = max(file.recipe.replicates, *(claim.section.seeds for claim in claims))
    variants = dict.fromkeys(((), *(which for claim in claims for which in claim.section.others.values())))
    plans: dict[tuple[str, ...], Plan] = {}
    stores: dict[tuple[str, ...], RunStore] = {}
    for which in variants:
        # the claims are of this recipe's run; another one, newer than it, must not be taken for it
        wanted = override(file, [*which, f"replicates={seeds}", *(["claims=[]"] if which else [])])
        if which:
            wanted = replace(wanted, derived_from=stores[()].name)
        plans[which] = planned(wanted)
        if may_train:
            stores[which] = yield from pruned(plans[which], machine, should_stop)
        else:
            stores[which] = _existing(plans[which], machine)
    if may_train:
        yield from _beside(claims, stores, machine, should_stop)
    own = stores[()]
    with told(own):
        record = {
            "run": str(own.path),
            "recipe": file.path.stem,
            **data_facts(own),
            "claims": [_judged(claim, partial(_values, plans, stores, claim)) for claim in claims],
        }
        own.write_result(CLAIMS, record)
        _show(own, record)
    yield record


def _show(store: RunStore, record: Mapping[str, Any]) -> None:
    """Claims and verdicts, in TensorBoard."""
    from ticketlab.runs.tensorboard import write_table

    rows = [
        {
            "claim": one["claim"],
            "expected": expected_in_words(one),
            "measured": measured_in_words(one),
            "n": one["measured"]["n"] if one["measured"] else 0,
            "verdict": one["verdict"],
        }
        for one in record["claims"]
    ]
    write_table(store.path / "claims", "claims", rows, {})


def _beside(
    claims: Sequence[Claim], stores: Mapping[tuple[str, ...], RunStore], machine: Machine, stop: Stop
) -> Iterator[Event | Branched]:
    """Run what claims need beside the tickets of their runs."""
    store = stores[()]
    needed: list[Iterator[Event | Branched | dict[str, Any]]] = []
    for level in sorted({claim.level for claim in claims if claim.controls}):
        names = [name for claim in claims if claim.level == level for name in claim.controls]
        needed.append(control_run(store, [level], names, machine, stop))
    masks = [name for claim in claims for name, _ in claim.supermasks]
    if masks:
        drawn = [name for name in dict.fromkeys(masks) if name != NO_MASK]
        needed.append(supermask_run(store, drawn or ["magnitude"], None, machine, stop))
    barriers = dict.fromkeys(
        claim.place(name) for claim in claims if claim.section.metric == BARRIER for name in claim.terms
    )
    for which, level in barriers:
        needed.append(stability_run(stores[which], Analysis((level,)), machine, stop))
    for events in needed:
        yield from (event for event in events if not isinstance(event, dict))


def find_claims(file: RecipeFile, planned: Callable[[RecipeFile], Plan]) -> list[Claim]:
    """The recipe's claims; raises RecipeError that lists all that cannot be measured.

    Args:
        planned: Recipe → its plan on this machine.
    """
    plan = planned(file)
    found: list[Claim] = []
    problems: list[Problem] = []
    if not file.recipe.claims:
        raise file.error([(("claims",), "the recipe claims nothing; write what should hold under claims:")])
    for index, section in enumerate(file.recipe.claims):
        key = ("claims", index)
        try:
            names = tuple(terms(section.that))
        except ValueError as error:
            problems.append(((*key, "that"), str(error)))
            continue
        problems += [((*key, "that"), message) for message in _wrong_names(section, names)]
        levels: dict[str, int] = {}
        for name, overrides in section.others.items():
            try:
                if name in (*OWN, *controls, SUPERMASK):
                    raise RecipeError("is what something else is called already; choose another name")
                if name not in names:
                    raise RecipeError(f"is not in the claim's expression: {section.that}")
                levels[name] = _level_of_other(plan, planned(override(file, overrides)), section)
            except TicketlabError as error:
                problems.append(((*key, "others", name), str(error)))
        level = plan.find_level(section.at)
        if level is None:
            problems.append(((*key, "at"), f"no such level; there are {_levels(plan)}"))
        else:
            claim = Claim(section, level, names, levels)
            problems += [((*key, "at"), message) for message in _wrong_place(claim, plan)]
            found.append(claim)
    if problems:
        raise file.error(problems)
    return found


def _wrong_names(section: ClaimSection, names: Sequence[str]) -> Iterator[str]:
    """What is wrong with the names in a claim's expression."""
    masks = [f"{SUPERMASK}.{name}.{kind}" for name in (*criteria, NO_MASK) for kind in WEIGHTS]
    known = [*OWN, *controls, *section.others, *masks]
    for name in names:
        if name not in known:
            near = did_you_mean(name, known if "." in name else known[: -len(masks)])
            yield f"unknown name '{name}'{near}"
        elif _supermask(name) and section.metric != "test_accuracy":
            yield f"'{name}' has no {section.metric}; a network that is not trained has metric test_accuracy alone"
        elif name in controls and section.metric == BARRIER:
            yield f"'{name}' has no barrier; ticket and dense have one, and those of others"


def _level_of_other(plan: Plan, other: Plan, section: ClaimSection) -> int:
    """The level of another recipe that a claim is about; raises RecipeError where there is none."""
    if other.name == plan.name:
        raise RecipeError("is the very run that the claim is about; change a field that makes another one")
    level = other.find_level(section.at)
    if level is None:
        raise RecipeError(f"has no such level; there are {_levels(other)}")
    if section.metric == BARRIER:
        check_restarts(other.recipe, other.name)
    return level


def _wrong_place(claim: Claim, plan: Plan) -> Iterator[str]:
    """Why a claim's networks are not to be had at its level, or in its run."""
    if claim.controls and claim.level == 0:
        yield f"level 0 is the dense network, which has no {claim.controls[0]}; name a ticket's level"
    if "dense" in claim.terms and plan.early_bird:
        yield "the dense network of an early-bird run stops with its last draw; it is no measure"
    try:
        if claim.controls or claim.section.metric == BARRIER:
            check_restarts(plan.recipe, plan.name)
        if claim.supermasks:
            check_supermasks(plan.recipe, plan.name, [name for name, _ in claim.supermasks if name in criteria])
    except RunError as error:
        yield str(error)


def _supermask(name: str) -> tuple[str, str] | None:
    """Criterion and kind of weights, for a name of that form; else nothing."""
    head, *rest = name.split(".")
    return (rest[0], rest[1]) if head == SUPERMASK and len(rest) == 2 else None


def _levels(plan: Plan) -> str:
    return ", ".join(f"{level} ({density:.4g})" for level, density in enumerate(plan.densities))


def _existing(plan: Plan, machine: Machine) -> RunStore:
    store = RunStore(machine.runs / plan.name)
    if not store.replicates():
        raise RunError(f"{store.path}: there is no such run yet; leave --measured out and it is made")
    return store


def _values(
    plans: Mapping[tuple[str, ...], Plan], stores: Mapping[tuple[str, ...], RunStore], claim: Claim, term: str
) -> Values:
    """What a term was measured as, by seed."""
    if mask := _supermask(term):
        return untrained_accuracy(stores[()], *mask)
    which, level = claim.place(term)
    store = stores[which]
    if claim.section.metric == BARRIER:
        point = BranchPoint(store, level, plans[which].rewind, tuple(store.replicates()))
        return barriers_by_seed(point, Interpolation())
    folder = store.part(f"{control_folder(level)}/{term}") if term in claim.controls else store
    found = [folder.read_level(number, level) for number in store.replicates() if folder.has_level(number, level)]
    return {one.seed: float(getattr(one, claim.section.metric)) for one in found}


def _judged(claim: Claim, values: Callable[[str], Values]) -> dict[str, Any]:
    section = claim.section
    found, problem = None, None
    try:
        found = measured(section.that, {name: values(name) for name in claim.terms})
    except ArithmeticError as error:
        problem = str(error)  # of one claim nothing can be said; the others have their verdicts
    decided = verdict(found, claim.bounds, section.seeds)
    more = seeds_to_decide(found, claim.bounds, section.seeds) if found and decided == "not enough seeds" else None
    return {
        "claim": section.claim,
        "source": section.source,
        "that": section.that,
        "metric": section.metric,
        "level": claim.level,
        "expected": expectation(section),
        "measured": asdict(found) if found else None,
        "problem": problem,
        "seeds": section.seeds,
        "verdict": decided,
        "seeds_to_decide": more,
    }


def expectation(section: ClaimSection) -> dict[str, float]:
    """What a claim says about the mean, by the names of its fields."""
    values = {name: getattr(section, name) for name in ("at_least", "at_most", "expected", "tolerance")}
    return {name: value for name, value in values.items() if value is not None}


def failed(record: Mapping[str, Any]) -> Sequence[str]:
    """Claims that do not hold."""
    return [one["claim"] for one in record["claims"] if one["verdict"] == "fails"]
