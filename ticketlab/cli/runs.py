"""Commands about runs: which there are, what came of one, delete one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ticketlab.cli import render
from ticketlab.cli.options import Json, RunName, RunsRoot
from ticketlab.errors import TicketlabError

if TYPE_CHECKING:
    from ticketlab.runs.store import RunStore

app = typer.Typer(help="Finished and unfinished runs.", no_args_is_help=True)


@app.command()
def ls(runs: RunsRoot = Path("runs"), json: Json = False) -> None:
    """List runs, the newest last."""
    with render.one_line_errors():
        from ticketlab.runs.store import list_runs

        _listed(list_runs(runs), json)


@app.command()
def show(run: RunName = None, runs: RunsRoot = Path("runs"), json: Json = False) -> None:
    """Show the levels of a run."""
    with render.one_line_errors():
        from ticketlab.cli.levels import levels
        from ticketlab.report import run_levels
        from ticketlab.runs.store import find_run

        found = find_run(runs, run)
        if found.kind == "prune":
            levels(found, run_levels(found), json)
        else:
            _finished(found, json)


@app.command()
def rm(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name, path or unique prefix.")],
    runs: RunsRoot = Path("runs"),
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a run with everything in it."""
    with render.one_line_errors():
        from ticketlab.runs.store import find_run, remove_run

        found = find_run(runs, run)
        if yes or typer.confirm(f"Delete {found.path}?", err=True):
            remove_run(found)
            render.note(f"deleted {found.path}")
        else:
            render.note(f"kept {found.path}")


def _finished(store: RunStore, json: bool) -> None:
    """What a fusion or a study found, from its record."""
    from ticketlab.cli.fusing import fused, studied
    from ticketlab.workflows.fuse import RESULT as FUSED
    from ticketlab.workflows.fuse import Fusion
    from ticketlab.workflows.ship import FEDERATED
    from ticketlab.workflows.study import RESULT as STUDIED
    from ticketlab.workflows.study import Study

    if store.has_result(FUSED):
        fused(Fusion(store, store.read_result(FUSED)), json)
    elif store.has_result(FEDERATED):
        from ticketlab.cli.federating import federation

        federation(store.read_result(FEDERATED), json)
    elif store.has_result(STUDIED):
        studied(Study(store, store.read_result(STUDIED)), json)
    else:
        raise TicketlabError(f"{store.path} is not finished; the same command goes on with it")


def _listed(stores: Sequence[RunStore], json: bool) -> None:
    """Runs in one line each."""
    rows = [_run_row(store) for store in stores]
    if json:
        render.result({"runs": rows})
        return
    table = render.new_table("runs", ["run", "method", "state", "data", "n", "levels", "updated"])
    for row in rows:
        data = f"{row['data']} (stand-in)" if row["stand_in_for"] else str(row["data"])
        name = Path(str(row["run"])).name + (" *" if row["derived_from"] else "")
        updated = str(row["updated"] or "")[:16].replace("T", " ")
        counts = (str(row["replicates"]), str(row["levels"]))
        table.add_row(name, str(row["method"]), str(row["state"]), data, *counts, updated)
    render.show(table)
    if any(row["derived_from"] for row in rows):
        render.note("*: made to answer a question about another run; no prefix, and no missing name, means it")


def _run_row(store: RunStore) -> dict[str, object]:
    """A run's line; a damaged run is listed too, so that it does not hide the others."""
    from ticketlab.report import state

    try:
        manifest = store.read_manifest()
        done = [len(store.levels(replicate)) for replicate in store.replicates()]
        known = state(store, manifest)
    except TicketlabError as error:
        render.note(f"warning: {error}")
        manifest, done, known = {}, [], "damaged"
    return {
        "run": str(store.path),
        "method": manifest.get("method"),
        "state": known,
        "data": manifest.get("data"),
        "stand_in_for": manifest.get("stand_in_for"),
        "derived_from": manifest.get("derived_from"),
        "replicates": len(done),
        "levels": min(done, default=0),
        "updated": manifest.get("updated"),
    }
