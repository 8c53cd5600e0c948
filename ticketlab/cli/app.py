"""The tool's table of contents: its commands, one short function each; groups of them have modules of their own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ticketlab.cli import client, machine, recipes, render, runs, science
from ticketlab.cli.options import (
    Address,
    DataRoot,
    Device,
    EngineName,
    Json,
    Overrides,
    Quiet,
    RecipePath,
    RunName,
    RunsRoot,
    Threads,
    Verbose,
    Workers,
    places_of,
)
from ticketlab.errors import TicketlabError

RUN_OR_RECIPE = "A run's name, path or unique prefix, or a recipe; left out, the newest ticket."

app = typer.Typer(
    name="ticketlab",
    help="Find lottery tickets: sparse networks that train as well as the dense ones they came from.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # rich itself would take [default: …] for markup
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(recipes.app, name="recipes")
app.add_typer(runs.app, name="runs")
app.add_typer(client.app, name="client")
app.add_typer(science.app)
app.add_typer(machine.app)

Level = Annotated[int | None, typer.Option(min=0, help="Level of the run [default: the deepest].")]
Replicate = Annotated[int, typer.Option(min=1, help="Replicate of the run.")]


@app.callback(invoke_without_command=True)
def top(
    version: Annotated[bool, typer.Option("--version", help="Show the version and stop.")] = False,
) -> None:
    """Answer what concerns no command."""
    if version:
        from ticketlab import __version__

        render.result(__version__)
        raise typer.Exit


@app.command()
def prune(
    recipe: RecipePath,
    overrides: Overrides = None,
    runs: RunsRoot = Path("runs"),
    data: DataRoot = None,
    workers: Workers = None,
    threads: Threads = 1,
    device: Device = "auto",
    engine: EngineName = "processes",
    address: Address = None,
    checkpoint_seconds: Annotated[float, typer.Option(min=0, help="Time between saves in a level.")] = 15.0,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="Replicates, levels and steps that fit in 90s, 10m or 1.5h.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show recipe and plan; train nothing.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Find lottery tickets by pruning with rewinding, as the recipe says; resumes what was interrupted.

    Lists of values, as in --set seed=0,1,2, and variants of a recipe make a sweep: one run for every combination.
    """
    with render.one_line_errors(verbose), render.stop_request() as should_stop:
        from ticketlab.cli import budgeting, levels, sweeping
        from ticketlab.cli.progress import follow
        from ticketlab.recipe_file import read_recipe, read_variants
        from ticketlab.workflows.budget import plan_budget
        from ticketlab.workflows.run import Machine, plan_on, prune_run, stand_in_notice
        from ticketlab.workflows.sweep_points import points_of
        from ticketlab.workflows.workers import Engine

        points = points_of(overrides or (), read_variants(recipe))
        machine = Machine(runs, places_of(data), device, workers, threads, checkpoint_seconds, Engine(engine, address))
        machine.chosen_device()
        if len(points) > 1:
            if budget:
                raise TicketlabError("--budget is for one run; give it without lists in --set")
            sweeping.sweep(recipe, points, machine, should_stop, dry_run, json, quiet)
            return
        said = points[0].overrides
        file = read_recipe(recipe, said)
        chosen = plan_budget(file, budget, machine, should_stop) if budget else None
        if chosen:
            file = read_recipe(recipe, [*said, *chosen.overrides])
            if dry_run:
                budgeting.planned(chosen, recipe, said, json)
                return
            budgeting.told_aside(chosen, recipe, said)
        if dry_run:
            plan = plan_on(file, machine)
            if plan.data.stand_in_for is not None:
                render.note(stand_in_notice(plan))
            levels.planned(plan, runs, json)
        else:
            store, found = follow(prune_run(file, machine, should_stop, chosen.record() if chosen else None), quiet)
            levels.levels(store, found, json)


@app.command()
def fuse(
    run: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]", help="Name, path or unique prefix; the newest if left out. --study takes several."
        ),
    ] = None,
    level: Level = None,
    replicate: Replicate = 1,
    weights: Annotated[Path | None, typer.Option(help="State dict trained elsewhere, instead of a run.")] = None,
    model: Annotated[str | None, typer.Option(help="Its model: a built-in one, or FILE.py:FUNCTION.")] = None,
    mean: Annotated[str | None, typer.Option(help="Its normalisation: one number per channel, as 0.5,0.5.")] = None,
    std: Annotated[str | None, typer.Option(help="Likewise.")] = None,
    params: Annotated[int | None, typer.Option(min=1, help="At most so many parameters.")] = None,
    macs: Annotated[int | None, typer.Option(min=1, help="At most so many multiply-accumulates.")] = None,
    latency: Annotated[float | None, typer.Option(min=0, help="At most so many microseconds per image.")] = None,
    keep_accuracy: Annotated[
        float | None, typer.Option(min=0, help="Lose at most so many points on validation [default: 0.5].")
    ] = None,
    widths: Annotated[str | None, typer.Option(help="Exact widths: 56,68 or fc1=56,fc2=68.")] = None,
    share: Annotated[float | None, typer.Option(help="The same share of units everywhere, as 0.5.")] = None,
    round_to: Annotated[int, typer.Option(min=1, help="Widths are multiples of this.")] = 1,
    allocation: Annotated[
        str | None, typer.Option(help="How a budget is divided: curves or uniform [default: curves, if data is seen].")
    ] = None,
    select: Annotated[str, typer.Option(help="Which units stay.")] = "greedy",
    combine: Annotated[str, typer.Option(help="What they do for those that go.")] = "least_squares",
    option: Annotated[list[str] | None, typer.Option(metavar="NAME=NUMBER", help="Option of --combine.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Only what changes nothing.")] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Residual streams too.")] = False,
    fold_norms: Annotated[bool, typer.Option("--fold-norms", help="Batch norms become part of the weights.")] = False,
    groups: Annotated[Path | None, typer.Option(help="YAML file that names groups of layers.")] = None,
    images: Annotated[int | None, typer.Option(min=2, help="Unlabelled training images to look at.")] = None,
    refit: Annotated[bool | None, typer.Option(help="Fit to the original's answers [default: least squares].")] = None,
    distil: Annotated[str | None, typer.Option(help="Label-free training: 5s, 2ep or 500it.")] = None,
    retrain: Annotated[str | None, typer.Option(help="Training with labels: 2ep or 500it.")] = None,
    control: Annotated[bool, typer.Option(help="With --retrain: the same widths from scratch.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of the images and of random choices.")] = 0,
    study: Annotated[bool, typer.Option("--study", help="The whole grid of methods, widths and sparsities.")] = False,
    overrides: Overrides = None,
    runs: RunsRoot = Path("runs"),
    data: Annotated[
        list[str] | None, typer.Option("--data", help="Folder with data sets; with --weights also a data set's name.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads.")] = 1,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes of --study [default: cores].")] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make a smaller dense network of a sparse one (or of any network) by fusing its neurons."""
    with render.one_line_errors(verbose), render.stop_request() as should_stop:
        from ticketlab.cli import fusing
        from ticketlab.workflows.fuse import fuse_run
        from ticketlab.workflows.fuse_request import Request
        from ticketlab.workflows.run import Machine

        folder, name = fusing.data_and_name(data or [])
        machine = Machine(runs, places_of(folder), "cpu", workers, threads)
        if study:
            ignored = {
                "--weights": weights, "--level": level, "--params": params, "--macs": macs, "--latency": latency,
                "--keep-accuracy": keep_accuracy, "--widths": widths, "--share": share, "--exact": exact,
                "--distil": distil, "--retrain": retrain, "--groups": groups, "--images": images, "--set": overrides,
            }  # fmt: skip
            fusing.only_study(ignored)
            fusing.studied(fusing.study(run or [], machine, should_stop, quiet), json)
            return
        request = Request(
            select, combine, fusing.options(option or []), fusing.widths(widths), share, params, macs, latency,
            keep_accuracy, round_to, allocation, exact, stream, fold_norms, images, refit, distil, retrain, control,
            fusing.groups(groups), seed,
        )  # fmt: skip
        request.check()
        given = fusing.elsewhere(weights, model, name, mean, std, run or [], level)
        source = fusing.source(given, run or [], level, replicate, machine, overrides or (), quiet)
        fusing.fused(fusing.follow(fuse_run(source, request, machine, should_stop), quiet), json)


@app.command()
def export(
    run: RunName = None,
    form: Annotated[
        str, typer.Option("--format", "-f", help="onnx, pt2, safetensors, ticket, executorch, litert; commas between.")
    ] = "onnx",
    level: Level = None,
    replicate: Replicate = 1,
    int8: Annotated[bool, typer.Option("--int8", help="Static int8, calibrated on training images.")] = False,
    int8_dynamic: Annotated[bool, typer.Option("--int8-dynamic", help="Int8 without calibration.")] = False,
    float16: Annotated[bool, typer.Option("--float16", help="Values of a ticket as float16.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the files [default: RUN/export].")] = None,
    images: Annotated[int, typer.Option(min=200, help="Validation images that a file is judged on, at most.")] = 5000,
    runs: RunsRoot = Path("runs"),
    data: DataRoot = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a trained network as files that other programs load; each is run on real images before it is accepted."""
    with render.one_line_errors(verbose):
        from ticketlab.cli import shipping
        from ticketlab.workflows.export import check, export_network
        from ticketlab.workflows.ship import newest, shipment

        wanted = shipping.wanted(form, int8, int8_dynamic, float16)
        given = shipment(newest(runs, run, level, replicate), places_of(data), level, replicate)
        check(given.network, wanted)
        if not quiet:
            render.note(f"network: {given.network.name} ({given.kind})")
            for text in shipping.without_code(given.network, wanted):
                render.note(text)
        folder = out or given.store.path / "export"
        shipping.exported(export_network(given, wanted, folder, images), quiet, json)


@app.command()
def bench(
    run: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN…]", help="Names, paths or prefixes; the newest if left out.")
    ] = None,
    level: Annotated[int | None, typer.Option(min=0, help="Level of pruning runs [default: the deepest].")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for table and figure [default: RUNS/bench].")] = None,
    runs: RunsRoot = Path("runs"),
    data: DataRoot = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Time dense, masked, fused and int8 networks in every runtime that is here, side by side; sizes and memory too."""
    with render.one_line_errors(verbose):
        from ticketlab.cli import shipping
        from ticketlab.runs.results import BENCH
        from ticketlab.workflows.bench import bench as measure
        from ticketlab.workflows.ship import newest, shipment

        names: list[str | None] = list(run or ()) or [None]
        stores = [newest(runs, name, level) for name in names]
        found = [shipment(store, places_of(data), level if store.kind == "prune" else None) for store in stores]
        shipping.benched(measure(found, runs, places_of(data), out or runs / BENCH), quiet, json)


@app.command()
def predict(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that ticketlab export wrote.")],
    image: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="Pictures that Pillow can read.")],
    invert: Annotated[bool, typer.Option("--invert", help="Dark on light becomes light on dark.")] = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show what an exported network says about pictures."""
    with render.one_line_errors(verbose):
        from ticketlab.cli import shipping
        from ticketlab.workflows.predict import predict as look

        shipping.predicted(look(file, image, invert), json)


@app.command()
def federate(
    run: Annotated[str | None, typer.Argument(metavar="[RUN|RECIPE]", help=RUN_OR_RECIPE, show_default=False)] = None,
    clients: Annotated[str, typer.Option(help="Names of clients, commas between.")] = "pi1,pi2",
    simulate: Annotated[
        int | None, typer.Option(min=1, help="So many clients of Flower's simulation engine instead.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds; more of them go on with a finished federation [default: 3].")
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(
            help="fixed, early_bird, personal, feddst, prunefl, sign_flip or submodels [default: fixed].",
            show_default=False,
        ),
    ] = None,
    partition: Annotated[
        str | None, typer.Option(help="iid, dirichlet, shards or group [default: iid].", show_default=False)
    ] = None,
    float16: Annotated[bool, typer.Option("--float16", help="Send values as float16.")] = False,
    overrides: Overrides = None,
    level: Level = None,
    controls: Annotated[
        bool, typer.Option("--controls", help="Train dense networks and fresh weights in the same way, to compare.")
    ] = False,
    link: Annotated[
        str | None, typer.Option(help="Rate of each client's link, such as 250kbit: what the bytes would take.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Listen for enrolled clients on this address alone.")] = None,
    min_clients: Annotated[int, typer.Option(min=1, help="A round with fewer answers is a failure.")] = 1,
    round_timeout: Annotated[float, typer.Option(min=1, help="Seconds that a round waits for answers.")] = 600,
    join_timeout: Annotated[
        float | None,
        typer.Option(min=1, help="Seconds to wait for clients to come online [default: 120; 900 for enrolled ones]."),
    ] = None,
    runs: RunsRoot = Path("runs"),
    data: DataRoot = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a ticket across clients on the Flower engine; resumes what was interrupted."""
    with render.one_line_errors(verbose), render.stop_request() as should_stop:
        from ticketlab.cli import federating
        from ticketlab.workflows.federation.ticket import Wanted, federate_run
        from ticketlab.workflows.run import Machine

        short = {"rounds": rounds, "rule": rule, "partition": partition, "precision": "float16" if float16 else None}
        wanted = Wanted(
            run, level, tuple(name.strip() for name in clients.split(",")), simulate, short, tuple(overrides or ()),
            min_clients, round_timeout, join_timeout, controls, host,
        )  # fmt: skip
        rate = federating.bits_per_second(link) if link else None
        machine = Machine(runs, places_of(data), "cpu")
        federating.federated(federate_run(wanted, machine, should_stop), rate, quiet, json)


@app.command()
def report(
    run: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN…]", help="Names, paths or prefixes; the newest if left out.")
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Only tables, of methods side by side.")] = False,
    against: Annotated[
        str | None,
        typer.Option(help="Method or run that the others are compared with [default: one that prunes by magnitude]."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder [default: RUN/report; RUNS/report for several, RUNS/comparison for tables]."),
    ] = None,
    runs: RunsRoot = Path("runs"),
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write what came of a run, or of several side by side, as one HTML page with figures and CSV files beside it."""
    with render.one_line_errors(verbose):
        from ticketlab.cli import comparing
        from ticketlab.workflows.report import compare_runs, report_runs

        if compare:
            comparing.compared(compare_runs(runs, run or [], against, out or runs / "comparison"), json)
        else:
            comparing.reported(report_runs(runs, run or [], against, out), json)


def main() -> None:
    """Entry point of the `ticketlab` command."""
    # numerical libraries read this when they load; a replicate computes on one thread unless told otherwise
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    app()
