"""`ticketlab client`: keys for devices on the coordinator, and the one command that runs on a device."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ticketlab.cli import render
from ticketlab.cli.options import Json, RunsRoot, Verbose
from ticketlab.errors import FailedRun, TicketlabError

if TYPE_CHECKING:
    from ticketlab.runs.lab import Enrolled

app = typer.Typer(
    help="Devices that take part in federations: enroll, revoke, list; join from one.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the client: letters, digits, - and _.")]


@app.command()
def enroll(
    name: Name,
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="This coordinator as the device reaches it.")],
    days: Annotated[int, typer.Option(min=1, max=3650, help="Days until the key is taken no more.")] = 365,
    again: Annotated[bool, typer.Option("--again", help="A new key; the old one no longer works.")] = False,
    out: Annotated[Path | None, typer.Option(help="The join file [default: NAME.join].")] = None,
    runs: RunsRoot = Path("runs"),
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Make a client's key and the one file with which its device joins; runs on the coordinator."""
    with render.one_line_errors(verbose):
        from ticketlab.workflows import enroll as work

        client, path = work.enroll(runs, name, server, days, again, out)
        if json:
            render.result({**_row(client), "join_file": str(path)})
            return
        render.result(str(path))
        render.note(f"{name} is enrolled until {client.expires[:10]}; the file holds its private key: copy it with")
        render.note(f"  scp -p {path} {name}:    and there: ticketlab client join {path.name} --check")


@app.command()
def revoke(name: Name, runs: RunsRoot = Path("runs"), json: Json = False, verbose: Verbose = False) -> None:
    """Let a client's key in no more, from the next start of a federation on."""
    with render.one_line_errors(verbose):
        from ticketlab.workflows import enroll as work

        client = work.revoke(runs, name)
        render.result(_row(client) if json else f"{name} is revoked")
        render.note("a federation that runs now still knows the key: stop it and start it again; it goes on")


@app.command("ls")
def clients_ls(runs: RunsRoot = Path("runs"), json: Json = False, verbose: Verbose = False) -> None:
    """List clients that were enrolled, and whether they may still come in."""
    with render.one_line_errors(verbose):
        from ticketlab.runs.lab import LabStore

        rows = [_row(client) for client in LabStore(runs).clients()]
        if json:
            render.result({"clients": rows})
            return
        table = render.new_table("clients", ["name", "server", "state", "until"])
        for row in rows:
            table.add_row(*(str(row[key]) for key in ("name", "server", "state")), str(row["expires"])[:10])
        render.show(table)


@app.command()
def join(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The join file that ticketlab client enroll made.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder with data sets [default: $TICKETLAB_DATA, then the cache].")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Only tell whether this device is ready.")] = False,
    systemd: Annotated[bool, typer.Option("--systemd", help="Only print a unit that joins at every start.")] = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Take part in federations from this device, until stopped; runs on the device and opens no port to others."""
    with render.one_line_errors(verbose):
        if (check and systemd) or (json and not check):
            raise TicketlabError("--check and --systemd are asked for one at a time, and --json goes with --check")
        if check:
            _check(file, data, json)
        elif systemd:
            from ticketlab.workflows.join import systemd as unit_of

            unit, install = unit_of(file, data)
            render.result(unit)
            render.note("install it with:\n" + "\n".join(f"  {line}" for line in install))
        else:
            _join(file, data)


def _join(file: Path, data: Path | None) -> None:
    with render.stop_request("stopping: the SuperNode signs off first (again to stop at once)") as should_stop:
        from ticketlab.workflows.join import join as take_part

        for told in take_part(file, data, should_stop):
            render.note(f"{datetime.now():%H:%M:%S} {told}")


def _check(file: Path, data: Path | None, json: bool) -> None:
    from ticketlab.workflows.device_check import as_dict, check_device, is_ready
    from ticketlab.workflows.join import read_join

    checks = list(check_device(file, data))
    if json:
        render.result(as_dict(read_join(file), checks))
    else:
        table = render.new_table("this device", ["", "what", "found", "what to do"])
        for one in checks:
            table.add_row({"ok": "✓", "warning": "·", "problem": "✗"}[one.state], one.what, one.detail, one.do)
        render.show(table)
    if not is_ready(checks):
        raise FailedRun("not ready: " + ", ".join(one.what for one in checks if one.state == "problem"))


def _row(client: Enrolled) -> dict[str, object]:
    from ticketlab.workflows.enroll import state_of

    kept = ("name", "server", "created", "expires", "revoked")
    return {**{key: getattr(client, key) for key in kept}, "state": state_of(client, datetime.now(UTC))}
