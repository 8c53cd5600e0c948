"""What the figures of a run draw, read back from their lines."""

import numpy as np
import pytest
from support import level

from ticketlab import run_figures
from ticketlab.figures import encode


def curve(*losses, every=100.0):
    return tuple(
        {"step": every * place, "val_loss": loss, "val_accuracy": 1 - loss} for place, loss in enumerate(losses, 1)
    )


def lines(axes):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}


def test_layers_are_means_over_replicates_against_the_whole_network():
    figure = run_figures.densities_by_layer([
        level(1, 0, 0.9, layers={"fc1.weight": 1.0}), level(2, 0, 0.9, layers={"fc1.weight": 1.0}),
        level(1, 1, 0.9, layers={"fc1.weight": 0.4}), level(2, 1, 0.9, layers={"fc1.weight": 0.2}),
    ])  # fmt: skip
    (axes,) = figure.axes
    found = lines(axes)
    assert found["fc1"] == ([100.0, 50.0], [pytest.approx(100), pytest.approx(30)])
    assert axes.get_xlabel() == "density of the network, %" and axes.get_ylabel() == "density of the layer, %"
    assert "mean of 2 replicates" in axes.get_title()


def test_training_curves_are_means_over_replicates_and_darker_the_denser():
    levels = [
        level(1, 0, 0.9, density=0.2, curve=curve(0.5, 0.3)), level(2, 0, 0.9, density=0.2, curve=curve(0.3, 0.1)),
        level(1, 1, 0.9, density=0.8, curve=curve(0.6, 0.2)),
    ]  # fmt: skip
    figure = run_figures.training_curves(levels)
    loss, accuracy = figure.axes
    found = lines(loss)
    assert found["level 0, 20 %"] == ([100, 200], [pytest.approx(0.4), pytest.approx(0.2)])
    assert lines(accuracy)["_child1"][1] == [pytest.approx(60), pytest.approx(80)]
    dense, sparse = (line for line in loss.get_lines() if line.get_label().startswith("level"))
    assert dense.get_label() == "level 1, 80 %"
    assert sum(dense.get_color()[:3]) < sum(sparse.get_color()[:3])
    assert "mean of 1 to 2 replicates" in figure.get_suptitle()


def test_curves_on_grids_that_do_not_meet_are_called_the_first_replicates():
    levels = [level(1, 1, 0.9, curve=curve(0.5, 0.3)), level(2, 1, 0.9, curve=curve(0.3, 0.1, every=70.0))]
    figure = run_figures.training_curves(levels)
    assert lines(figure.axes[0])["level 1, 50 %"] == ([100, 200], [0.5, 0.3])
    assert "the first replicate where their steps differ" in figure.get_suptitle()


def test_overlaps_stand_beside_chance_and_say_what_they_are_of():
    figure = run_figures.overlaps({1: 0.9, 2: 0.4}, {1: 0.8, 2: 0.3}, {1: 0.8, 2: 0.3}, 5, "channels")
    (axes,) = figure.axes
    assert lines(axes)["two replicates"] == ([80, 30], [90, 40])
    assert axes.get_ylabel().startswith("channels that both keep") and "5 replicates" in axes.get_title()


def test_pixels_are_in_units_of_their_mean_and_say_of_how_many_weights():
    shares = np.full((8, 8), 0.2)
    shares[0] = 0.0
    shares[1] = 0.4
    figure = run_figures.input_pixels({1: shares}, {1: 0.8}, 300)
    assert "which of the 300 weights at each input pixel" in figure.get_suptitle().replace("\n", " ")
    assert figure.axes[0].get_title() == "level 1: 80 %"
    seen = np.asarray(figure.axes[0].get_images()[0].get_array())
    assert seen[:3, 0].tolist() == pytest.approx([0, 2, 1])


def test_an_empty_first_layer_has_a_picture_too():
    figure = run_figures.input_pixels({1: np.zeros((8, 8))}, {1: 0.0}, 300)
    assert not np.asarray(figure.axes[0].get_images()[0].get_array()).any()


def test_only_some_of_many_levels_are_drawn_the_first_and_the_last_among_them():
    assert run_figures.some(range(16)) == [0, 2, 4, 6, 9, 11, 13, 15]
    assert run_figures.some([3, 5], 4) == [3, 5]


def test_sign_flips_are_per_remaining_weight():
    flips = [level(1, n, 0.9, sign_flips={"fc1.weight": {"per_weight": 0.1 * n, "never": 0.5}}) for n in (1, 2)]
    (axes,) = run_figures.flips_by_layer([level(1, 0, 0.9), *flips]).axes
    assert lines(axes)["fc1"] == ([1, 2], [0.1, 0.2])
    assert encode(run_figures.flips_by_layer(flips), "svg")["svg"].startswith(b"<?xml")
