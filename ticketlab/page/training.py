"""How levels trained, and what an early-bird search drew while the dense network did."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace

from ticketlab import run_figures
from ticketlab.draws import SEARCH, draw_rows, draws
from ticketlab.figures import mask_distances
from ticketlab.page.blocks import Block, Picture, Table
from ticketlab.page.facts import Facts
from ticketlab.page.words import interval, percents
from ticketlab.runs.store import Level


def _trainings(facts: Facts) -> list[Level]:
    """Levels, or each replicate's last one with the curve of all where they are parts of one training."""
    if not facts.recipe.prunes_in_training:
        return facts.levels
    ends = {level.replicate: level for level in facts.levels}
    return [
        replace(end, curve=tuple(point for level in facts.levels if level.replicate == one for point in level.curve))
        for one, end in ends.items()
    ]


def training(facts: Facts) -> Iterator[Block]:
    """Curves of validation loss and accuracy."""
    trained = [level for level in _trainings(facts) if len(level.curve) > 1]
    if trained:
        yield Picture(
            "training",
            "Validation loss and accuracy while each level trained; darker lines are denser networks",
            f"Validation loss against the step; mean early-stop steps go from "
            f"{facts.rows[0].early_stop_step.mean:.0f} to {facts.rows[-1].early_stop_step.mean:.0f}.",
            run_figures.training_curves(trained),
            [
                {"level": level.level, "density": level.density, "replicate": level.replicate, **point}
                for level in trained
                for point in level.curve
            ],
        )


def searches(facts: Facts) -> Iterator[Block]:
    """What an early-bird search drew, when, and at what cost."""
    rows = draw_rows(draws(facts.store, facts.levels))
    if rows:
        yield Table(
            "draws",
            "Tickets that were drawn while the dense network trained, and all of their training, the search included, "
            "against one-shot pruning (dense to the end, then the ticket) and iterative pruning; seconds of those that "
            "were not run are reckoned from seconds per step",
            ("level", "density\n%", "drawn at\nstep", "settled", "test\naccuracy %", "n",
             "10⁹ operations,\ndense + ticket", "% of\none-shot", "% of\niterative", "seconds", "% of\none-shot",
             "% of\niterative"),
            [
                (
                    str(row.level), percents(row.density), f"{row.step:,.0f} ({100 * row.share:.0f} %)",
                    f"{row.settled} of {row.test_accuracy.n}" if row.chosen else "fixed",
                    interval(row.test_accuracy), str(row.test_accuracy.n),
                    f"{row.executed.dense / 1e9:,.4g} + {row.executed.ticket / 1e9:,.4g}",
                    *row.executed.percentages(), f"{row.seconds.total:.1f}", *row.seconds.percentages(),
                )
                for row in rows
            ],
            [asdict(row) for row in rows],
        )  # fmt: skip
    for replicate in facts.store.replicates()[:1]:
        record = facts.record(f"replicate_{replicate}/{SEARCH}")
        if record is not None and record["steps"]:
            drawn = ", ".join(str(one["step"]) for one in record["draws"] if one["chosen"])
            yield Picture(
                "search",
                "The early-bird search of replicate 1: distances between masks drawn while the dense network trained, "
                "and the step at which each ticket was drawn (orange)",
                f"Tickets were drawn at steps {drawn}.",
                mask_distances(record),
                [
                    {"density": track["density"], "step": step, "to_step": before, "distance": distance}
                    for track in record["tracks"]
                    for at, (step, row) in enumerate(zip(record["steps"], track["distances"], strict=True))
                    for before, distance in zip(record["steps"][at - len(row) : at], row, strict=True)
                ],
            )
