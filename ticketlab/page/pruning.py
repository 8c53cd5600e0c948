"""The page of a pruning run: what came of it, and what other commands found out about it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from ticketlab import ticket_figures
from ticketlab.claims import expected_in_words, measured_in_words
from ticketlab.figures import signed
from ticketlab.page.blocks import Block, Page, Picture, Section, Table, Text
from ticketlab.page.cost import again, cost
from ticketlab.page.facts import Facts
from ticketlab.page.masks import layers, masks
from ticketlab.page.training import searches, training
from ticketlab.page.words import interval, percent, percents, points, stand_in
from ticketlab.report import Row, level_names, sparsest, state, winning
from ticketlab.runs.results import CLAIMS, STABILITY, SUPERMASK
from ticketlab.runs.store import RunStore
from ticketlab.words import counted


def pruning_page(store: RunStore, names: Collection[str] | None = None) -> Page:
    """Sections of a run that has a finished level: those of these names, or all."""
    facts = Facts(store)
    made = (
        Section(name, title, blocks)
        for name, title, write in SECTIONS
        if (names is None or name in names) and (blocks := list(write(facts)))
    )
    warning = stand_in(facts.manifest)
    page = Page(store.name, list(_lead(facts)), list(made), warning)
    of = f"{store.name}: {facts.recipe.model.name} on {facts.manifest['data']}" + (
        " (STAND-IN DATA)" if warning else ""
    )
    for picture in page.pictures:
        signed(picture.figure, of)
    return page


def _lead(facts: Facts) -> Iterator[str]:
    recipe, replicates = facts.recipe, len({level.replicate for level in facts.levels})
    rows = [row for row in facts.rows if row.test_accuracy.n == replicates]
    yield (
        f"{recipe.model.name} on {facts.manifest['data']}, {recipe.method}: {_so_far(replicates, recipe.replicates)}"
        f"{counted(recipe.replicates, 'replicate')}, {counted(len(rows), 'level')}, "
        f"{state(facts.store, facts.manifest)}."
    )
    partial = [row.level for row in facts.rows if row not in rows]
    if partial:
        yield (
            f"Not every replicate has finished {_spelled(partial)}: means there are over fewer seeds than at level 0, "
            "and not to be compared with those of other levels."
        )
    dense, best, last = facts.dense, winning(rows), sparsest(rows)
    if dense is None:  # a search that stopped, or the beginning of the one training
        yield f"At {percent(last.density)} of weights: {_spoken(last)} of test images right."
        return
    yield f"Dense network: {_spoken(dense)} of test images right."
    if best.level:
        yield (
            f"Sparsest ticket as good on validation data: level {best.level}, {percent(best.density)} of weights, "
            f"{_spoken(best)}"
            + (f" ({points(best.minus_dense)} against the dense network)." if best.minus_dense else ".")
        )
    if last.level not in (0, best.level):
        yield f"Sparsest of all: {percent(last.density)} of weights, {_spoken(last)}."


def _spelled(levels: Sequence[int]) -> str:
    return f"level {levels[0]}" if len(levels) == 1 else f"levels {levels[0]} to {levels[-1]}"


def _so_far(count: int, asked: int) -> str:
    return "" if count == asked else f"{count} of "


def _spoken(row: Row) -> str:
    return f"{interval(row.test_accuracy)} % (n = {row.test_accuracy.n})"


def _claims(facts: Facts) -> Iterator[Block]:
    record = facts.record(CLAIMS)
    if record is None:
        return
    marks = {"holds": "✓ holds", "fails": "✗ fails"}
    yield Table(
        "claims",
        "Claims of the recipe against what was measured: mean over seeds with its 95 % interval; "
        "a claim holds where the whole interval is within its bounds",
        ("claim", "source", "expected", "measured", "n", "verdict"),
        [
            (
                one["claim"],
                one["source"],
                expected_in_words(one),
                measured_in_words(one),
                str(one["measured"]["n"] if one["measured"] else 0),
                marks.get(one["verdict"], f"– {one['verdict']}"),
            )
            for one in record["claims"]
        ],
        record["claims"],
    )


def _accuracy(facts: Facts) -> Iterator[Block]:
    records = _records(facts)
    if len(facts.rows) > 1:
        shown = [row for row in facts.rows if row.level or facts.dense]
        first, last = shown[0], sparsest(shown)
        best = max(shown, key=lambda row: row.test_accuracy.mean)
        yield Picture(
            "accuracy",
            "Test accuracy at the early-stop step (the smallest validation loss) and the step itself, against the "
            "weights that remain; means over replicates with 95 % intervals",
            f"Test accuracy against the weights that remain: {percent(first.test_accuracy.mean)} at first, highest "
            f"{percent(best.test_accuracy.mean)} at {percent(best.density)}, {percent(last.test_accuracy.mean)} at "
            f"{percent(last.density)}. Early-stop step: {first.early_stop_step.mean:.0f} at first, "
            f"{last.early_stop_step.mean:.0f} at the sparsest.",
            ticket_figures.against_density(records),
            [level.summary() for level in facts.levels],
        )
    yield Table(
        "levels",
        "Each level over replicates: means ± half of the 95 % interval (ms per step: median); differences are paired "
        "by seed",
        ("level", "density\n%", "on live\npaths %", "test\naccuracy %", "n", "minus dense,\npoints", "at the\nend %",
         "early-stop\nstep", "ms per\nstep"),
        [
            (
                name,
                percents(row.density),
                "?" if row.effective_density is None else percents(row.effective_density),
                interval(row.test_accuracy),
                str(row.test_accuracy.n),
                points(row.minus_dense) if row.level and row.minus_dense else "",
                percents(row.final_test_accuracy.mean),
                f"{row.early_stop_step.mean:.0f}",
                f"{row.step_ms:.2f}",
            )
            for row, name in zip(facts.rows, level_names(facts.rows, facts.recipe.method), strict=True)
        ],
        [asdict(row) for row in facts.rows],
    )  # fmt: skip


def _records(facts: Facts) -> list[dict[str, Any]]:
    """Each ticket's level beside its controls, as `ticketlab controls` has it, or without any."""
    dense = None if facts.dense is None else asdict(facts.dense)
    return [
        {
            "run": str(facts.store.path),
            "density": row.density,
            "ticket": asdict(row),
            "dense": dense,
            "controls": facts.controls[row.level]["controls"] if row.level in facts.controls else [],
        }
        for row in sorted(facts.rows[1:], key=lambda row: -row.density)
    ]


def _controls(facts: Facts) -> Iterator[Block]:
    if not facts.controls:
        return
    yield Text(
        "Each control is trained as the ticket was, in all but the one thing that its name says; differences from the "
        "ticket are paired by seed."
    )
    wins = winning(facts.rows).level
    full = max(facts.controls.values(), key=lambda one: (len(one["controls"]), one["level"] == wins, one["level"]))
    names = [row["control"] for row in full["controls"]]
    yield Picture(
        "controls",
        f"Level {full['level']}, {percent(full['density'])} of weights: the ticket, the dense network, the controls; "
        "mean test accuracy with 95 % interval",
        "; ".join(
            f"{row['control'].replace('_', ' ')} {percent(row['test_accuracy']['mean'])}"
            for row in (full["ticket"], full["dense"], *full["controls"])
            if row
        ),
        ticket_figures.beside_controls(full),
    )
    rows = [(record, row) for _, record in sorted(facts.controls.items()) for row in record["controls"]]
    yield Table(
        "controls",
        f"Controls ({', '.join(name.replace('_', ' ') for name in names)}) against the ticket of their level",
        ("level", "density\n%", "control", "test\naccuracy %", "minus ticket,\npoints", "n", "early-stop\nstep"),
        [
            (
                str(record["level"]),
                percents(record["density"]),
                row["control"].replace("_", " "),
                interval(row["test_accuracy"]),
                points(row["minus_ticket"]),
                str(row["test_accuracy"]["n"]),
                f"{row['early_stop_step']['mean']:.0f}",
            )
            for record, row in rows
        ],
        [{"level": record["level"], "density": record["density"], **row} for record, row in rows],
    )


def _stability(facts: Facts) -> Iterator[Block]:
    for place, name in enumerate(facts.store.results(STABILITY), 1):
        record = facts.store.read_result(name)
        told = ", ".join(
            f"{percents(row['barrier']['validation']['mean'])} points at level {row['level']} from step {row['step']}"
            for row in record["rows"]
        )
        yield Picture(
            f"barriers-{place}",
            "Linear mode connectivity (Frankle et al. 2020): how far the error on the line between two copies, "
            f"trained apart from one step, rises above their own; stable: below {100 * record['threshold']:g} points",
            f"Error barriers: {told}.",
            ticket_figures.barriers(record),
        )
        yield Table(
            f"barriers-{place}",
            f"{record['folder'].rpartition('stability')[2].strip('/') or 'stability'}: barriers and errors, points of "
            "error, means ± half of the 95 % interval; the distance is that between the copies' weights (L2)",
            ("level", "density\n%", "from\nstep", "barrier,\nvalidation", "barrier,\ntraining", "n",
             "validation\nerror %", "distance", "verdict"),
            [
                (
                    str(row["level"]), percents(row["density"]), f"{row['step']:,}",
                    *(interval(row["barrier"][split]) for split in ("validation", "train")),
                    str(row["barrier"]["validation"]["n"]), interval(row["error"]["validation"]),
                    f"{row['distance']['mean']:.2f}", row["verdict"],
                )
                for row in record["rows"]
            ],
            [{name: value for name, value in row.items() if name != "curves"} for row in record["rows"]],
        )  # fmt: skip


def _supermasks(facts: Facts) -> Iterator[Block]:
    record = facts.record(SUPERMASK)
    if record is None or not (record["one_shot"] or record["learned"]):
        return
    best = max([*record["one_shot"], *record["learned"]], key=lambda row: row["val_accuracy"]["mean"])
    yield Picture(
        "supermasks",
        "Networks whose weights were never trained under masks: validation accuracy against the density of the mask",
        f"The best mask gives {percent(best['test_accuracy']['mean'])} of test images.",
        ticket_figures.supermasks(record),
        [
            {"weights": row["weights"], "criterion": row["criterion"], **point}
            for row in record["one_shot"]
            for point in row["curve"]
        ],
    )
    masks = [*record["one_shot"], *record["learned"]]
    yield Table(
        "supermasks-best",
        "The density of each that validation data choose, and every mask that was learned: means over seeds ± half of "
        "the 95 % interval",
        ("mask", "weights", "density\n%", "validation\naccuracy %", "test\naccuracy %", "n"),
        [
            (
                (row.get("criterion") or row["mask"]).replace("_", " "), row["weights"].replace("_", " "),
                percents(fmean(row["densities"])), interval(row["val_accuracy"]), interval(row["test_accuracy"]),
                str(row["test_accuracy"]["n"]),
            )
            for row in masks
        ],
        [{name: value for name, value in row.items() if name != "curve"} for row in masks],
    )  # fmt: skip


SECTIONS: Sequence[tuple[str, str, Callable[[Facts], Iterator[Block]]]] = (
    ("claims", "Claims", _claims),
    ("accuracy", "Accuracy and early stopping", _accuracy),
    ("controls", "Controls", _controls),
    ("stability", "Stability", _stability),
    ("supermasks", "Supermasks", _supermasks),
    ("training", "Training", training),
    ("layers", "Layers", layers),
    ("masks", "Masks", masks),
    ("search", "Early-bird search", searches),
    ("cost", "Cost", cost),
    ("environment", "To make it again", again),
)
