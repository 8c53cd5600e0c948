"""Commands about runs: which there are, what came of one, what differs between two, delete one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ticketlab.cli import render
from ticketlab.cli.options import Json, RunName, RunsRoot
from ticketlab.errors import TicketlabError
from ticketlab.words import counted

if TYPE_CHECKING:
    from ticketlab.difference import Change, Difference
    from ticketlab.listing import Line
    from ticketlab.runs.store import RunStore

PAIR_COLUMNS = (
    "density\n%", "levels", "the one\ntest accuracy % (n)", "the other\ntest accuracy % (n)", "difference\n% (n)",
    "early\nstop", "seconds",
)  # fmt: skip
COLUMNS = ("run", "method", "state", "data", "n", "levels", "density\n%", "test\naccuracy %", "updated")
WIDE = 100
"""Characters of a terminal on which a list of runs has room for the time of each."""

app = typer.Typer(help="Finished and unfinished runs.", no_args_is_help=True)


@app.command()
def ls(
    where: Annotated[
        list[str] | None,
        typer.Option("--where", metavar="CONDITION", help="Only some, as density<0.1 or method=imp; repeatable."),
    ] = None,
    sort: Annotated[
        str | None, typer.Option("--sort", metavar="FIELD", help="The largest last; the smallest with -FIELD.")
    ] = None,
    runs: RunsRoot = Path("runs"),
    json: Json = False,
) -> None:
    """List runs, the newest last; fields of --where and --sort are those of --json."""
    with render.one_line_errors():
        from ticketlab.listing import fitting, line, ordered
        from ticketlab.runs.find import list_runs

        found = [line(store) for store in list_runs(runs)]
        for _, problem in found:
            if problem:
                render.note(f"warning: {problem}")
        fit = ordered(fitting([one for one, _ in found], where or ()), sort)
        if found and not fit:
            shares = any(name in condition for condition in where or () for name in ("density", "accuracy"))
            hint = "; accuracies and densities are shares, 0.95 or 95%" if shares else ""
            render.note(f"none of {counted(len(found), 'run')} fits{hint}")
        _listed(fit, json)


@app.command()
def show(run: RunName = None, runs: RunsRoot = Path("runs"), json: Json = False) -> None:
    """Show the levels of a run."""
    with render.one_line_errors():
        from ticketlab.cli.levels import levels
        from ticketlab.report import run_levels
        from ticketlab.runs.find import find_run

        found = find_run(runs, run)
        if found.kind == "prune":
            levels(found, run_levels(found), json)
        else:
            _finished(found, json)


@app.command()
def diff(
    one: Annotated[str, typer.Argument(metavar="RUN", help="Name, path or unique prefix.")],
    other: Annotated[str, typer.Argument(metavar="OTHER", help="Likewise.")],
    runs: RunsRoot = Path("runs"),
    json: Json = False,
) -> None:
    """Show what differs between two runs: recipes, data, versions, machine, and the numbers."""
    with render.one_line_errors():
        from ticketlab.difference import difference
        from ticketlab.runs.find import prune_first

        _compared(difference(prune_first(runs, one), prune_first(runs, other)), json)


@app.command()
def rm(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name, path or unique prefix.")],
    runs: RunsRoot = Path("runs"),
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a run with everything in it."""
    with render.one_line_errors():
        from ticketlab.runs.find import find_run, remove_run

        found = find_run(runs, run)
        if yes or typer.confirm(f"Delete {found.path}?", err=True):
            remove_run(found)
            render.note(f"deleted {found.path}")
        else:
            render.note(f"kept {found.path}")


def _finished(store: RunStore, json: bool) -> None:
    """What a fusion or a study found, from its record."""
    from ticketlab.cli.fusing import fused, studied
    from ticketlab.runs.results import FEDERATED, FUSED, STUDY
    from ticketlab.workflows.fuse import Fusion
    from ticketlab.workflows.study import Study

    if store.has_result(FUSED):
        fused(Fusion(store, store.read_result(FUSED)), json)
    elif store.has_result(FEDERATED):
        from ticketlab.cli.federating import federation

        federation(store.read_result(FEDERATED), json)
    elif store.has_result(STUDY):
        studied(Study(store, store.read_result(STUDY)), json)
    else:
        raise TicketlabError(f"{store.path} is not finished; the same command goes on with it")


def _listed(lines: Sequence[Line], json: bool) -> None:
    """Runs in one line each."""
    if json:
        render.result({"runs": [asdict(one) for one in lines]})
        return
    is_wide = render.console(stderr=False).width >= WIDE
    columns = COLUMNS if is_wide else COLUMNS[:-1]
    table = render.new_table("runs", columns)
    for one in lines:
        cells = (
            Path(one.run).name + (" *" if one.derived_from else ""),
            one.method or one.kind,
            one.state,
            f"{one.data} (stand-in)" if one.stand_in_for else one.data or "",
            str(one.replicates),
            str(one.levels),
            "" if one.density is None else f"{100 * one.density:.4g}",
            "" if one.test_accuracy is None else f"{100 * one.test_accuracy:.2f}",
            (one.updated or "")[:16].replace("T", " "),
        )
        table.add_row(*cells[: len(columns)])
    render.show(table)
    if any(one.derived_from for one in lines):
        render.note("*: made to answer a question about another run; no prefix, and no missing name, means it")


def _compared(found: Difference, json: bool) -> None:
    """What differs between two runs."""
    if json:
        render.result(asdict(found))
        return
    one, other = Path(found.one).name, Path(found.other).name
    if one == other:
        one, other = found.one, found.other
    for title in ("settings", "data", "versions", "machine"):
        _changes(title, getattr(found, title), one, other)
    if not found.pairs:
        _changes("results", found.results, one, other)
        return
    table = render.new_table(f"{other} minus {one}: ± 95 % t interval, paired by seed", PAIR_COLUMNS)
    for pair in found.pairs:
        table.add_row(
            f"{100 * pair.density:.2f}",
            " / ".join(map(str, pair.levels)),
            *(f"{render.with_interval(accuracy, '.2f')} ({accuracy.n})" for accuracy in pair.test_accuracy),
            "" if pair.difference is None else f"{render.with_interval(pair.difference, '+.2f')} ({pair.difference.n})",
            " / ".join(f"{step.mean:.0f}" for step in pair.early_stop_step),
            " / ".join(f"{seconds:.1f}" for seconds in pair.seconds),
        )
    render.show(table)
    if found.seeds:
        render.result(f"same figures at every common level: {len(found.equal)} of {len(found.seeds)} common seeds")


def _changes(title: str, changes: Sequence[Change], one: str, other: str) -> None:
    """A table of facts that are not the same; a line where all are."""
    if not changes:
        render.result(f"{title}: the same")
        return
    table = render.new_table(title, ("", one, other))
    for change in changes:
        table.add_row(change.field, _fact(change.one), _fact(change.other))
    render.show(table)


def _fact(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "–" if value is None else str(value)
