"""Commands about this machine: data sets that are on it, and what it lacks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ticketlab.cli import render
from ticketlab.cli.options import DataRoot, Json, RunsRoot, places_of

if TYPE_CHECKING:
    from ticketlab.data.sources import Located
    from ticketlab.workflows.doctor import Finding

app = typer.Typer()
data_app = typer.Typer(help="Data sets on this machine.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@data_app.command("ls")
def data_ls(data: DataRoot = None, json: Json = False) -> None:
    """List data sets and where each was found."""
    with render.one_line_errors():
        from ticketlab.data.sources import locate_all

        _data(locate_all(places_of(data)), json)


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="mnist, fashion_mnist or cifar10.")], data: DataRoot = None
) -> None:
    """Find a data set or download it into the cache, and verify every file."""
    with render.one_line_errors():
        from ticketlab.data.sources import load_dataset

        dataset = load_dataset(name, places_of(data))
        count = len(dataset.train_labels) + len(dataset.test_labels)
        render.note(f"{name}: {count} examples, verified, in {dataset.source}")


@app.command()
def doctor(runs: RunsRoot = Path("runs"), data: DataRoot = None, json: Json = False) -> None:
    """Tell what this machine has and what to do about what it lacks."""
    with render.one_line_errors():
        from ticketlab.workflows.doctor import examine

        _findings(examine(runs, places_of(data, may_download=False)), json)


def _data(located: Sequence[Located], json: bool) -> None:
    """Data sets and where they are."""
    if json:
        render.result({"data": [{"name": item.name, "found": item.found, "wanted": item.wanted} for item in located]})
        return
    table = render.new_table("data", ["name", "found in", "to have it"])
    for item in located:
        table.add_row(item.name, item.found or "–", "" if item.found else item.wanted)
    render.show(table)


def _findings(found: Sequence[Finding], json: bool) -> None:
    """What the doctor saw."""
    if json:
        render.result({"findings": [{"what": f.what, "state": f.state, "detail": f.detail, "do": f.do} for f in found]})
        return
    table = render.new_table("doctor", ["", "what", "found", "what to do"])
    for finding in found:
        table.add_row({"ok": "✓", "note": "·", "problem": "✗"}[finding.state], finding.what, finding.detail, finding.do)
    render.show(table)
