"""Figures of one pruning run: how it trained, which weights it kept, where."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ticketlab.figures import COLOURS, STYLES, plain_log_axis
from ticketlab.runs.store import Level
from ticketlab.words import span

SHADES = colormaps["viridis"]
MOST_PICTURES = 8
"""Levels that are shown as pictures: the first, the last, and some between."""
MOST = 3.0
"""Where the colours of the picture of inputs end, in units of the mean over pixels."""


def some(levels: Sequence[int], most: int = MOST_PICTURES) -> list[int]:
    """At most so many of the levels, the first and the last among them, at even distances."""
    if len(levels) <= most:
        return list(levels)
    return [levels[round(place * (len(levels) - 1) / (most - 1))] for place in range(most)]


def densities_by_layer(levels: Sequence[Level]) -> Figure:
    """Density of each layer against that of all, mean over replicates; the diagonal is the whole network."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    indices = sorted({level.level for level in levels}, key=lambda index: -_density(levels, index))
    by_level = {index: [level for level in levels if level.level == index] for index in indices}
    whole = [100 * fmean(level.density for level in by_level[index]) for index in indices]
    names = list(levels[0].layers)
    for (colour, marker), name in zip(STYLES, names, strict=False):
        shares = [100 * fmean(level.layers[name] for level in by_level[index]) for index in indices]
        axes.plot(whole, shares, color=colour, marker=marker, markersize=3, linewidth=1.2, label=_short(name))
    axes.plot(whole, whole, color="black", linewidth=0.8, linestyle="--", label="all together")
    plain_log_axis(axes)
    plain_log_axis(axes, "y")
    axes.invert_xaxis()
    axes.set_xlabel("density of the network, %")
    axes.set_ylabel("density of the layer, %")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, ncol=1 + len(names) // 8)
    axes.set_title(f"density of each layer: mean of {_replicates(levels)}", fontsize=10)
    return figure


def training_curves(levels: Sequence[Level]) -> Figure:
    """Validation loss and accuracy against the step, a line for each of some levels: mean over replicates."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    shown = some(sorted({level.level for level in levels}, key=lambda index: -_density(levels, index)))
    are_means = True
    for place, index in enumerate(shown):
        same = [level for level in levels if level.level == index]
        steps, means, count = _mean_curves(same)
        are_means &= count == len(same)
        colour = SHADES(0.25 + 0.6 * place / max(1, len(shown) - 1))
        name = f"level {index}, {100 * same[0].density:.3g} %"
        panels[0].plot(steps, means["val_loss"], color=colour, linewidth=1.2, label=name)
        panels[1].plot(steps, [100 * value for value in means["val_accuracy"]], color=colour, linewidth=1.2)
        best = fmean(level.early_stop_step for level in same)
        panels[0].axvline(best, color=colour, linewidth=0.6, linestyle=":")
    panels[0].set_ylabel("validation loss")
    plain_log_axis(panels[0], "y")
    panels[1].set_ylabel("validation accuracy, %")
    for axes in panels:
        axes.set_xlabel("optimizer step of the level")
        axes.grid(alpha=0.25)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    of = f"mean of {_replicates(levels)}" if are_means else "the first replicate where their steps differ"
    figure.suptitle(f"training, {of}; dotted: mean early-stop step", fontsize=10)
    return figure


def _mean_curves(levels: Sequence[Level]) -> tuple[list[float], dict[str, list[float]], int]:
    """Steps that all replicates have looked at, the mean of what was seen there, and of how many replicates it is."""
    points = [{point["step"]: point for point in level.curve} for level in levels]
    steps = sorted(set.intersection(*(set(found) for found in points)))
    if len(steps) < 2:  # tickets drawn at different steps are looked at on different grids
        points, steps = points[:1], sorted(points[0])
    means = {
        name: [fmean(found[step][name] for found in points) for step in steps] for name in ("val_loss", "val_accuracy")
    }
    return steps, means, len(points)


def input_pixels(shares: Mapping[int, NDArray[np.float64]], densities: Mapping[int, float], weights: int) -> Figure:
    """Which inputs a ticket looks at: how many weights remain at each pixel, in units of the mean over pixels.

    Args:
        shares: Level → share of a pixel's weights into the first layer that remains, (height, width), of one replicate.
        densities: Of the levels.
        weights: Of a pixel: units of the first layer, times colours.
    """
    shown = some(sorted(shares))
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(max(3.8, 1.75 * columns + 0.9), 2.0 * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes, level in zip(panels.flat, shown, strict=False):
        drawn = axes.imshow(shares[level] / (shares[level].mean() or 1.0), cmap="viridis", vmin=0, vmax=MOST)
        axes.set_title(f"level {level}: {100 * densities[level]:.3g} %", fontsize=9)
    for axes in panels.flat:
        axes.set_axis_off()
    is_over = any((shares[level] > MOST * shares[level].mean()).any() for level in shown)
    figure.colorbar(drawn, ax=panels, shrink=0.75, extend="max" if is_over else "neither", label="× the mean pixel")
    figure.suptitle(
        f"first layer: which of the {weights} weights at each\ninput pixel remain (replicate 1); a random mask\n"
        "would be near 1; above each: density of the network",
        fontsize=10,
    )
    return figure


def kernels(pictures: Mapping[int, NDArray[np.float64]], densities: Mapping[int, float]) -> Figure:
    """The first layer's mask, a little picture for each filter and input channel; dark: the weight remains.

    Args:
        pictures: Level → mask as `tiles` gives it, of one replicate.
    """
    shown = some(sorted(pictures), 4)
    figure = Figure(figsize=(max(3.8, 1.9 * len(shown) + 0.6), 3.4), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, level in zip(panels, shown, strict=True):
        axes.imshow(pictures[level], cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(f"level {level}: {100 * densities[level]:.3g} %", fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.suptitle(
        "first layer's mask: dark weights remain (replicate 1);\nfilters in reading order, channels side by side;\n"
        "above each: density of the whole network",
        fontsize=9,
    )
    return figure


def overlaps(
    shared: Mapping[int, float], chance: Mapping[int, float], densities: Mapping[int, float], replicates: int, what: str
) -> Figure:
    """Of the weights that a ticket keeps, how many those of other replicates keep, too; beside chance.

    Args:
        shared: Level → mean share over pairs of replicates.
        chance: Likewise, of random masks with the same density in each layer.
        densities: Of the levels, in weights.
        what: Masks are of: weights or channels.
    """
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    levels = sorted(shared, key=lambda level: -densities[level])
    places = [100 * densities[level] for level in levels]
    axes.plot(places, [100 * shared[n] for n in levels], color=COLOURS[0], marker="o", label="two replicates")
    label = "random masks, the same\ndensity in each layer"
    axes.plot(places, [100 * chance[n] for n in levels], color="black", linewidth=0.8, linestyle="--", label=label)
    plain_log_axis(axes)
    axes.invert_xaxis()
    axes.set_xlabel("density of weights, %")
    axes.set_ylabel(f"{what} that both keep,\n% of those that one keeps")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    axes.set_title(f"overlap of masks: mean over pairs of {replicates} replicates", fontsize=10)
    return figure


def nesting(kept: NDArray[np.float64], levels: Sequence[int], what: str) -> Figure:
    """Of each level's weights or channels (row), how many another level keeps, too (column); one replicate.

    Args:
        kept: Shares, (levels, levels).
    """
    figure = Figure(figsize=(5.6, 4.6), layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(100 * kept, cmap="viridis", vmin=0, vmax=100)
    axes.set_xticks(range(len(levels)), [str(level) for level in levels], fontsize=8)
    axes.set_yticks(range(len(levels)), [str(level) for level in levels], fontsize=8)
    axes.set_xlabel("level that keeps them, too")
    axes.set_ylabel("level")
    figure.colorbar(drawn, ax=axes, label=f"% of the level's {what}")
    axes.set_title("overlap of masks between levels (replicate 1)", fontsize=10)
    return figure


def flips_by_layer(levels: Sequence[Level]) -> Figure:
    """Sign flips for each remaining weight against the level, a line for each layer: mean over replicates."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    counted = [level for level in levels if level.sign_flips]
    indices = sorted({level.level for level in counted})
    for (colour, marker), name in zip(STYLES, counted[0].sign_flips or {}, strict=False):
        values = [
            fmean((level.sign_flips or {})[name]["per_weight"] for level in counted if level.level == index)
            for index in indices
        ]
        axes.plot(indices, values, color=colour, marker=marker, markersize=3, linewidth=1.2, label=_short(name))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("level")
    axes.set_ylabel("sign flips for each remaining weight")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    axes.set_title(f"sign flips in each level's training: mean of {_replicates(counted)}", fontsize=10)
    return figure


def _density(levels: Sequence[Level], index: int) -> float:
    return next(level.density for level in levels if level.level == index)


def _short(name: str) -> str:
    return name.removesuffix(".weight")


def _replicates(levels: Sequence[Level]) -> str:
    counts = Counter(level.level for level in levels).values()
    return f"{span(counts)} replicate{'s' * (max(counts) != 1)}"


def federation(record: Mapping[str, Any]) -> Figure:
    """Test accuracy of a federation's network against rounds, beside its controls, and against all bytes so far."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    rounds = record["rounds"]
    accuracies = [100 * one["test_accuracy"] for one in rounds]
    sent = np.cumsum([sum(c["bytes_up"] + c["bytes_down"] for c in one["clients"]) for one in rounds]) / 2**20
    for axes, places in zip(panels, ([one["round"] for one in rounds], sent), strict=True):
        axes.plot(places, accuracies, color="black", marker="o", markersize=4, label="ticket")
    for (colour, marker), control in zip(STYLES, record["controls"], strict=False):
        found = [100 * accuracy for accuracy in control["rounds"]] or [100 * control["test_accuracy"]]
        places = range(rounds[-1]["round"] - len(found) + 1, rounds[-1]["round"] + 1)
        panels[0].plot(
            places, found, color=colour, marker=marker, markersize=4, label=control["control"].replace("_", " ")
        )
    panels[0].set_ylabel("test accuracy, %")
    panels[0].set_xlabel("round")
    panels[1].set_xlabel("MiB sent and received by all clients")
    for axes in panels:
        axes.grid(alpha=0.25)
    panels[0].legend(fontsize=8)
    figure.suptitle(f"{record['rule']}, {100 * record['density']:.3g} % of weights, one federation", fontsize=10)
    return figure
