"""A federation as it goes on, and what came of it: rounds and clients as tables or JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ticketlab.cli.render import new_table, note, result, show
from ticketlab.workflows.federate import Event
from ticketlab.workflows.train_level import Notice

COLUMNS = (
    "round", "test\naccuracy %", "seconds", "client", "state", "bytes\ndown", "bytes\nup", "seconds\nof work",
    "examples", "accuracy on\nits own, before %",
)  # fmt: skip


def whole(options: Mapping[str, float]) -> dict[str, float]:
    """Numbers without a fraction as whole numbers, which counts want."""
    return {name: int(value) if value == int(value) else value for name, value in options.items()}


def federated(events: Iterable[Event], quiet: bool, json: bool) -> None:
    """Rounds as they are finished, then the whole."""
    for event in events:
        if isinstance(event, Notice):
            if not quiet:
                note(event.text)
        elif "rounds" not in event:
            if not quiet:
                states = ", ".join(f"{client['name']} {client['state']}" for client in event["clients"])
                accuracy = f"test {100 * event['test_accuracy']:.2f} %"
                note(f"round {event['round']}: {accuracy}, {event['seconds']:.1f} s ({states})")
        elif json:
            result(event)
        else:
            _table(event)


def _table(record: dict[str, Any]) -> None:
    table = new_table(f"{record['source']} at {100 * record['density']:.2f} %, across clients", COLUMNS)
    for one in record["rounds"]:
        head = [str(one["round"]), f"{100 * one['test_accuracy']:.2f}", f"{one['seconds']:.1f}"]
        for index, client in enumerate(one["clients"]):
            own = "" if client["accuracy"] is None else f"{100 * client['accuracy']:.2f}"
            sizes = [f"{client[key]:,}" for key in ("bytes_down", "bytes_up")]
            cells = [client["name"], client["state"], *sizes, f"{client['seconds']:.1f}", str(client["examples"]), own]
            table.add_row(*(head if not index else ["", "", ""]), *cells)
    show(table)
    ratio = ", ".join(f"{way} {value} ×" for way, value in record["ratio"].items() if value)
    result(f"before: test {100 * record['start']['test_accuracy']:.2f} %; fewer bytes than dense float32: {ratio}")
    note(f"run: {record['run']}")
