"""Commands that ask what a ticket is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ticketlab.cli import render
from ticketlab.cli.options import (
    DataRoot,
    Device,
    Json,
    Overrides,
    Quiet,
    RunName,
    RunsRoot,
    Threads,
    Verbose,
    Workers,
    places_of,
)

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

        store = find_run(runs, run, "prune")
        names = [name.strip() for name in (control or "").split(",") if name.strip()]
        machine = Machine(runs, places_of(data), device, workers, threads)
        branches.controls(branches.follow(control_run(store, level, names, machine, should_stop), quiet), json)


@app.command()
def verify(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="[RECIPE|RUN]", help="Recipe with claims, or a run of one; the newest if left out."),
    ] = None,
    overrides: Overrides = None,
    measured: Annotated[bool, typer.Option("--measured", help="Judge what has been measured; train nothing.")] = False,
    runs: RunsRoot = Path("runs"),
    data: DataRoot = None,
    workers: Workers = None,
    threads: Threads = 1,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure what a recipe claims: expected, measured, verdict; exit status 3 where a claim fails."""
    with render.one_line_errors(verbose), render.stop_request() as should_stop:
        from ticketlab.cli import branches
        from ticketlab.recipe_file import read_recipe
        from ticketlab.runs.store import find_run
        from ticketlab.workflows.run import Machine
        from ticketlab.workflows.trunk import run_file
        from ticketlab.workflows.verify import verify_run

        if recipe is not None and recipe.endswith((".yaml", ".yml")):
            file = read_recipe(Path(recipe), overrides or ())
        else:
            file = run_file(find_run(runs, recipe, "prune"), overrides or ())
        machine = Machine(runs, places_of(data), device, workers, threads)
        events = verify_run(file, machine, should_stop, not measured)
        branches.claims(branches.follow(events, quiet), json)
