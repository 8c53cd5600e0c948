import numpy as np
import pytest
from matplotlib.figure import Figure

from ticketlab.figures import encode, mask_distances, plain_log_axis

RECORD = {
    "measure": "chance", "epsilon": 0.3, "window": 3, "total_steps": 50, "steps": [10, 20, 30, 40],
    "tracks": [{"density": 0.5, "distances": [[], [0.5], [0.6, 0.25], [0.2, 0.1]]}],
    "draws": [{"density": 0.5, "step": 40, "settled": True, "chosen": True}],
}  # fmt: skip
"""The last mask was not compared with the first one, which was forgotten."""


def test_the_heat_map_holds_every_distance_twice_and_blanks_where_none_was_taken():
    figure = mask_distances(RECORD)
    table = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)
    nan = np.nan
    expected = [[0, 0.5, 0.6, nan], [0.5, 0, 0.25, 0.2], [0.6, 0.25, 0, 0.1], [nan, 0.2, 0.1, 0]]
    np.testing.assert_array_equal(table, expected)
    assert tuple(figure.axes[0].images[0].get_extent()) == (5, 45, 5, 45)


def test_the_draw_and_the_window_are_marked():
    figure = mask_distances(RECORD)
    assert figure.axes[0].get_title() == "density 50 %: drawn at step 40"
    heat, settling = figure.axes[0], figure.axes[1]
    assert sorted(list(line.get_xdata()) for line in heat.lines) == [[0, 1], [40, 40]]
    assert settling.lines[0].get_xydata().tolist() == [[30, 0.6], [40, 0.2]]
    assert set(encode(figure)) == {"png", "svg"}


@pytest.mark.parametrize("low, high, least", [(64, 100, 4), (30, 100, 3), (3, 100, 4), (0.1, 100, 5)])
def test_a_logarithmic_axis_has_some_numbers_whatever_its_span(low, high, least):
    figure = Figure()
    axes = figure.subplots()
    axes.plot([low, high], [1, 2])
    plain_log_axis(axes)
    left, right = axes.get_xlim()
    shown = [place for place in axes.xaxis.get_majorticklocs() if left <= place <= right]
    assert least <= len(shown) <= 10
    assert all(axes.xaxis.get_major_formatter()(place).replace(".", "").isdigit() for place in shown)
