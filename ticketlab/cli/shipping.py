"""What `ticketlab export`, `bench` and `predict` were told, as values; what they found, as tables or JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ticketlab.cli.render import new_table, note, result, show
from ticketlab.errors import FormatError, GateFailed
from ticketlab.formats import FORMATS, find_format
from ticketlab.formats.format import Network, Precision, spoken
from ticketlab.workflows.bench import Bench
from ticketlab.workflows.progress import Notice

OTHER_PRECISIONS: tuple[Precision, ...] = ("int8", "int8_dynamic", "float16")
"""Beside float32, each with an option of its own."""
EXPORT_COLUMNS = (
    "file", "precision", "bytes", "zlib", "largest\ndifference", "same answer\n%", "validation\n%", "test\n%", "",
)  # fmt: skip
NETWORK_COLUMNS = (
    "network", "density\n%", "parameters", "non-zero", "MACs", "effective\nMACs", "bytes", "as a\nticket",
    "ticket,\nint8", "test\naccuracy %",
)  # fmt: skip
LATENCY_COLUMNS = (
    "runtime", "precision", "network", "1 image:\nµs p10", "median", "64 images:\nµs p10", "median", "bytes", "zlib",
    "peak\nMiB",
)  # fmt: skip


def wanted(names: str, int8: bool, int8_dynamic: bool, float16: bool) -> list[tuple[str, Precision]]:
    """Formats and precisions that are asked for; float32 where no other precision is."""
    asked = {"int8": int8, "int8_dynamic": int8_dynamic, "float16": float16}
    precisions: list[Precision] = [name for name in OTHER_PRECISIONS if asked[name]] or ["float32"]
    formats = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if not formats:
        raise FormatError(f"--format: name one or more of {', '.join(FORMATS)}")
    for name in formats:
        find_format(name)
    return [(name, precision) for name in formats for precision in precisions]


def without_code(network: Network, wanted: Sequence[tuple[str, Precision]]) -> list[str]:
    """What to know about files of a user's own model that hold its weights alone."""
    own = network.facts["model"]["file"]
    kinds = dict.fromkeys(name for name, _ in wanted if name in ("safetensors", "ticket"))
    return [f"{name} holds weights and no code of {own}: predict cannot run it" for name in kinds] if own else []


def exported(events: Iterable[dict[str, Any]], quiet: bool, json: bool) -> None:
    """Files as they are written; raises GateFailed at the end where any was rejected."""
    records = []
    for record in events:
        records.append(record)
        if not quiet:
            state = "accepted" if record["accepted"] else f"REJECTED: {record['reason']}"
            note(f"{record['path']}: {record['bytes']:,} bytes, {state}")
    if json:
        result({"files": records})
    else:
        table = new_table("files, each run on real images beside the network", EXPORT_COLUMNS)
        for record in records:
            percents = [f"{100 * record[key]:.2f}" for key in ("top1_agreement", "val_accuracy", "test_accuracy")]
            sizes = [f"{record[key]:,}" for key in ("bytes", "bytes_zlib")]
            state = "" if record["accepted"] else "rejected"
            named = [Path(record["path"]).name, spoken(record["precision"])]
            table.add_row(*named, *sizes, f"{record['max_abs_diff']:.2g}", *percents, state)
        show(table)
        result("in " + ", ".join(dict.fromkeys(str(Path(record["path"]).parent) for record in records)))
    rejected = [record for record in records if not record["accepted"]]
    if rejected:
        raise GateFailed("\n".join(f"{record['path']}: {record['reason']}" for record in rejected))


def benched(events: Iterable[Notice | Bench], quiet: bool, json: bool) -> None:
    """Networks, then latencies, then what they say."""
    for event in events:
        if isinstance(event, Notice):
            if not quiet:
                note(event.text)
        elif json:
            files = [str(path) for path in event.files]
            result({"networks": event.networks, "rows": event.rows, "verdicts": event.verdicts, "files": files})
        else:
            _networks(event.networks)
            _latencies(event.rows)
            for sentence in event.verdicts:
                result(sentence)
            if not quiet:
                note("files: " + ", ".join(str(path) for path in event.files))


def _networks(rows: list[dict[str, Any]]) -> None:
    table = new_table("networks", NETWORK_COLUMNS)
    for row in rows:
        counts = ("params", "nonzeros", "macs", "effective_macs", "bytes", "bytes_ticket", "bytes_ticket_int8")
        table.add_row(
            row["network"],
            f"{100 * row['density']:.2f}",
            *(f"{row[key]:,}" for key in counts),
            f"{100 * row['test_accuracy']:.2f}",
        )
    show(table)


def _latencies(rows: list[dict[str, Any]]) -> None:
    table = new_table("one thread, turn by turn in one process", LATENCY_COLUMNS)
    many = {(row["runtime"], row["dtype"], row["network"]): row for row in rows if row["batch"] != 1}
    before = None
    for row in sorted((row for row in rows if row["batch"] == 1), key=_order(rows)):
        key = (row["runtime"], row["dtype"], row["network"])
        precision = spoken(row["dtype"]) + ("" if row["accepted"] else " ✗")
        named = [row["runtime"], precision] if key[:2] != before else ["", ""]
        before = key[:2]
        times = [_micros(found, which) for found in (row, many.get(key)) for which in ("p10", "median")]
        sizes = [f"{row[name]:,}" if row[name] else "" for name in ("bytes", "bytes_zlib")]
        peak = "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
        table.add_row(*named, row["network"], *times, *sizes, peak)
    show(table)


def _order(rows: list[dict[str, Any]]) -> Any:
    """Rows by runtime and precision, each as it first came."""
    ways = list(dict.fromkeys((row["runtime"], row["dtype"]) for row in rows))
    return lambda row: ways.index((row["runtime"], row["dtype"]))


def _micros(row: dict[str, Any] | None, which: str) -> str:
    return "" if row is None else f"{row[f'latency_us_{which}']:,.1f}"


def predicted(found: dict[str, Any], json: bool) -> None:
    """Pictures and what the network says about each."""
    for text in found["notes"]:
        note(text)
    if json:
        result(found)
        return
    table = new_table(f"{found['network']} ({found['format']})", ["picture", "answer", "sure %", "then"])
    for row in found["predictions"]:
        then = ", ".join(f"{other['label']} {100 * other['probability']:.1f}" for other in row["likely"][1:])
        table.add_row(row["picture"], row["label"], f"{100 * row['probability']:.1f}", then)
    show(table)
