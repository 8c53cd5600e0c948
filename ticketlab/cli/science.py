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
    Overrides,
    Quiet,
    RunName,
    RunsRoot,
    Threads,
    Verbose,
    Workers,
    places_of,
)
from ticketlab.errors import TicketlabError

app = typer.Typer()


RunOrRecipe = Annotated[
    str | None,
    typer.Argument(metavar="[RUN|RECIPE]", help="A run, or a recipe that is run first; the newest run if left out."),
]


@app.command()
def controls(
    run: RunOrRecipe = None,
    level: Annotated[
        str | None,
        typer.Option(help="Level of the ticket, several with commas, or all [default: the sparsest as good as dense]."),
    ] = None,
    control: Annotated[
        str | None, typer.Option(help="Some controls only, commas between [default: all].", show_default=False)
    ] = None,
    overrides: Overrides = None,
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
        from ticketlab.cli import branches, findings
        from ticketlab.workflows.controls import controls_of
        from ticketlab.workflows.run import Machine
        from ticketlab.workflows.workers import Engine

        levels, names = branches.levels(level), branches.names(control)
        machine = Machine(runs, places_of(data), device, workers, threads, engine=Engine(engine, address))
        trunk = branches.trunk(run, overrides or (), runs, quiet)
        findings.controls(branches.follow(controls_of(trunk, levels, names, machine, should_stop), quiet), json)


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
        from ticketlab.cli import branches, findings
        from ticketlab.workflows.learn_mask import ask_learning
        from ticketlab.workflows.run import Machine
        from ticketlab.workflows.supermask import supermask_run

        learning = ask_learning(learn, weights, density, rescale, steps, lr)
        names = branches.names(criterion)
        if learning and names:
            raise TicketlabError("--criterion draws masks of the trained network, --learn trains one: give one of them")
        store = branches.run(run, runs, quiet)
        machine = Machine(runs, places_of(data), device, workers, threads)
        events = supermask_run(store, names, learning, machine, should_stop)
        findings.supermasks(branches.follow(events, quiet), json)


@app.command()
def verify(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN|RECIPE]",
            help="A run, or a recipe that is run first; the newest run with claims if left out.",
            show_default=False,
        ),
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
        from ticketlab.cli import branches, findings
        from ticketlab.runs.store import RunStore
        from ticketlab.workflows.run import Machine
        from ticketlab.workflows.trunk import run_file
        from ticketlab.workflows.verify import verify_run

        found = branches.trunk(recipe, overrides or (), runs, quiet, branches.newest_claiming)
        file = run_file(found) if isinstance(found, RunStore) else found
        where = found.path.parent if isinstance(found, RunStore) else runs
        machine = Machine(where, places_of(data), device, workers, threads)
        events = verify_run(file, machine, should_stop, not measured)
        findings.claims(branches.follow(events, quiet), json)


@app.command()
def stability(
    run: RunOrRecipe = None,
    level: Annotated[
        str | None,
        typer.Option(help="Level, several with commas, or all [default: all; with --at or --bisect 0]."),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="TIMES",
            help="Steps where copies begin, as 0it,500it [default: the rewind step].",
            show_default=False,
        ),
    ] = None,
    bisect: Annotated[bool, typer.Option("--bisect", help="Find the smallest step that is stable.")] = False,
    resolution: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Of --bisect [default: a twentieth of the training].", show_default=False),
    ] = None,
    points: Annotated[int, typer.Option(min=3, help="Points of each line, both ends among them.")] = 30,
    copies: Annotated[int, typer.Option(min=2, help="Copies of each network; a line joins each two.")] = 2,
    overrides: Overrides = None,
    runs: RunsRoot = Path("runs"),
    data: DataRoot = None,
    workers: Workers = None,
    threads: Threads = 1,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train copies of a network apart and measure how the error rises between them: linear mode connectivity."""
    with render.one_line_errors(verbose), render.stop_request() as should_stop:
        from ticketlab.cli import branches, findings
        from ticketlab.workflows.run import Machine
        from ticketlab.workflows.stability import Interpolation
        from ticketlab.workflows.stability_search import stability_of

        analysis = branches.analysis(level, at, bisect, resolution, Interpolation(copies, points))
        machine = Machine(runs, places_of(data), device, workers, threads)
        trunk = branches.trunk(run, overrides or (), runs, quiet)
        findings.stability(branches.follow(stability_of(trunk, analysis, machine, should_stop), quiet), json)
