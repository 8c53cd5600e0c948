"""Figures of tickets and what they are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ticketlab.figures import COLOURS


def beside_controls(record: Mapping[str, Any]) -> Figure:
    """Test accuracy of the ticket, the dense network and each control, with 95 % intervals."""
    rows = [record["ticket"], record["dense"], *record["controls"]]
    figure = Figure(figsize=(7, 0.38 * len(rows) + 1.3))
    axes = figure.subplots()
    for place, row in enumerate(rows):
        found = row["test_accuracy"]
        colour = COLOURS[min(place, 2)]
        if found["low"] is not None:
            axes.plot([100 * found["low"], 100 * found["high"]], [place, place], color=colour, linewidth=2)
        axes.plot(100 * found["mean"], place, marker="o", color=colour)
    axes.axvline(100 * record["ticket"]["test_accuracy"]["mean"], color=COLOURS[0], linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(rows)), [row["control"].replace("_", " ") for row in rows])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.25)
    replicates = record["ticket"]["test_accuracy"]["n"]
    axes.set_xlabel(f"test accuracy at the early-stop step, %: mean and 95 % interval, n = {replicates}")
    axes.set_title(f"{Path(record['run']).name}, {100 * record['density']:.2f} % of weights", fontsize=10)
    return figure
