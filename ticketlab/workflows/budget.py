"""A run that fits in a time: how long the network takes here, then replicates, levels and steps by priority.

    1.  2 replicates of at least 1.5 epochs a level, as far down as fits, at most to the recipe's last level
    2.  replicates, up to 5 or the recipe's number
    3.  steps, up to the recipe's

Replicates come before steps because of what an interval costs: its half-width is 9.0 standard deviations with 2
replicates, 2.5 with 3, 1.6 with 4 and 1.2 with 5 (Student's t).
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ticketlab.errors import RecipeError, RunError, Stop, TicketlabError
from ticketlab.recipe_file import RecipeFile
from ticketlab.report import deviation, half_width, run_levels
from ticketlab.runs.find import list_runs
from ticketlab.runs.manifest import short_hash
from ticketlab.steps import Duration
from ticketlab.workflows.inputs import user_files
from ticketlab.workflows.pace import Pace, measure_at_work
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.run import Machine, plan_on

FEWEST, ENOUGH = 2, 5
"""Replicates: below the first there is no interval; beyond the second it hardly narrows."""
FEWEST_EPOCHS = 1.5
"""Passes over the training data in a level."""
USED = 0.95
"""Share of the budget that is planned; the rest is for what nobody foresees."""
DEVIATION = 0.0015
"""Standard deviation of test accuracy between seeds where no run tells: as of LeNet-300-100 on MNIST."""
OF_ITS_OWN = {("train", "steps"), ("train", "evaluate_every")}
"""Times that do not shrink with the training."""


@dataclass(frozen=True)
class Choice:
    """What fits."""

    replicates: int
    levels: int
    steps: int
    seconds: float
    """Expected, from now on."""


@dataclass(frozen=True)
class Budget:
    """A run chosen for a budget."""

    asked: str
    key: str
    """The same for the same recipe and budget."""
    overrides: tuple[str, ...]
    """What the choice sets, beside what the user set."""
    reasons: tuple[str, ...]
    kept_in: Path | None = None
    """The run in whose manifest an earlier command left the choice."""

    def record(self) -> dict[str, Any]:
        """For the run's manifest: the choice by its key."""
        return {self.key: {"budget": self.asked, "set": list(self.overrides), "reasons": list(self.reasons)}}


def parse_budget(text: str) -> float:
    """Seconds of `90s`, `10m` or `1.5h`; raises TicketlabError that shows them."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)", text)
    if found is None or float(found[1]) == 0:
        raise TicketlabError(f"--budget {text}: write a time as 90s, 10m or 1.5h")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def plan_budget(file: RecipeFile, asked: str, machine: Machine, should_stop: Stop) -> Budget:
    """Choose a run that fits, or find what was chosen before; raises RecipeError where none fits."""
    # the time that it took to start this program went into its processor time
    began = time.monotonic() - time.process_time()
    seconds = parse_budget(asked)
    device = machine.chosen_device()
    if machine.engine.name == "ray":
        raise TicketlabError("--budget times this machine; on Ray, say --set train.steps, levels and replicates")
    plan = plan_on(file, machine)
    if plan.early_bird:
        raise RecipeError("--budget: nobody knows when an early-bird search ends; set train.steps, and see --dry-run")
    if plan.source:
        raise RecipeError("--budget: a transfer has no levels to choose; set train.steps, and see --dry-run")
    if file.recipe.pruning.densities:
        raise RecipeError("--budget: pruning.densities say which levels there are; set replicates and train.steps")
    key = short_hash([plan.recipe.model_dump(mode="json"), user_files(file), seconds])
    kept = _kept(machine.runs, key)
    if kept is not None:
        folder, record = kept
        return Budget(asked, key, tuple(record["set"]), tuple(record["reasons"]), folder)
    workers = machine.workers_for(_most(plan), device)
    pace = measure_at_work(plan, machine, device, workers, should_stop)
    left = USED * seconds - (time.monotonic() - began)
    choice = choose(plan, pace, left, workers)
    spent = time.monotonic() - began
    reasons = (*_timing(plan, pace, workers), *_why(plan, choice), *_expected(plan, choice, spent, asked, machine.runs))
    return Budget(asked, key, _overrides(plan, choice), reasons)


def choose(plan: Plan, pace: Pace, left: float, workers: int) -> Choice:
    """The best run by priority that takes at most `left` seconds; raises RecipeError that names the least budget."""

    def seconds(replicates: int, levels: int, steps: int) -> float:
        return math.ceil(replicates / workers) * replicate_seconds(plan, pace, levels, steps)

    fewest = min(plan.steps, math.ceil(FEWEST_EPOCHS * plan.steps_per_epoch))
    # where one training goes through all levels, their number belongs to the schedule
    ladder = [plan.levels] if plan.schedule else range(min(1, plan.levels), plan.levels + 1)
    fitting = [levels for levels in ladder if seconds(FEWEST, levels, fewest) <= left]
    if not fitting:
        least = seconds(FEWEST, ladder[0], fewest)
        raise RecipeError(
            f"--budget: {FEWEST} replicates of levels 0 to {ladder[0]}, of {fewest} steps each, take {least:.0f} s "
            f"here; {max(left, 0):.0f} s are left after timing: give {math.ceil((least - left) / USED / 5) * 5} s more"
        )
    levels = fitting[-1]
    replicates = max(n for n in range(FEWEST, _most(plan) + 1) if seconds(n, levels, fewest) <= left)
    steps = fewest
    for more in _grid(plan, fewest):
        if seconds(replicates, levels, more) <= left:
            steps = more
    return Choice(replicates, levels, steps, seconds(replicates, levels, steps))


def replicate_seconds(plan: Plan, pace: Pace, levels: int, steps: int) -> float:
    """One replicate with so many levels, its trainings shortened to `steps` with everything that has a time in them."""
    shrunk = steps / plan.steps
    spans = (round((plan.stop(level) - plan.start(level)) * shrunk) for level in range(levels + 1))
    return pace.start + sum(pace.level_seconds(plan, level, span) for level, span in enumerate(spans))


def _most(plan: Plan) -> int:
    return max(ENOUGH, plan.recipe.replicates)


def _grid(plan: Plan, fewest: int) -> Iterator[int]:
    """Lengths of training between the fewest steps and the recipe's, on the evaluation grid."""
    every = plan.evaluate_every
    yield from range((fewest // every + 1) * every, plan.steps, every)
    yield plan.steps


def _overrides(plan: Plan, choice: Choice) -> tuple[str, ...]:
    """The choice as `--set` has it; other times shrink with the training."""
    changed = [f"replicates={choice.replicates}", f"pruning.levels={choice.levels}", f"train.steps={choice.steps}it"]
    if choice.steps == plan.steps:
        return tuple(changed)
    shrunk = choice.steps / plan.steps
    changed += [
        f"{'.'.join(field)}={_shrunk(value, plan.steps_per_epoch, shrunk)}"
        for field, value in _times(plan.recipe, ())
        if field not in OF_ITS_OWN
    ]
    return tuple(changed)


def _times(section: BaseModel, within: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every time above 0, and every list of times, in a recipe, with its field."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _times(value, (*within, name))
        times = value if isinstance(value, tuple) else (value,)
        if name in section.model_fields_set and times and all(isinstance(t, Duration) and t.count for t in times):
            yield (*within, name), value


def _shrunk(value: Duration | Sequence[Duration], per_epoch: int, share: float) -> str:
    if isinstance(value, Duration):
        return f"{max(1, round(value.steps(per_epoch) * share))}it"
    return f"[{', '.join(_shrunk(item, per_epoch, share) for item in value)}]"


def _kept(runs: Path, key: str) -> tuple[Path, Mapping[str, Any]] | None:
    """The choice that an earlier command made for the same recipe and budget, in its run's manifest."""
    for run in reversed(list_runs(runs)):
        try:
            record = run.read_manifest().get("budgets", {}).get(key)
        except RunError:
            continue  # a damaged run hides no other
        if record is not None:
            return run.path, record
    return None


def _timing(plan: Plan, pace: Pace, workers: int) -> Iterator[str]:
    last = max(pace.steps)
    share = sum(plan.keeps(last)) / sum(plan.judged.values())
    yield (
        f"timed here, {workers} at a time: {1e3 * pace.step(0):.2f} ms a dense step, {1e3 * pace.step(last):.2f} ms at "
        f"{100 * share:.3g} % of the weights, {1e3 * pace.example * len(plan.splits.validation):.0f} ms to read the "
        f"validation set, {pace.level:.1f} s a level for the rest, {pace.start:.1f} s to start a process"
    )


def _why(plan: Plan, choice: Choice) -> Iterator[str]:
    share = 100 * sum(plan.keeps(choice.levels)) / sum(plan.judged.values())
    target = 100 * sum(plan.keeps(plan.levels)) / sum(plan.judged.values())
    reached = "as the recipe says" if choice.levels == plan.levels else f"the recipe's {target:.3g} % do not fit"
    yield f"{choice.levels} of {plan.levels} levels, down to {share:.3g} % of the weights: {reached}"
    narrow = half_width(1.0, choice.replicates)
    yield (
        f"{choice.replicates} replicates: the interval's half-width is {narrow:.1f} standard deviations"
        + ("" if choice.replicates >= ENOUGH else f"; {ENOUGH}, with {half_width(1.0, ENOUGH):.1f}, do not fit")
    )
    epochs = choice.steps / plan.steps_per_epoch
    yield (
        f"{choice.steps:,} of {plan.steps:,} steps a training ({epochs:.1f} epochs): "
        + ("as the recipe says" if choice.steps == plan.steps else "levels and replicates come first, down to ")
        + ("" if choice.steps == plan.steps else f"{FEWEST_EPOCHS} epochs")
    )


def _expected(plan: Plan, choice: Choice, spent: float, asked: str, runs: Path) -> Iterator[str]:
    yield f"expected: {spent:.0f} s until now and {choice.seconds:.0f} s of training, of {asked}"
    between, source = seed_deviation(plan, choice.steps, runs)
    half = 100 * half_width(between, choice.replicates)
    yield f"expected 95 % interval of test accuracy: ± {half:.2f} points, from {100 * between:.2f} points {source}"


def seed_deviation(plan: Plan, steps: int, runs: Path) -> tuple[float, str]:
    """Standard deviation of test accuracy between seeds, and where it comes from.

    That is the run of the recipe with most replicates, of those that train for half to twice as many steps.
    """
    found = []
    wanted = (plan.file.path.stem, plan.recipe.method, plan.data.dataset.name)
    for run in list_runs(runs):
        try:
            manifest, levels = run.read_manifest(), run_levels(run)
        except RunError:
            continue
        made = (manifest.get("recipe"), manifest.get("method"), manifest.get("data"))
        between = deviation(levels)
        if made == wanted and between is not None and steps <= 2 * levels[0].steps <= 4 * steps:
            found.append((len(run.replicates()), between, run.name))
    if not found:
        return (
            DEVIATION,
            "between seeds, as LeNet-300-100 on MNIST has them: no run of this recipe, about as long, is here yet",
        )
    count, between, name = max(found)
    return between, f"between the {count} replicates of {name}"
