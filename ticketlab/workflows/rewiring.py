"""When weights of a network in training are replaced (method dynamic); what cannot be asked of it."""

from __future__ import annotations

from dataclasses import dataclass

from ticketlab.recipe import DynamicSection, Recipe
from ticketlab.recipe_file import Problem
from ticketlab.workflows.schedule import counts_flips, sees_flips


@dataclass(frozen=True)
class Rewiring:
    """Replacements of a training, in steps."""

    start: int
    """Where levels begin."""
    every: int
    until: int
    """Where the share that is replaced has fallen to none: the mask stays as it is from here on, or from before."""

    def is_due(self, step: int) -> bool:
        """Whether weights are replaced after this step."""
        return (step - self.start) % self.every == 0 and self.start < step < self.until

    def done(self, step: int) -> float:
        """Share of the time for it that is over."""
        return (step - self.start) / (self.until - self.start)

    @property
    def last(self) -> int:
        """Step of the last one; the start where there is none."""
        return self.start + (self.until - 1 - self.start) // self.every * self.every

    def looks(self, grow: str) -> int:
        """Steps whose gradients are needed of removed weights, too."""
        span = self.last - self.start
        return {"random": 0, "gradient": span // self.every, "momentum": span}[grow]


def make_rewiring(recipe: Recipe, per_epoch: int) -> Rewiring:
    """The replacements of a recipe."""
    section, stop, start = recipe.dynamic, recipe.train.steps.steps(per_epoch), recipe.pruning.rewind.steps(per_epoch)
    start = 0 if recipe.pruning.after == "reinit" else start
    every = section.every.steps(per_epoch)
    until = section.until.steps(per_epoch) if section.until else start + 3 * (stop - start) // 4
    return Rewiring(start, every, until)


def check_dynamic(recipe: Recipe) -> list[Problem]:
    """Settings that the recipe's method would ignore."""
    section = recipe.dynamic
    if recipe.method != "dynamic":
        message = f"belongs to method: dynamic, not to {recipe.method}"
        return [] if section == DynamicSection() else [(("dynamic",), message)]
    usual, elsewhere = DynamicSection(), list[Problem]()
    if counts_flips(recipe) and not sees_flips(recipe):
        elsewhere.append((("watch",), "sign flips are not counted where weights are replaced"))
    if recipe.pruning.reclaim:
        elsewhere.append((("pruning", "reclaim"), "weights that are replaced come anywhere; leave it out"))
    rules = [
        (section.every.count == 0, "every", "must be at least 1it"),
        (
            section.grow != "momentum" and section.momentum != usual.momentum,
            "momentum",
            f"belongs to grow: momentum, not to {section.grow}",
        ),
        (
            section.drop == "sign" and section.grow != "random",
            "grow",
            "drop: sign has weights that come anywhere, with any sign: grow: random",
        ),
        (
            section.drop != "sign" and (section.l1 > 0 or section.temperature > 0),
            "l1" if section.l1 else "temperature",
            "belongs to drop: sign (deep rewiring)",
        ),
        (
            section.temperature > 0 and recipe.train.optimizer != "sgd",
            "temperature",
            f"its noise is that of a step of sgd; {recipe.train.optimizer} would scale it to its own",
        ),
        (
            section.drop == "sign" and (section.fraction, section.decay) != (usual.fraction, usual.decay),
            "drop",
            "sign drops what has changed its sign, however many: leave fraction and decay out",
        ),
    ]
    return elsewhere + [(("dynamic", name), message) for is_broken, name, message in rules if is_broken]


def check_rewiring(recipe: Recipe, per_epoch: int) -> list[Problem]:
    """Times that do not fit together, once the length of an epoch is known."""
    made, stop = make_rewiring(recipe, per_epoch), recipe.train.steps.steps(per_epoch)
    if made.until > stop:
        return [(("dynamic", "until"), f"step {made.until} comes after the end of training at step {stop}")]
    if made.last <= made.start:
        message = f"the first replacement, at step {made.start + made.every}, is not before step {made.until}"
        return [(("dynamic", "every"), message)]
    return []
