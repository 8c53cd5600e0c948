"""What a run cost, what was shipped of it, and how to make it again."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from ticketlab.page.blocks import Block, Table, Text
from ticketlab.page.facts import Facts
from ticketlab.page.words import percents, plain, settings_table
from ticketlab.recipe_file import recipe_yaml
from ticketlab.report import mean_known
from ticketlab.runs.results import BENCH, BENCHED, EXPORTS
from ticketlab.words import counted, long_time


def cost(facts: Facts) -> Iterator[Block]:
    """Weights, operations, seconds and bytes of each level; exported files."""
    rows = []
    for row in facts.rows:
        same = [level for level in facts.levels if level.level == row.level]
        rows.append(
            {
                "level": row.level,
                "density": row.density,
                "remaining": fmean(level.remaining for level in same),
                "total": same[0].total,
                "steps": fmean(level.steps for level in same),
                "operations": mean_known([level.flops for level in same]),
                "operations_remaining": mean_known([level.remaining_flops for level in same]),
                "seconds": fmean(level.seconds for level in same),
                "ticket_bytes": fmean(facts.store.ticket_bytes(level.replicate, row.level) for level in same),
            }
        )
    yield Table(
        "cost",
        f"What each level cost on {_machine(facts)}, "
        f"{counted(facts.manifest.get('threads', 1), 'thread')}, mean over replicates; "
        f"{long_time(sum(level.seconds for level in facts.levels))} of training in all",
        ("level", "weights\nthat remain", "of", "steps", "10⁹ operations\nexecuted", "by weights\nthat remain",
         "seconds", "ticket file,\nbytes"),
        [
            (
                str(row["level"]), f"{row['remaining']:,.0f}", f"{row['total']:,}", f"{row['steps']:,.0f}",
                _billions(row["operations"]), _billions(row["operations_remaining"]), f"{row['seconds']:.1f}",
                f"{row['ticket_bytes']:,.0f}",
            )
            for row in rows
        ],
        rows,
    )  # fmt: skip
    yield from _timed(facts)
    exported = facts.record(EXPORTS)
    if exported is not None:
        yield Table(
            "exports",
            "Files for other programs, each judged on real images in its own runtime",
            ("network", "format", "precision", "bytes", "same answer %", "test accuracy %", "verdict"),
            [
                (
                    one["network"], one["format"], one["precision"], f"{one['bytes']:,}",
                    percents(one["top1_agreement"]), percents(one["test_accuracy"]),
                    "accepted" if one["accepted"] else f"rejected: {one['reason']}",
                )
                for one in exported["files"]
            ],
            exported["files"],
        )  # fmt: skip


def _machine(facts: Facts) -> str:
    device = facts.manifest.get("device", "cpu")
    return device if device != "cpu" else facts.manifest.get("cpu") or "this machine"


def _billions(count: float | None) -> str:
    if count is None:
        return "?"
    return f"{count / 1e9:,.0f}" if count >= 1e11 else f"{count / 1e9:.3g}"


def _timed(facts: Facts) -> Iterator[Block]:
    """What `ticketlab bench` last measured of this run's networks."""
    beside = facts.store.beside(BENCH)
    if not beside.has_result(BENCHED):
        return
    record, name = beside.read_result(BENCHED), facts.store.name
    names = [one["network"] for one in record["networks"] if one["run"].startswith(f"{name} level ")]
    own = [row for row in record["rows"] if row["network"] in names]
    if own:
        yield Table(
            "latency",
            "Latency of one thread in each runtime, by ticketlab bench",
            ("network", "runtime", "type", "images", "µs, median", "bytes", "MACs", "of weights\nthat remain"),
            [
                (
                    row["network"], row["runtime"], row["dtype"], str(row["batch"]), f"{row['latency_us_median']:.1f}",
                    f"{row['bytes']:,}" if row["bytes"] else "–", f"{row['macs']:,}", f"{row['effective_macs']:,}",
                )
                for row in own
            ],
            own,
        )  # fmt: skip


def again(facts: Facts) -> Iterator[Block]:
    """Versions, machine, data and the recipe."""
    manifest = facts.manifest
    checksum = manifest.get("data_checksum")
    known = {
        "data": f"{manifest['data']}, SHA-256 {checksum[:16]}…" if checksum else manifest["data"],
        "seeds": plain(manifest.get("seeds")),
        "commit": plain(manifest.get("commit")),
        **{name: plain(value) for name, value in manifest.get("versions", {}).items()},
        **{
            name: plain(manifest.get(name))
            for name in ("platform", "cpu", "cores", "device", "threads", "created", "updated")
        },
        "command": plain(manifest.get("command")),
    }
    yield settings_table("environment", "What the run was made with", known)
    yield Text(
        "What the recipe says beyond the defaults; as a file, ticketlab prune FILE makes the run again. The run's "
        "recipe.yaml has all fields."
    )
    yield Text(recipe_yaml(facts.recipe, in_short=True).rstrip(), is_code=True)
