"""Figures of an instability analysis hold the numbers of its record."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ticketlab.figures import encode
from ticketlab.runs.tensorboard import write_stability
from ticketlab.ticket_figures import along_lines, barriers


def row(level, step, density, rise, high=None):
    found = {
        "mean": rise,
        "low": None if high is None else 2 * rise - high,
        "high": high,
        "n": 1 if high is None else 2,
    }
    curve = {"mean": [0.1, 0.1 + rise, 0.1], "low": [0.09, 0.09, 0.09], "high": [0.2, 0.3, 0.2]}
    return {
        "level": level, "step": step, "share": step / 1000, "density": density, "alphas": [0.0, 0.5, 1.0],
        "barrier": {"validation": found, "train": {**found, "mean": rise / 2}},
        "distance": {"mean": 7.5}, "curves": {"validation": curve, "train": curve},
    }  # fmt: skip


def record(*rows):
    return {"run": "runs/tiny-000000", "steps": 1000, "threshold": 0.02, "rows": list(rows)}


LEVELS = record(row(0, 50, 1.0, 0.08, high=0.10), row(1, 50, 0.5, 0.02))
STEPS = record(row(0, 0, 1.0, 0.3), row(0, 200, 1.0, 0.01))


def test_each_level_has_its_errors_along_the_line_in_per_cent():
    figure = along_lines(LEVELS)
    validation, train = figure.axes
    heights = [line.get_ydata() for line in validation.lines]
    assert heights == [pytest.approx([10, 18, 10]), pytest.approx([10, 12, 10])]
    assert [line.get_label() for line in validation.lines] == ["level 0 (100 %), step 50", "level 1 (50 %), step 50"]
    assert (validation.get_ylabel(), train.get_ylabel()) == ("validation error, %", "train error, %")
    assert len(validation.collections) == 2, "a band for each"
    assert set(encode(figure)) == {"png", "svg"}


def test_barriers_stand_against_density_or_against_the_step_where_steps_differ():
    axes = barriers(LEVELS).axes[0]
    series = {container.get_label(): container for container in axes.containers}
    assert list(series["validation"][0].get_xdata()) == [100, 50]
    assert list(series["validation"][0].get_ydata()) == [8, 2]
    assert list(series["train"][0].get_ydata()) == [4, 1]
    assert axes.xaxis_inverted() and axes.lines[-1].get_ydata()[0] == 2
    axes = barriers(STEPS).axes[0]
    series = {container.get_label(): container for container in axes.containers}
    assert list(series["level 0, validation"][0].get_xdata()) == [0, 20]
    assert list(series["level 0, validation"][0].get_ydata()) == [30, 1]


@pytest.mark.parametrize(
    ("found", "barrier", "line"),
    [
        (LEVELS, {"barrier_by_level/validation": [(0, 0.08), (1, 0.02)]}, "error_on_line/level_1_at_50_train"),
        (STEPS, {"barrier_by_step_of_level_0/train": [(0, 0.15), (200, 0.005)]}, "error_on_line/level_0_at_200_train"),
    ],
)
def test_tensorboard_has_barriers_curves_and_figures_once(tmp_path, found, barrier, line):
    picture = {"line": encode(along_lines(found), "png")["png"]}
    for _ in range(2):
        write_stability(tmp_path, found, picture)
    events = EventAccumulator(str(tmp_path)).Reload()
    for tag, points in barrier.items():
        assert [(e.step, e.value) for e in events.Scalars(tag)] == [(step, pytest.approx(v)) for step, v in points]
    assert [e.step for e in events.Scalars(line)] == [0, 1, 2]
    assert events.Tags()["images"] == ["stability/line"]
