"""Figures of tickets and what they are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ticketlab.figures import COLOURS, STYLES, plain_log_axis
from ticketlab.words import span


def beside_controls(record: Mapping[str, Any]) -> Figure:
    """Test accuracy of the ticket, the dense network and each control, with 95 % intervals."""
    rows = [row for row in (record["ticket"], record["dense"], *record["controls"]) if row]
    figure = Figure(figsize=(7, 0.38 * len(rows) + 1.3), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        found, colour = row["test_accuracy"], COLOURS[min(place, 2)]
        axes.errorbar(100 * found["mean"], place, xerr=_half_widths([found]), color=colour, marker="o", elinewidth=2)
    axes.axvline(100 * record["ticket"]["test_accuracy"]["mean"], color=COLOURS[0], linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(rows)), [row["control"].replace("_", " ") for row in rows])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.25)
    axes.set_xlabel(f"test accuracy at the early-stop step, %: mean and 95 % interval, n = {_replicates(rows)}")
    axes.set_title(f"{Path(record['run']).name}, {100 * record['density']:.2f} % of weights", fontsize=10)
    return figure


def against_density(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Test accuracy and early-stop step against the weights that remain: ticket, controls, the dense network.

    As figures 3 and 4 of Frankle & Carbin 2019; means with 95 % intervals.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    names = list(dict.fromkeys(row["control"] for one in records for row in one["controls"]))
    dense = records[0]["dense"]
    for axes, key, scale in zip(panels, ("test_accuracy", "early_stop_step"), (100, 1), strict=True):
        ticket = [(100 * one["density"], one["ticket"][key]) for one in records]
        if dense is not None:
            axes.axhline(scale * dense[key]["mean"], color=COLOURS[7], linewidth=0.8, linestyle="--", label="dense")
            ticket = [(100.0, dense[key]), *ticket]
        _curve(axes, ticket, ("black", "o"), "ticket", scale)
        for style, name in zip(STYLES, names, strict=False):
            rows = [(100 * one["density"], _named(one, name)) for one in records]
            known = [(density, row[key]) for density, row in rows if row is not None]
            _curve(axes, known, style, name.replace("_", " "), scale)
        plain_log_axis(axes)
        axes.invert_xaxis()
        axes.set_xlabel("weights that remain, %")
        axes.grid(alpha=0.25)
        low, high = axes.get_ylim()  # an interval of two seeds may go beyond what there can be
        axes.set_ylim(max(0, low), min(100, high) if key == "test_accuracy" else high)
    panels[0].set_ylabel("test accuracy at the early-stop step, %")
    panels[1].set_ylabel("early-stop step")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    shown = [row for one in records for row in (one["ticket"], *one["controls"])]
    figure.suptitle(f"{Path(records[0]['run']).name}: mean and 95 % interval, n = {_replicates(shown)}", fontsize=10)
    return figure


def _replicates(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many replicates each of the networks has."""
    return span(row["test_accuracy"]["n"] for row in rows)


def _named(record: Mapping[str, Any], name: str) -> Any:
    return next((row for row in record["controls"] if row["control"] == name), None)


def _curve(
    axes: Axes, rows: Sequence[tuple[float, Any]], style: tuple[str, str], name: str, scale: float = 100
) -> None:
    """Means with intervals at their places, in a colour with a marker."""
    colour, marker = style
    means, halves = [scale * found["mean"] for _, found in rows], _half_widths([found for _, found in rows], scale)
    axes.errorbar(
        [place for place, _ in rows], means, yerr=halves, color=colour, marker=marker, markersize=3, linewidth=1.3,
        elinewidth=1, label=name,
    )  # fmt: skip


def _half_widths(found: Sequence[Mapping[str, Any]], scale: float = 100) -> list[float]:
    """Half of each interval; 0 where there is none."""
    return [0.0 if one["high"] is None else scale * (one["high"] - one["mean"]) for one in found]


def supermasks(record: Mapping[str, Any]) -> Figure:
    """Validation accuracy of untrained weights against the density of their mask, a panel for each kind of weights."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    masks = list(dict.fromkeys(row["mask"] for row in record["learned"]))
    for axes, unmasked in zip(panels, record["no_mask"], strict=True):
        kind = unmasked["weights"]
        axes.plot(
            100, 100 * unmasked["test_accuracy"]["mean"], marker="s", color="black", linestyle="none",
            label="no mask (test)",
        )  # fmt: skip
        _by_criterion(axes, [row for row in record["one_shot"] if row["weights"] == kind])
        _learned(axes, [row for row in record["learned"] if row["weights"] == kind], masks)
        axes.set_title("initial weights" if kind == "init" else "signed constants", fontsize=10)
        axes.set_xlabel("density %")
        plain_log_axis(axes)
        axes.invert_xaxis()
        axes.set_ylim(0, 100)
        axes.grid(alpha=0.25)
    panels[0].set_ylabel(f"validation accuracy %, untrained weights\nmean and range, n = {len(record['seeds'])}")
    lines = {line.get_label(): line for axes in panels for line in axes.get_lines()}
    figure.legend(list(lines.values()), list(lines), loc="outside right center", fontsize=8)
    figure.suptitle(Path(record["run"]).name, fontsize=10)
    return figure


def _by_criterion(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    for (colour, marker), row in zip(STYLES, rows, strict=False):
        places = [100 * point["density"] for point in row["curve"]]
        means = [100 * point["val_accuracy"]["mean"] for point in row["curve"]]
        low, high = ([100 * point[end] for point in row["curve"]] for end in ("lowest", "highest"))
        name = row["criterion"].replace("_", " ")
        axes.plot(places, means, color=colour, marker=marker, markersize=3, linewidth=1.2, label=name)
        axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)


def _learned(axes: Axes, rows: Sequence[Mapping[str, Any]], masks: Sequence[str]) -> None:
    """Stars at the mean density that was kept, of one colour for each way of learning."""
    for row in rows:
        colour = COLOURS[masks.index(row["mask"]) % len(COLOURS)]
        place = 100 * sum(row["densities"]) / len(row["densities"])
        axes.plot(
            place, 100 * row["val_accuracy"]["mean"], marker="*", markersize=10, color=colour, linestyle="none",
            label=row["mask"],
        )  # fmt: skip


def along_lines(record: Mapping[str, Any]) -> Figure:
    """Instability analysis: error against α, a line for each level or step, with a band over replicates."""
    rows = record["rows"]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    shades = colormaps["viridis"].resampled(len(rows) + 1)
    for axes, split in zip(panels, ("validation", "train"), strict=True):
        for place, row in enumerate(rows):
            curve, colour = row["curves"][split], shades(place)
            axes.plot(
                row["alphas"], _percent(curve["mean"]), color=colour, linewidth=1.4, label=_branch_point_name(row)
            )
            axes.fill_between(row["alphas"], _percent(curve["low"]), _percent(curve["high"]), color=colour, alpha=0.15)
        axes.set_xlabel("α: from one copy (0) to the other (1)")
        axes.set_ylabel(f"{split} error, %")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.suptitle(f"{Path(record['run']).name}: mean over replicates, smallest to largest", fontsize=10)
    return figure


def barriers(record: Mapping[str, Any]) -> Figure:
    """Instability analysis: the barrier with its interval, against density or, where steps differ, against the step."""
    rows = record["rows"]
    by_step = len({row["step"] for row in rows}) > 1
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    series: list[int | None] = [*dict.fromkeys(row["level"] for row in rows)] if by_step else [None]
    for place, level in enumerate(series):
        same = [row for row in rows if level in (None, row["level"])]
        places = [100 * row["share"] if by_step else 100 * row["density"] for row in same]
        for index, split in enumerate(("validation", "train")):
            name = split if level is None else f"level {level}, {split}"
            found = [row["barrier"][split] for row in same]
            _curve(axes, list(zip(places, found, strict=True)), (COLOURS[(2 * place + index) % 8], "o"), name)
    axes.axhline(100 * record["threshold"], color="black", linewidth=0.8, linestyle="--", label="stable below")
    axes.set_ylabel("barrier, points of error: mean and 95 % interval")
    if by_step:
        axes.set_xlabel(f"step at which copies begin, % of {record['steps']:,}")
    else:
        plain_log_axis(axes)
        axes.invert_xaxis()
        axes.set_xlabel("density, %")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    axes.set_title(Path(record["run"]).name, fontsize=10)
    return figure


def _branch_point_name(row: Mapping[str, Any]) -> str:
    return f"level {row['level']} ({100 * row['density']:.3g} %), step {row['step']:,}"


def _percent(errors: Sequence[float]) -> list[float]:
    return [100 * error for error in errors]
