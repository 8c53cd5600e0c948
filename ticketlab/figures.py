"""Figures from finished runs, as bytes; in colours for colour-blind readers."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray
from torch import Tensor

from ticketlab.comparison import Comparison, Point
from ticketlab.fusion_findings import Rows, levels, method_name, points
from ticketlab.pruning.early_bird import window_distance

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
"""Okabe & Ito's palette."""
DPI = 150
"""Of a PNG."""
SHOWN = (
    "greedy + least squares, curves, refit, distilled", "greedy + least squares, curves, refit",
    "greedy + least squares, curves", "greedy + least squares", "l1 + fold", "in out + neuron merging", "l1 + drop",
)  # fmt: skip


def encode(figure: Figure, *kinds: str) -> dict[str, bytes]:
    """A figure as PNG and SVG, or in the kinds named: the same bytes for the same figure, text in an SVG as text."""
    FigureCanvasAgg(figure)
    engine = figure.get_layout_engine()
    if engine is not None:  # laid out once it fits; with its engine it would be laid out and drawn anew for every kind
        figure.set_dpi(DPI)
        engine.execute(figure)
        figure.set_layout_engine(None)
    found = {}
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "ticketlab"}):
        for kind in kinds or ("png", "svg"):
            content = io.BytesIO()
            told = {"Date": None} if kind == "svg" else {}
            figure.savefig(content, format=kind, dpi=DPI, bbox_inches=None if engine else "tight", metadata=told)
            found[kind] = content.getvalue()
    return found


def signed(figure: Figure, text: str) -> Figure:
    """A figure, of constrained layout, that says under it what it is of, for who sees nothing but the figure."""
    figure.supxlabel(text, x=0.004, ha="left", fontsize=6, color="#7F7F7F")
    return figure


def accuracy_against_size(rows: Rows) -> Figure:
    """Small multiples: columns by the source's sparsity, rows by epochs of retraining; accuracy against parameters."""
    columns = levels(rows)
    epochs = [e for e in (0, 1) if any(row["epochs"] == e for row in rows)]
    figure = Figure(figsize=(4.2 * len(columns) + 1.5, 3.6 * len(epochs)))
    axes = figure.subplots(len(epochs), len(columns), sharex=True, sharey=True, squeeze=False)
    for across, level in enumerate(columns):
        for down, epoch in enumerate(epochs):
            same = [row for row in rows if row["level"] == level]
            _panel(axes[down][across], same, rows, epoch)
        sparsity = 100 * sum(row["sparsity"] for row in same) / len(same)
        axes[0][across].set_title(f"source {sparsity:.1f} % sparse", fontsize=10)
        axes[-1][across].set_xlabel("parameters")
    lines = {line.get_label(): line for panel in axes.flat for line in panel.get_lines()}
    figure.legend(list(lines.values()), list(lines), loc="center left", bbox_to_anchor=(0.91, 0.5), fontsize=8)
    for down, epoch in enumerate(epochs):
        axes[down][0].set_ylabel(f"test accuracy %, {epoch or 'no'} epoch{'s' * (epoch != 1)} after")
    return figure


def _panel(axes: Axes, same: Rows, rows: Rows, epoch: int) -> None:
    """One source, one amount of retraining."""
    source = 100 * sum(row["source_accuracy"] for row in same) / len(same)
    axes.axhline(source, color="black", linewidth=0.8, linestyle="--", label="the source")
    nonzeros = sum(row["source_nonzeros"] for row in same) / len(same)
    axes.plot(nonzeros, source, marker="*", color="black", markersize=10, linestyle="none", label="at its non-zeros")
    for colour, name in zip(COLOURS, SHOWN, strict=False):
        chosen = [row for row in same if method_name(row) == name and row["epochs"] == epoch]
        _line(axes, chosen, colour, name)
    scratch = [row for row in rows if row["combine"] == "scratch" and row["epochs"] == epoch]
    _line(axes, [row for row in scratch if row["allocation"] == "uniform"], "#7F7F7F", "from scratch")
    axes.set_xscale("log")
    axes.set_ylim(bottom=max(0.0, source - 45), top=source + 3)
    axes.grid(alpha=0.25)


def _line(axes: Axes, rows: Rows, colour: str, name: str) -> None:
    """Mean over replicates with a band from the smallest to the largest."""
    found = points(rows)
    if not found:
        return
    shares = {point.share: [100 * r["accuracy"] for r in rows if r["share"] == point.share] for point in found}
    sizes = [point.params for point in found]
    means = [point.accuracy.mean for point in found]
    axes.plot(sizes, means, color=colour, marker=".", linewidth=1.3, label=name)
    low, high = ([f(shares[point.share]) for point in found] for f in (min, max))
    axes.fill_between(sizes, low, high, color=colour, alpha=0.15, linewidth=0)


def error_curves(curves: Mapping[str, Sequence[float]], widths: Mapping[str, int]) -> Figure:
    """Relative error of each group's consumers against the units that are left; chosen widths are marked."""
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    for index, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[index % len(COLOURS)]
        units = len(curve) - 1
        axes.plot([100 * k / units for k in range(1, units + 1)], [max(e, 1e-6) for e in curve[1:]], color=colour)
        chosen = widths.get(name)
        if chosen:
            axes.plot(100 * chosen / units, max(curve[chosen], 1e-6), marker="o", color=colour, linestyle="none")
        axes.annotate(f"{name}: {chosen or units} of {units}", (2, max(curve[max(1, units // 50)], 1e-6)),
                      color=colour, fontsize=8)  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlabel("units left, %")
    axes.set_ylabel("relative squared error of the next layer")
    axes.set_title("what fusing units costs; dots: the widths chosen (one network)", fontsize=10)
    axes.grid(alpha=0.25)
    return figure


def bars(values: Mapping[str, float], label: str) -> Figure:
    """Horizontal bars, the smallest on top."""
    ordered = dict(sorted(values.items(), key=lambda item: -item[1]))
    figure = Figure(figsize=(7, 0.28 * len(ordered) + 1))
    axes = figure.subplots()
    drawn = axes.barh(list(ordered), list(ordered.values()), color=COLOURS[0])
    axes.bar_label(drawn, fmt="%.1f", fontsize=7, padding=2)
    axes.set_xlabel(label)
    axes.tick_params(axis="y", labelsize=8)
    return figure


def mask_distances(record: Mapping[str, Any]) -> Figure:
    """An early-bird search: for each density the distances of all masks as a heat map, and against the step.

    Args:
        record: As the search writes it: steps, tracks, draws, window, epsilon, measure, total_steps.
    """
    tracks, steps = record["tracks"], record["steps"]
    figure = Figure(figsize=(4.2 * len(tracks) + 0.8, 7), layout="constrained")
    axes = figure.subplots(2, len(tracks), squeeze=False, sharey="row")
    unit = "in units of chance" if record["measure"] == "chance" else "fraction of positions"
    highest = max((d for track in tracks for row in track["distances"] for d in row), default=1.0)
    for across, track in enumerate(tracks):
        draws = [d for d in record["draws"] if d["density"] == track["density"] and d["chosen"]]
        title = f"density {100 * track['density']:g} %"
        if draws:
            title += f": drawn at step {draws[0]['step']:,}" + ("" if draws[0]["settled"] else ", not settled")
        axes[0][across].set_title(title, fontsize=10)
        if steps:
            shown = _heat_map(axes[0][across], steps, track["distances"], draws, highest)
            if across == len(tracks) - 1:
                figure.colorbar(shown, ax=axes[0][across], label=f"mask distance, {unit}")
        _settling(axes[1][across], record, track, draws)
    axes[0][0].set_ylabel("step of a mask")
    axes[1][0].set_ylabel(f"largest distance in the window, {unit}")
    figure.suptitle("early-bird search, one replicate; orange: the step at which the ticket was drawn", fontsize=10)
    return figure


def _heat_map(
    axes: Axes, steps: Sequence[int], rows: Sequence[Sequence[float]], draws: Sequence[Any], highest: float
) -> AxesImage:
    """Distance of every two masks; both axes are their steps. What was not compared stays blank."""
    table = np.full((len(steps), len(steps)), np.nan)
    for index, row in enumerate(rows):
        table[index, index] = 0.0
        table[index, index - len(row) : index] = row
        table[index - len(row) : index, index] = row
    half = (steps[1] - steps[0]) / 2 if len(steps) > 1 else steps[0] / 2
    edges = (steps[0] - half, steps[-1] + half)
    shown = axes.imshow(table, origin="lower", extent=(*edges, *edges), cmap="viridis", vmin=0, vmax=highest or 1.0)
    for draw in draws:
        axes.axvline(draw["step"], color=COLOURS[1], linewidth=1.2)
        axes.axhline(draw["step"], color=COLOURS[1], linewidth=1.2)
    return shown


def _settling(axes: Axes, record: Mapping[str, Any], track: Mapping[str, Any], draws: Sequence[Any]) -> None:
    """Largest distance of each mask to the others of its window, against the step, with ε and the draw."""
    found = [window_distance(row, record["window"]) for row in track["distances"]]
    points = [(step, far) for step, far in zip(record["steps"], found, strict=True) if far is not None]
    axes.plot([step for step, _ in points], [far for _, far in points], color=COLOURS[0], marker=".")
    axes.axhline(record["epsilon"], color="black", linewidth=0.8, linestyle="--")
    axes.annotate(f"ε = {record['epsilon']:.2g}", (0.99, record["epsilon"]), xycoords=("axes fraction", "data"),
                  ha="right", va="bottom", fontsize=8)  # fmt: skip
    for draw in draws:
        axes.axvline(draw["step"], color=COLOURS[1], linewidth=1.2)
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, record["total_steps"])
    axes.set_xlabel("step")
    axes.grid(alpha=0.25)


def flips_by_magnitude(layers: Mapping[str, tuple[Tensor, Tensor]], level: int, step: int) -> Figure:
    """How often weights flipped against how large they are, layer by layer: mean, middle half, 95th percentile.

    Args:
        layers: Name → (|w|, flips) of the remaining weights, each (remaining,).
    """
    columns = min(4, len(layers))
    rows = math.ceil(len(layers) / columns)
    figure = Figure(figsize=(3.6 * columns, 2.9 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for panel, (name, (sizes, flips)) in zip(axes.flat, layers.items(), strict=False):
        _flips_panel(panel, sizes.double().numpy(), flips.double().numpy())
        panel.set_title(f"{name.removesuffix('.weight')}: {len(flips):,} weights", fontsize=9)
    for panel in axes.flat[len(layers) :]:
        panel.set_axis_off()
    axes[0][0].legend(fontsize=8)
    figure.supxlabel("|weight|, percentile within its layer", fontsize=9)
    figure.supylabel("sign flips so far", fontsize=9)
    figure.suptitle(f"sign flips against magnitude, level {level}, step {step:,}", fontsize=10)
    return figure


def _flips_panel(axes: Axes, sizes: NDArray[np.float64], flips: NDArray[np.float64]) -> None:
    bins = np.array_split(flips[sizes.argsort(kind="stable")], min(20, len(flips)))
    places = [100 * (index + 0.5) / len(bins) for index in range(len(bins))]
    low, high, most = np.array([np.percentile(found, (25, 75, 95)) for found in bins]).T
    axes.fill_between(places, low, high, color=COLOURS[0], alpha=0.25, linewidth=0, label="middle half")
    axes.plot(places, most, color=COLOURS[0], linestyle=":", label="95th percentile")
    axes.plot(places, [found.mean() for found in bins], color=COLOURS[1], label="mean")
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, 100)
    axes.grid(alpha=0.25)


STYLES = [(colour, marker) for marker in ("o", "s", "^") for colour in COLOURS]


def methods_side_by_side(comparisons: Sequence[Comparison]) -> Figure:
    """Accuracy against density, operations and seconds; one row for each data set and model, one line per method."""
    lines = max(len(comparison.methods()) for comparison in comparisons)
    figure = Figure(figsize=(15, (4.4 + 0.2 * lines) * len(comparisons)), layout="constrained")
    parts = figure.subfigures(len(comparisons), 1, squeeze=False)[:, 0]
    for part, comparison in zip(parts, comparisons, strict=True):
        row = part.subplots(1, 3, sharey=True)
        for (colour, marker), method in zip(itertools.cycle(STYLES), comparison.methods(), strict=False):
            points = [p for density in comparison.densities() if (p := comparison.at(method, density))]
            for panel, places in zip(row, _places(points), strict=True):
                _with_intervals(panel, places, points, colour, marker, method)
        row[0].set_ylabel("test accuracy %, mean and 95 % interval")
        row[0].invert_xaxis()
        part.suptitle(f"{comparison.data}: all training counted, the search included", fontsize=11)
        for panel, label in zip(row, ("density %", "10⁹ operations of training", "seconds of training"), strict=True):
            panel.set_xlabel(label)
            plain_log_axis(panel)
            panel.grid(alpha=0.25)
        handles, names = row[0].get_legend_handles_labels()
        part.legend(handles, names, fontsize=8, loc="outside lower center", ncol=2 if len(names) > 3 else 1)
    return figure


def plain_log_axis(axes: Axes, which: Literal["x", "y"] = "x") -> None:
    """Logarithmic, with few plain numbers; after the curves are drawn, whose span decides which numbers."""
    scale, axis = (axes.set_xscale, axes.xaxis) if which == "x" else (axes.set_yscale, axes.yaxis)
    scale("log")
    low, high = sorted(axis.get_view_interval())
    is_short = high < 5 * low  # 1, 2, 5 would be one or two
    axis.set_major_locator(
        MaxNLocator(6, steps=[1, 2, 5, 10]) if is_short else LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=8)
    )
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _places(points: Sequence[Point]) -> list[list[float | None]]:
    """Where the points stand in each panel."""
    flops = [None if p.flops is None else p.flops / 1e9 for p in points]
    return [[100 * p.density for p in points], flops, [p.seconds for p in points]]


def _with_intervals(
    axes: Axes, places: Sequence[float | None], points: Sequence[Point], colour: str, marker: str, label: str
) -> None:
    known = [(x, p.test_accuracy) for x, p in zip(places, points, strict=True) if x is not None]
    halves = [100 * (e.high - e.mean) if e.high is not None else 0.0 for _, e in known]
    axes.errorbar([x for x, _ in known], [100 * e.mean for _, e in known], yerr=halves, color=colour, marker=marker,
                  markersize=4, linewidth=1.2, capsize=2, label=label)  # fmt: skip


def latency_bars(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Median latency of each network in each runtime and precision, a panel for each batch; bars from zero."""
    batches, networks = (list(dict.fromkeys(row[key] for row in rows)) for key in ("batch", "network"))
    ways = list(dict.fromkeys((row["runtime"], row["dtype"]) for row in rows))
    figure = Figure(figsize=(6.0 * len(batches), 0.6 + 0.42 * len(ways)))
    panels = figure.subplots(1, len(batches), sharey=True, squeeze=False)[0]
    thick = 0.8 / len(networks)
    for axes, batch in zip(panels, batches, strict=True):
        for index, (network, colour) in enumerate(zip(networks, itertools.cycle(COLOURS), strict=False)):
            found = {(r["runtime"], r["dtype"]): r for r in rows if (r["network"], r["batch"]) == (network, batch)}
            places = [place for place, way in enumerate(ways) if way in found]
            heights = [found[ways[place]]["latency_us_median"] for place in places]
            at = [place + (index - (len(networks) - 1) / 2) * thick for place in places]
            axes.barh(at, heights, thick, color=colour, label=network)
        axes.set_xlabel(f"µs for {batch} image{'s' * (batch != 1)}, one thread")
        axes.grid(alpha=0.25, axis="x")
    panels[0].set_yticks(range(len(ways)), [f"{runtime}, {dtype.replace('_', ' ')}" for runtime, dtype in ways])
    panels[0].invert_yaxis()
    panels[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure
