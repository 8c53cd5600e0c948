"""A run's levels as tables or JSON: what is planned, what came of it, what an early-bird search drew."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ticketlab.cli.render import new_table, note, result, show, with_interval
from ticketlab.words import counted, long_time

if TYPE_CHECKING:
    from ticketlab.report import Row
    from ticketlab.runs.store import Level, RunStore
    from ticketlab.workflows.plan import Plan

LEVEL_COLUMNS = (
    "level", "density\n%", "effective\n%", "sparsity\n%", "test\naccuracy %", "n", "minus\ndense %", "at\nend %",
    "early\nstop", "ms per\nstep",
)  # fmt: skip

DRAW_COLUMNS = (
    "level", "density\n%", "drawn at\nstep", "", "test\naccuracy %", "minus ticket\nof the end %", "steps\nin all",
    "operations dense + ticket", "% of\none-shot", "% of\niterative", "remaining weights\nonly, % of one-shot",
    "% of\niterative", "seconds", "% of\none-shot", "% of\niterative",
)  # fmt: skip


def levels(store: RunStore, found: Sequence[Level], json: bool) -> None:
    """The levels of a run."""
    if json:
        result(run_record(store, found))
    else:
        _level_table(store, found)
        _draw_table(store, found)
        note(f"run: {store.path}   look: tensorboard --logdir {store.path}")


def run_record(store: RunStore, found: Sequence[Level]) -> dict[str, object]:
    """A run as one JSON object, with its early-bird draws if there are any."""
    from ticketlab.draws import draws
    from ticketlab.report import run_report

    drawn = [asdict(draw) for draw in draws(store, found)]
    return run_report(store, found) | ({"draws": drawn} if drawn else {})


def _level_table(store: RunStore, levels: Sequence[Level]) -> None:
    from ticketlab.report import level_names, state, summarise

    manifest = store.read_manifest()
    stand_in = manifest.get("stand_in_for")
    data = f"{manifest['data']} (STAND-IN for {stand_in})" if stand_in else manifest["data"]
    known = state(store, manifest)
    stands = "" if known == "finished" else f" ({known})"
    table = new_table(
        f"{store.name}{stands} on {data}: test accuracy at the early-stop step ± 95 % t interval",
        LEVEL_COLUMNS,
    )
    rows = summarise(levels)
    for row, name in zip(rows, level_names(rows, manifest["method"]), strict=True):
        table.add_row(*_cells(row, name))
    show(table)


def _cells(row: Row, level: str) -> list[str]:
    return [
        level,
        f"{100 * row.density:.2f}",
        "?" if row.effective_density is None else f"{100 * row.effective_density:.2f}",
        f"{100 * (1 - row.density):.2f}",
        with_interval(row.test_accuracy, ".2f"),
        str(row.test_accuracy.n),
        with_interval(row.minus_dense, "+.2f") if row.level and row.minus_dense else "",
        f"{100 * row.final_test_accuracy.mean:.2f}",
        f"{row.early_stop_step.mean:.0f}",
        f"{row.step_ms:.2f}",
    ]


def _draw_table(store: RunStore, levels: Sequence[Level]) -> None:
    """Early-bird tickets, and what each cost, search included, against other ways to a ticket of its density."""
    from ticketlab.draws import draw_rows, draws

    rows = draw_rows(draws(store, levels))
    if not rows:
        return
    title = "tickets, and their training from nothing against one-shot pruning (dense to the end, then the ticket)"
    exponent = 3 * int(math.log10(max(row.executed.total for row in rows)) // 3)
    columns = [column.replace("operations", f"operations\n× 10^{exponent}:") for column in DRAW_COLUMNS]
    table = new_table(f"{title} and iterative pruning", columns)
    for row in rows:
        drawn = f"{row.step:,.0f} ({100 * row.share:.0f} %)"
        how = f"settled {row.settled} of {row.test_accuracy.n}" if row.chosen else "fixed"
        table.add_row(
            str(row.level),
            f"{100 * row.density:g}",
            drawn,
            how,
            with_interval(row.test_accuracy, ".2f"),
            "" if row.minus_end is None else with_interval(row.minus_end, "+.2f"),
            f"{row.steps:,.0f}",
            f"{row.executed.dense / 10**exponent:.3g} + {row.executed.ticket / 10**exponent:.3g}",
            *row.executed.percentages(),
            *row.remaining.percentages(),
            f"{row.seconds.total:.1f}",
            *(share + ("" if row.is_measured else " *") for share in row.seconds.percentages()[:1]),
            row.seconds.percentages()[1] + " *",
        )
    show(table)
    note("* reckoned from seconds per step; also_at: the end of training measures one-shot pruning")


def planned(plan: Plan, runs: Path, json: bool) -> None:
    """A recipe and what it would do."""
    from ticketlab.recipe_file import recipe_yaml
    from ticketlab.workflows.estimate import Forecast, forecast

    expected: Forecast = forecast(plan)
    if json:
        result(
            {
                "run": str(runs / plan.name),
                "recipe": plan.recipe.model_dump(mode="json"),
                **expected.as_dict(),
            }
        )
        return
    result(recipe_yaml(plan.recipe))
    table = new_table("plan", ["level", "density %", "weights", "steps", "mega-MACs per example"])
    for row in expected.levels:
        table.add_row(
            str(row.level),
            f"{100 * row.density:.2f}",
            str(row.remaining),
            str(row.steps),
            f"{row.macs / 1e6:.3f}",
        )
    show(table)
    result(
        f"{counted(plan.recipe.replicates, 'replicate')} into {runs / plan.name}, "
        f"about {expected.bytes / 1e6:.0f} MB of disk, roughly {long_time(expected.seconds)} of one core in all"
    )
    if plan.early_bird:
        search = plan.early_bird
        result(
            f"a mask every {search.every} steps, ε = {search.epsilon:.3g} ({search.measure}) in a window of "
            f"{search.window}; first draw at step {search.every * search.window} or later; the last one ends the search"
        )
        if search.groups:
            note(
                "counts of tickets are as if every layer kept the same share of its channels; scale decides in the run"
            )
