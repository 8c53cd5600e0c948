"""What came of controls, claims, supermasks and stability, as tables or JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ticketlab.claims import expected_in_words, measured_in_words
from ticketlab.cli.render import new_table, note, result, show, with_interval
from ticketlab.errors import GateFailed
from ticketlab.report import Estimate
from ticketlab.workflows.verify import failed

STABILITY_COLUMNS = (
    "level",
    "density\n%",
    "step",
    "barrier\npoints",
    "n",
    "verdict",
    "barrier,\ntrain",
    "error\n%",
    "test\n%",
    "L2",
)


def controls(record: Mapping[str, Any], json: bool) -> None:
    """Tickets between what they are compared with."""
    if json:
        result(dict(record))
        return
    for one in record.get("levels", [record]):
        _controls(one)
    folder = "controls" if "levels" in record else f"controls/level_{record['level']}"
    note(f"figure: {record['run']}/{folder}/controls.png")


def _controls(record: Mapping[str, Any]) -> None:
    where = f"{record['run']} level {record['level']}{_stand_in(record)}"
    title = f"{where}, {100 * record['density']:.2f} % of weights: ± 95 % t interval"
    table = new_table(title, ("network", "test\naccuracy %", "n", "minus\nticket %", "at\nend %", "early\nstop"))
    for row in filter(None, (record["ticket"], record["dense"], *record["controls"])):
        accuracy, minus = Estimate(**row["test_accuracy"]), Estimate(**row["minus_ticket"])
        table.add_row(
            row["control"].replace("_", " "),
            with_interval(accuracy, ".2f"),
            str(accuracy.n),
            "" if row["control"] == "ticket" else with_interval(minus, "+.2f"),
            f"{100 * row['final_test_accuracy']['mean']:.2f}",
            f"{row['early_stop_step']['mean']:.0f}",
        )
    show(table)


def _stand_in(record: Mapping[str, Any]) -> str:
    """What must stand beside numbers of other data than the recipe's."""
    return f" on {record['data']} (STAND-IN for {record['stand_in_for']})" if record["stand_in_for"] else ""


def claims(record: Mapping[str, Any], json: bool) -> None:
    """Claims with what was measured; raises GateFailed where one fails."""
    if json:
        result(dict(record))
    else:
        table = new_table(
            f"{record['recipe']}{_stand_in(record)}: claims",
            ("claim", "expected", "measured\n± 95 % t interval", "n", "verdict"),
        )
        for one in record["claims"]:
            found, what = one["measured"], f"{one['that']} ({one['metric'].replace('_', ' ')}, level {one['level']})"
            table.add_row(
                f"{one['claim']}\n{one['source']}\n{what}",
                expected_in_words(one),
                measured_in_words(one),
                str(found["n"] if found else 0),
                one["verdict"] + _more(one),
            )
        show(table)
        note(f"run: {record['run']}")
    wrong = failed(record)
    if wrong:
        raise GateFailed(f"{len(wrong)} of {len(record['claims'])} claims failed: {'; '.join(wrong)}")


def _more(one: Mapping[str, Any]) -> str:
    return f"\n(about {one['seeds_to_decide']} would do)" if one["seeds_to_decide"] else ""


def supermasks(record: Mapping[str, Any], json: bool) -> None:
    """Untrained networks under masks, the best first, between the network without a mask and the trained one."""
    if json:
        result(dict(record))
        return
    title = f"{record['run']}{_stand_in(record)}: untrained weights under masks, test accuracy ± 95 % t interval"
    table = new_table(title, ("mask", "weights", "test\naccuracy %", "n", "validation\naccuracy %", "density\n%"))
    trained = Estimate(**record["trained"])
    table.add_row("trained dense network", "trained", with_interval(trained, ".2f"), str(trained.n), "", "100")
    masks = [*record["one_shot"], *record["learned"]]
    for row in sorted(masks, key=lambda row: -row["test_accuracy"]["mean"]):
        accuracy = Estimate(**row["test_accuracy"])
        table.add_row(
            row["mask"] if "mask" in row else row["criterion"].replace("_", " "),
            row["weights"].replace("_", " "),
            with_interval(accuracy, ".2f"),
            str(accuracy.n),
            f"{100 * row['val_accuracy']['mean']:.2f}",
            _from_to(row["densities"]),
        )
    for row in record["no_mask"]:
        accuracy = Estimate(**row["test_accuracy"])
        kind = row["weights"].replace("_", " ")
        table.add_row("no mask", kind, with_interval(accuracy, ".2f"), str(accuracy.n), "", "100")
    show(table)
    note(f"figure: {record['run']}/supermask/supermask.png")


def _from_to(densities: Sequence[float]) -> str:
    low, high = (f"{100 * end(densities):.2f}" for end in (min, max))
    return low if low == high else f"{low}–{high}"


def stability(record: Mapping[str, Any], json: bool) -> None:
    """Barriers by level or step."""
    if json:
        result(dict(record))
        return
    where = f"{record['run']}{_stand_in(record)}"
    title = (
        f"{where}: barriers, how far the error on the line between copies rises above their own (validation, ± 95 % t "
        "interval; stable: less than 2 points), and the copies' error"
    )
    table = new_table(title, STABILITY_COLUMNS)
    for row in record["rows"]:
        barrier, error = (
            {split: Estimate(**found) for split, found in row[key].items()} for key in ("barrier", "error")
        )
        table.add_row(
            str(row["level"]),
            f"{100 * row['density']:.2f}",
            str(row["step"]),
            with_interval(barrier["validation"], ".2f"),
            str(barrier["validation"].n),
            row["verdict"] + ("?" if row["is_clear"] is False else ""),
            f"{100 * barrier['train'].mean:.2f}",
            *(f"{100 * error[split].mean:.2f}" for split in ("validation", "test")),
            f"{row['distance']['mean']:.3g}",
        )
    show(table)
    if any(row["is_clear"] is False for row in record["rows"]):
        note("?: the interval holds 2 points; more replicates would tell")
    if record["search"]:
        note(_smallest(record["search"], record["steps"]))
    note(f"figures: {record['folder']}/line.png, barrier.png")


def _smallest(search: Mapping[str, Any], steps: int) -> str:
    """The end of a search, in a sentence."""
    found, below, to_within = search["stable"], search["unstable"], f"to within {search['resolution']} steps"
    if found is None:
        return f"not stable at any step that was tried, the last of them {below} of {steps}"
    if below is None:
        return f"stable from step {found} on"
    return f"smallest stable step: {found} of {steps} ({100 * found / steps:.1f} %), {to_within}"
