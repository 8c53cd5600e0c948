"""Commands that ask what a ticket is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ticketlab.cli import render
from ticketlab.cli.options import (
    Address,
    DataRoot,
    Device,
    EngineName,
    Json,
    Quiet,
    RunName,
    RunsRoot,
    Threads,
    Verbose,
    Workers,
    places_of,
)  # fmt: skip

app = typer.Typer()


@app.command()
def controls(
    run: RunName = None,
    level: Annotated[
        int | None, typer.Option(min=1, help="Level of the ticket [default: the sparsest as good as dense].")
    ] = None,
    control: Annotated[
        str | None, typer.Option(help="Some controls only, commas between [default: all].", show_default=False)
    ] = None,
    runs: RunsRoot = Path("runs"),
    data: DataRoot = None,
    workers: Workers = None,
    threads: Threads = 1,
    device: Device = "auto",
    engine: EngineName = "processes",
    address: Address = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train what a ticket must be compared with: other weights under its mask, other masks over its weights."""
    with render.one_line_errors(verbose), render.stop_request() as should_stop:
        from ticketlab.cli import branches
        from ticketlab.runs.store import find_run
        from ticketlab.workflows.controls import control_run
        from ticketlab.workflows.run import Machine
        from ticketlab.workflows.workers import Engine

        store = find_run(runs, run, "prune")
        names = [name.strip() for name in (control or "").split(",") if name.strip()]
        machine = Machine(runs, places_of(data), device, workers, threads, engine=Engine(engine, address))
        branches.controls(branches.follow(control_run(store, level, names, machine, should_stop), quiet), json)
