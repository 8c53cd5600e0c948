"""A federation as it goes on, and what came of it: clients live, rounds and controls as tables or JSON."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

from rich.live import Live
from rich.markup import escape
from rich.table import Table

from ticketlab.cli.render import console, new_table, note, result, show
from ticketlab.errors import TicketlabError
from ticketlab.recipe import FEW_CLIENTS
from ticketlab.workflows.federation.rounds import Event
from ticketlab.workflows.progress import Notice

COLUMNS = (
    "round", "test\naccuracy %", "seconds", "client", "state", "bytes\ndown", "bytes\nup", "seconds\nof work",
    "memory\nMiB", "examples", "accuracy\nbefore %", "and\nafter %",
)  # fmt: skip
UNITS = {"bit": 1, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
ROWS = 12
"""Clients that are shown one by one; of more, what became of them is counted."""


def bits_per_second(text: str) -> float:
    """The rate that a text such as `250kbit` names; raises TicketlabError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?bit)", text.strip().lower())
    if found is None or float(found[1]) == 0:
        raise TicketlabError(f"--link {text}: say a rate such as 250kbit, 10mbit or 1gbit (per second)")
    return float(found[1]) * UNITS[found[2]]


def federated(events: Iterable[Event], rate: float | None, quiet: bool, json: bool) -> None:
    """Clients live on a terminal, rounds as they are finished, then the whole."""
    err = console(stderr=True)
    is_live = err.is_terminal and not quiet
    with Live(console=err, transient=True) if is_live else nullcontext() as live:
        for event in events:
            if isinstance(event, Notice):
                if not quiet:
                    note(event.text)
            elif "live" in event:
                if live is not None:
                    live.update(_standing(event["live"]))
            elif "rounds" not in event:
                if not quiet:
                    note(_line(event))
            else:
                last = {**event, "link": _link(event, rate)} if rate else event
    federation(last, json)


def federation(record: Mapping[str, Any], json: bool) -> None:
    """A finished federation, from its record."""
    if json:
        result(record)
    else:
        _tables(record)


def _line(one: Mapping[str, Any]) -> str:
    states = ", ".join(f"{client['name']} {client['state']}" for client in one["clients"])
    if len(one["clients"]) > ROWS:
        states = _counted(one["clients"])
    told = [f"test {100 * one['test_accuracy']:.2f} %", f"density {100 * one['density']:.2f} %"]
    own = one["rule"].get("densities")
    if own:
        told.append(f"own tickets {100 * sum(own.values()) / len(own):.2f} %")
    if one["rule"].get("drawn") == one["round"]:
        told.append("the ticket was drawn here")
    return f"round {one['round']}: {', '.join(told)}, {one['seconds']:.1f} s ({states})"


def _counted(clients: Iterable[Mapping[str, Any]]) -> str:
    """How many clients are in each state: `20 ok, 5 timeout`."""
    states = Counter(client["state"] for client in clients)
    return ", ".join(f"{count} {state}" for state, count in states.items())


def _standing(live: Mapping[str, Any]) -> Table:
    """The clients at this moment; a live table reads markup, so what clients say is escaped."""
    names = ("client", "state", "bytes\ndown", "bytes\nup", "seconds\nof work", "memory\nMiB", "accuracy %")
    table = new_table(f"round {live['round']}", names)
    for client in live["clients"][:ROWS]:
        cells = _cells(client)
        table.add_row(*(escape(cells[index]) for index in (0, 1, 2, 3, 4, 5, 7)))
    if len(live["clients"]) > ROWS:
        table.add_row("…", escape(_counted(live["clients"])))
    return table


def _cells(client: Mapping[str, Any]) -> list[str]:
    shares = ["" if client[key] is None else f"{100 * client[key]:.2f}" for key in ("accuracy", "accuracy_after")]
    memory = "" if client["memory_mib"] is None else f"{client['memory_mib']:.0f}"
    sizes = [f"{client[key]:,}" for key in ("bytes_down", "bytes_up")]
    return [
        client["name"],
        client["state"],
        *sizes,
        f"{client['seconds']:.1f}",
        memory,
        str(client["examples"]),
        *shares,
    ]


def _tables(record: Mapping[str, Any]) -> None:
    table = new_table(f"{record['source']} at {100 * record['density']:.2f} %, rule {record['rule']}", COLUMNS)
    for one in record["rounds"]:
        head = [str(one["round"]), f"{100 * one['test_accuracy']:.2f}", f"{one['seconds']:.1f}"]
        for index, client in enumerate(one["clients"][:ROWS]):
            table.add_row(*(head if not index else ["", "", ""]), *_cells(client))
        if len(one["clients"]) > ROWS:
            table.add_row("", "", "", "in all", _counted(one["clients"]))
    show(table)
    if record["controls"]:
        _controls(record)
    result(_before(record))
    result(_bytes(record))
    if "link" in record:
        told = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in record["link"]["seconds_per_round"].items())
        result(f"at {record['link']['bits_per_second']:,.0f} bit/s a client's bytes of a round take: {told}")
    privacy = record["rounds"][-1]["rule"].get("privacy")
    if privacy:
        result(_privacy(privacy, len(record["rounds"][-1]["clients"])))
    note(f"run: {record['run']}")


def _controls(record: Mapping[str, Any]) -> None:
    """The ticket between what it must be compared with."""
    table = new_table("the ticket and its controls", ("network", "test accuracy %", "× fewer bytes\nup", "down"))
    own = {"control": "this federation", "test_accuracy": record["rounds"][-1]["test_accuracy"]}
    for one in ({**own, "ratio": record["ratio"]}, *record["controls"]):
        sizes = [f"{one['ratio'][way]}" for way in ("up", "down")] if one["ratio"] else ["none sent", ""]
        table.add_row(one["control"], f"{100 * one['test_accuracy']:.2f}", *sizes)
    show(table)


def _before(record: Mapping[str, Any]) -> str:
    last = 100 * record["rounds"][-1]["test_accuracy"]
    before = record["start"]["test_accuracy"]
    return f"test accuracy {last:.2f} %" + ("" if before is None else f" (before any round {100 * before:.2f} %)")


def _bytes(record: Mapping[str, Any]) -> str:
    """Fewer bytes than dense float32, and than the same zipped."""
    ways = [way for way, value in record["ratio"].items() if value]
    plain = ", ".join(f"{way} {record['ratio'][way]} ×" for way in ways)
    zipped = ", ".join(f"{way} {record['ratio_zipped'][way]} ×" for way in ways)
    wire = ", ".join(f"{way} {value} ×" for way, value in record["ratio_wire"].items() if value)
    told = f"fewer bytes than dense float32: {plain}; than the same with its zeros zipped: {zipped}"
    return told + (f"; all that Flower sent, against dense float32: {wire}" if wire else "")


def _privacy(privacy: Mapping[str, Any], clients: int) -> str:
    told = f"privacy ({privacy['kind']}): ε = {privacy['epsilon']:.2f} at δ = {privacy['delta']:g} for {privacy['of']}"
    if clients <= FEW_CLIENTS and privacy["kind"] != "local":
        told += f"; with {clients} clients the mean nearly is each client's own answer: do not rely on it"
    return told


def _link(record: Mapping[str, Any], rate: float) -> dict[str, Any]:
    """Seconds that a round's bytes of one client take at a rate, from the bytes that were sent."""
    answered = [client for one in record["rounds"] for client in one["clients"] if client["state"] == "ok"]
    sizes = {
        "this federation": sum(c["bytes_down"] + c["bytes_up"] for c in answered) / len(answered),
        **_wire(answered),
        "dense float32": 2 * record["dense_bytes"],
        "the same with its zeros zipped": 2 * record["zipped_dense_bytes"],
    }
    return {"bits_per_second": rate, "seconds_per_round": {name: 8 * size / rate for name, size in sizes.items()}}


def _wire(answered: list[Mapping[str, Any]]) -> dict[str, float]:
    """All that Flower sent for a client in a round, where the gate counted it."""
    counted = [client["wire_down"] + client["wire_up"] for client in answered if client["wire_up"] is not None]
    return {"with all that Flower sends": sum(counted) / len(counted)} if counted else {}
