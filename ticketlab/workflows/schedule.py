"""When a network that is training is pruned (methods sign_flip and gradual); what cannot be asked of these methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ticketlab.pruning.criteria import criteria
from ticketlab.recipe import PruningSection, Recipe, ScheduleSection, SignFlipsSection
from ticketlab.recipe_file import Problem

COUNTED = frozenset({"flips", "steadiness_rank"})
"""Evidence for which sign flips are counted."""


@dataclass(frozen=True)
class Schedule:
    """Prunings of one training, in steps."""

    starts: tuple[int, ...]
    """Step of each pruning, from level 1 on."""
    every: int
    stop: int
    """End of training."""
    at_once: int | None
    """Flips at which a weight goes at once; None: weights go at the starts only."""

    def completed(self, level: int) -> int:
        """Step at which a level has its density: its start or, where weights go at once, half an interval later."""
        return self.starts[level - 1] + (self.every // 2 if self.at_once else 0)


def make_schedule(recipe: Recipe, per_epoch: int) -> Schedule:
    """The prunings of a recipe, evenly spaced by whole steps.

    Where the recipe says nothing else, as long before the first and after the last one: FlipOut's schedule.
    """
    section, stop, levels = recipe.schedule, recipe.train.steps.steps(per_epoch), recipe.pruning.levels
    first, every, until = (
        time.steps(per_epoch) if time is not None else None for time in (section.first, section.every, section.until)
    )
    # intervals that the prunings divide: one more before the first where it is free, one more after the last likewise
    if every is None:
        span = (stop if until is None else until) - (first or 0)
        intervals = levels - 1 + (first is None) + (until is None)
        every = span // intervals if intervals else stop - (first or 0)
    first = every if first is None else first
    starts = tuple(first + every * index for index in range(levels))
    return Schedule(starts, every, stop, recipe.sign_flips.at_once)


def check_schedule(recipe: Recipe, per_epoch: int) -> list[Problem]:
    """Times that do not fit together, once the length of an epoch is known."""
    section, levels, stop = recipe.schedule, recipe.pruning.levels, recipe.train.steps.steps(per_epoch)
    named = {"first": section.first, "every": section.every, "until": section.until}
    given = {name: time.steps(per_epoch) for name, time in named.items() if time is not None}
    none: list[Problem] = [(("schedule", name), "must be at least 1it") for name, steps in given.items() if steps < 1]
    if levels < 1:
        none.append((("pruning", "levels"), f"method {recipe.method} prunes at least once"))
    return none or _check_until(given, levels, stop) or _check_prunings(recipe, given, make_schedule(recipe, per_epoch))


def _check_until(given: Mapping[str, int], levels: int, stop: int) -> list[Problem]:
    if "until" not in given:
        return []
    until, first = given["until"], given.get("first", 0)
    rules = {
        "say every or until, not both": "every" in given,
        f"step {until} does not come before the end of training at step {stop}": until >= stop,
        f"step {until} does not come after schedule.first, step {first}": until <= first,
        "with a single pruning, say first or until, not both": "first" in given and levels == 1,
    }
    problems: list[Problem] = [(("schedule", "until"), message) for message, is_broken in rules.items() if is_broken]
    return problems[:1]


def _check_prunings(recipe: Recipe, given: Mapping[str, int], made: Schedule) -> list[Problem]:
    levels, stop = recipe.pruning.levels, made.stop
    if made.every < 1 or made.starts[0] < 1:
        key = ("schedule", "until") if "until" in given else ("pruning", "levels")
        return [(key, f"{levels} prunings do not fit before step {given.get('until', stop)}")]
    if recipe.sign_flips.at_once and made.every < 2:
        return [(("sign_flips", "at_once"), "needs at least 2 steps from one level to the next")]
    if made.completed(levels) >= stop:
        what = f"the last of {levels} prunings, at step {made.starts[-1]}"
        return [(("schedule", next(iter(given), "first")), f"{what}, leaves no time before the end at step {stop}")]
    return []


def sees_flips(recipe: Recipe) -> bool:
    """Whether the criterion looks at sign flips."""
    known = recipe.pruning.criterion in criteria
    return known and bool(criteria.needs(recipe.pruning.criterion) & COUNTED)


def counts_flips(recipe: Recipe) -> bool:
    """Whether sign flips are counted: for the criterion, to remove weights at once, or to be looked at."""
    return sees_flips(recipe) or recipe.sign_flips.at_once is not None or "sign_flips" in recipe.watch


def check_counting(recipe: Recipe) -> list[Problem]:
    """Settings of schedule and sign flips that the recipe's method would ignore, or cannot follow."""
    method, pruning, flips = recipe.method, recipe.pruning, recipe.sign_flips
    sees, in_training = sees_flips(recipe), recipe.prunes_in_training
    of_channels = method == "early_bird" and recipe.early_bird.granularity == "channels"
    rules = [
        (
            in_training and pruning.after != PruningSection().after,
            (("pruning", "after"), f"{method} goes on with the weights as they are; leave it out"),
        ),
        (
            in_training and pruning.rewind.count > 0,
            (("pruning", "rewind"), f"{method} goes on with the weights as they are; leave it out"),
        ),
        (
            not in_training and recipe.schedule != ScheduleSection(),
            (("schedule",), f"belongs to methods sign_flip and gradual, not to {method}"),
        ),
        (
            not in_training and flips.reset,
            (("sign_flips", "reset"), f"{method} counts anew at every level as it is; leave it out"),
        ),
        (
            method == "sign_flip" and not sees and flips.at_once is None,
            (
                ("pruning", "criterion"),
                f"'{pruning.criterion}' sees no sign flips: take flipout or hybrid, set sign_flips.at_once, or use "
                "method: gradual",
            ),
        ),
        (
            method == "gradual" and sees,
            (("pruning", "criterion"), f"'{pruning.criterion}' looks at sign flips: use method: sign_flip"),
        ),
        (
            method != "sign_flip" and flips.at_once is not None,
            (("sign_flips", "at_once"), f"belongs to method: sign_flip, not to {method}"),
        ),
        (
            flips.half_life is not None and flips.half_life.count == 0,
            (("sign_flips", "half_life"), "must be at least 1it"),
        ),
        (
            flips != SignFlipsSection() and not counts_flips(recipe),
            (("sign_flips",), "nothing counts sign flips here: add watch: [sign_flips], or a criterion that sees them"),
        ),
        (
            flips.at_once is not None and pruning.reclaim is not None,
            (("pruning", "reclaim"), "what flips goes at once, on a path or not; leave reclaim or at_once out"),
        ),
        (
            of_channels and sees,
            (("pruning", "criterion"), f"'{pruning.criterion}' judges single weights, not channels"),
        ),
        (
            of_channels and pruning.reclaim is not None,
            (("pruning", "reclaim"), "channels leave no dead paths; leave it out"),
        ),
    ]
    return [problem for is_broken, problem in rules if is_broken]
