"""Pages of runs that are not made by pruning: a fusion, a fusion study, a federation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ticketlab import figures, run_figures
from ticketlab.fusion_findings import Rows, of_run
from ticketlab.page.blocks import Page, Picture, Section, Table
from ticketlab.page.words import percent, percents, plain, settings_table, stand_in
from ticketlab.runs.results import FEDERATED, FUSED, STUDY, STUDY_ROWS
from ticketlab.runs.rows import read_rows
from ticketlab.runs.store import RunStore
from ticketlab.words import counted


def fusion_page(store: RunStore) -> Page:
    """What a network was before and after its units were fused."""
    record = store.read_result(FUSED)
    before, after = record["sparse"] or record["before"], record["after"]
    lead = [
        f"{record['method']}: {before['params']:,} parameters became {after['params']:,}, "
        f"{before['macs']:,} multiply-accumulates {after['macs']:,}.",
        f"Test accuracy {percent(before['test_accuracy'])} before, {percent(after['test_accuracy'])} after.",
    ]
    sections = [
        Section("fusion", "Before and after", list(_fusion(record))),
        Section("environment", "To make it again", [_environment(store)]),
    ]
    return Page(store.name, lead, sections, stand_in(record))


def _fusion(record: Mapping[str, Any]) -> Iterator[Table | Picture]:
    timed = {"before": "dense", "sparse": "masked", "after": "fused"}
    rows = [
        {
            "network": name,
            **{key: record[name][key] for key in ("params", "nonzeros", "macs", "bytes", "test_accuracy")},
            "latency_us": record["latency_us"][of],
            "latency_us_64": record["latency_us_64"][of],
        }
        for name, of in timed.items()
        if record[name] is not None
    ]
    yield Table(
        "fusion",
        "The network before, as a sparse one, and after fusing; medians of this machine, one thread",
        ("network", "parameters", "non-zero", "MACs", "bytes", "test\naccuracy %", "µs for\n1 image", "µs for\n64"),
        [
            (
                row["network"], f"{row['params']:,}", f"{row['nonzeros']:,}", f"{row['macs']:,}", f"{row['bytes']:,}",
                percents(row["test_accuracy"]), f"{row['latency_us']:.1f}", f"{row['latency_us_64']:.0f}",
            )
            for row in rows
        ],
        rows,
    )  # fmt: skip
    yield Table(
        "stages",
        "Accuracy after each stage",
        ("stage", "test\naccuracy %", "validation\naccuracy %", "seconds"),
        [
            (one["stage"], percents(one["test_accuracy"]), percents(one["val_accuracy"]), f"{one['seconds']:.1f}")
            for one in record["stages"]
        ],
        record["stages"],
    )
    if record["error_curves"]:
        chosen = {name: record["widths"].get(name, 0) for name in record["error_curves"]}
        yield Picture(
            "error-curves",
            "What is lost as units are fused: relative squared error of the next layer against the units left; "
            "dots are the widths that were chosen",
            ", ".join(f"{name}: {width} units" for name, width in chosen.items() if width),
            figures.error_curves(record["error_curves"], chosen),
        )


def study_page(store: RunStore) -> Page:
    """The fusion study: verdicts, sizes, and the grid as a figure."""
    record = store.read_result(STUDY)
    verdicts = Table(
        "hypotheses",
        "Hypotheses that were written down before the study ran",
        ("", "hypothesis", "measured", "verdict"),
        [
            tuple(plain(one[key]) for key in ("hypothesis", "claim", "measured", "verdict"))
            for one in record["findings"]
        ],
        record["findings"],
    )
    sizes = [
        {"run": run, "method": method, **found}
        for run, methods in record["smallest_within_one_point"].items()
        for method, found in methods.items()
    ]
    columns = list(dict.fromkeys(key for row in sizes for key in row))
    smallest = Table(
        "smallest",
        "Parameters of the smallest network within one point of its source, by the source's level",
        columns,
        [
            tuple(f"{row[key]:,}" if isinstance(row.get(key), int) else plain(row.get(key)) for key in columns)
            for row in sizes
        ],
        sizes,
    )
    rows: Rows = [row for name in store.results(STUDY_ROWS) for row in read_rows(store.path / name)]
    grid = of_run(rows, record["sources"][0])
    picture = Picture(
        "accuracy-against-size",
        "Accuracy against parameters: columns by the source's sparsity, rows by epochs of retraining",
        "; ".join(f"{one['hypothesis']}: {one['verdict']}" for one in record["findings"]),
        figures.accuracy_against_size(grid),
    )
    lead = [f"{record['cells']:,} fused networks of {counted(len(record['sources']), 'run')}."]
    sections = [
        Section("hypotheses", "Hypotheses", [verdicts]),
        Section("sizes", "Sizes", [smallest, picture]),
        Section("environment", "To make it again", [_environment(store)]),
    ]
    return Page(store.name, lead, sections, stand_in(store.read_manifest()))


def federation_page(store: RunStore) -> Page:
    """Rounds of a federation: accuracy, bytes, clients, controls."""
    record = store.read_result(FEDERATED)
    rounds = record["rounds"]
    known, last = record["start"]["test_accuracy"], rounds[-1]
    before = "" if known is None else f"{percent(known)} before, "
    lead = [
        f"{counted(len(rounds), 'round')} of {counted(len(last['clients']), 'client')}, rule {record['rule']}, "
        f"partition {record['partition']}: test accuracy {before}{percent(last['test_accuracy'])} after, "
        f"at {percent(last['density'])} of the weights.",
        *(
            f"Each client sent {known['up']:.1f} and received {known['down']:.1f} times fewer bytes than dense ones."
            for known in [record["ratio"]]
            if known["up"] and known["down"]
        ),
    ]
    sections = [
        Section("rounds", "Rounds", list(_rounds(record))),
        Section("controls", "Controls", list(_controls(record))),
        Section("environment", "To make it again", [_environment(store)]),
    ]
    return Page(store.name, lead, [section for section in sections if section.blocks], stand_in(store.read_manifest()))


def _rounds(record: Mapping[str, Any]) -> Iterator[Table | Picture]:
    rounds = record["rounds"]
    yield Picture(
        "rounds",
        "Test accuracy of the server's network against rounds, and against all bytes that were sent and received",
        f"Test accuracy goes from {percent(rounds[0]['test_accuracy'])} after the first round to "
        f"{percent(rounds[-1]['test_accuracy'])} after round {rounds[-1]['round']}.",
        run_figures.federation(record),
    )
    clients = [{"round": one["round"], **client} for one in rounds for client in one["clients"]]
    yield Table(
        "clients",
        "What each client did in each round",
        ("round", "client", "state", "examples", "bytes\ndown", "bytes\nup", "seconds\nof work", "accuracy %\nbefore",
         "after"),
        [
            (
                str(one["round"]), one["name"], one["state"], str(one["examples"]), f"{one['bytes_down']:,}",
                f"{one['bytes_up']:,}", f"{one['seconds']:.1f}",
                *("" if one[key] is None else percents(one[key]) for key in ("accuracy", "accuracy_after")),
            )
            for one in clients
        ],
        clients,
    )  # fmt: skip


def _controls(record: Mapping[str, Any]) -> Iterator[Table]:
    if record["controls"]:
        yield Table(
            "controls",
            "The same federation of other networks",
            ("control", "test accuracy %"),
            [(one["control"].replace("_", " "), percents(one["test_accuracy"])) for one in record["controls"]],
            record["controls"],
        )


def _environment(store: RunStore) -> Table:
    manifest = store.read_manifest()
    known = {key: plain(value) for key, value in manifest.items() if not isinstance(value, dict)}
    return settings_table("environment", "What the run was made with", known | _versions(manifest))


def _versions(manifest: Mapping[str, Any]) -> dict[str, str]:
    return {name: plain(value) for name, value in manifest.get("versions", {}).items()}


PAGES = {"fuse": fusion_page, "study": study_page, "federate": federation_page}
"""Of each kind of run but pruning."""
