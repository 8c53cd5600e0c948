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
def supermask(
    run: RunName = None,
    criterion: Annotated[
        str | None,
        typer.Option(help="Criteria that draw masks, commas between [default: eight].", show_default=False),
    ] = None,
    learn: Annotated[str | None, typer.Option(help="Train a mask instead: edge_popup or bernoulli.")] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Weights under a trained mask: init or signed_constant [default: init].", show_default=False),
    ] = None,
    density: Annotated[
        float | None, typer.Option(help="Fraction of each layer that edge_popup keeps [default: 0.5].")
    ] = None,
    rescale: Annotated[bool, typer.Option("--rescale", help="Kept weights grow by size / number kept.")] = False,
    steps: Annotated[str | None, typer.Option(help="Training of a mask: 5ep or 500it [default: 5ep].")] = None,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate of scores [default: 1 edge_popup, 100 bernoulli].")
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
    """Lay masks over weights that are never trained: masks of the trained network, or masks that are learned."""
    with render.one_line_errors(verbose), render.stop_request() as should_stop:
        from ticketlab.cli import branches
        from ticketlab.runs.store import find_run
        from ticketlab.workflows.learn_mask import ask_learning
        from ticketlab.workflows.run import Machine
        from ticketlab.workflows.supermask import supermask_run

        learning = ask_learning(learn, weights, density, rescale, steps, lr)
        names = [name.strip() for name in (criterion or "").split(",") if name.strip()]
        store = find_run(runs, run, "prune")
        machine = Machine(runs, places_of(data), device, workers, threads)
        events = supermask_run(store, names, learning, machine, should_stop)
        branches.supermasks(branches.follow(events, quiet), json)
