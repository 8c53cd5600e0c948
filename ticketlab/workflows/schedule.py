"""When a network that is training is pruned (methods sign_flip and gradual); what cannot be asked of these methods."""

from __future__ import annotations

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
    at_once: int | None
    """Flips at which a weight goes at once; None: weights go at the starts only."""

    def completed(self, level: int) -> int:
        """Step at which a level has its density: its start or, where weights go at once, half an interval later."""
        return self.starts[level - 1] + (self.every // 2 if self.at_once else 0)


def make_schedule(recipe: Recipe, per_epoch: int) -> Schedule:
    """The prunings of a recipe; evenly spaced, as FlipOut's, with as long before the first and after the last one
    where the recipe says nothing else."""
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
    return Schedule(tuple(first + every * index for index in range(levels)), every, recipe.sign_flips.at_once)


def check_schedule(recipe: Recipe, per_epoch: int) -> list[Problem]:
    """Times that do not fit together, once the length of an epoch is known."""
    stop = recipe.train.steps.steps(per_epoch)
    section = recipe.schedule
    for name, time in (("first", section.first), ("every", section.every), ("until", section.until)):
        if time is not None and time.steps(per_epoch) < 1:
            return [(("schedule", name), "must be at least 1it")]
    if section.every and section.until:
        return [(("schedule", "until"), "say every or until, not both")]
    if section.until and section.until.steps(per_epoch) >= stop:
        return [(("schedule", "until"), f"must come before the end of training at step {stop}")]
    made = make_schedule(recipe, per_epoch)
    last = made.starts[-1]
    if made.every < 1 or made.starts[0] < 1:
        return [(("pruning", "levels"), f"{recipe.pruning.levels} prunings do not fit into {stop} steps")]
    if made.completed(recipe.pruning.levels) >= stop:
        key = next((name for name in ("every", "until", "first") if getattr(section, name)), "first")
        what = f"the last of {recipe.pruning.levels} prunings, at step {last}"
        return [(("schedule", key), f"{what}, leaves no time before the end of training at step {stop}")]
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
            of_channels and sees,
            (("pruning", "criterion"), f"'{pruning.criterion}' judges single weights, not channels"),
        ),
        (
            of_channels and pruning.reclaim is not None,
            (("pruning", "reclaim"), "channels leave no dead paths; leave it out"),
        ),
    ]
    return [problem for is_broken, problem in rules if is_broken]
