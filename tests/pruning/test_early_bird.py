import pytest
import torch

from ticketlab.pruning.allocate import Pool
from ticketlab.pruning.early_bird import (
    decides_nothing,
    has_settled,
    layer_distances,
    mask_distance,
    nearly_empty,
    snapshot,
)
from ticketlab.pruning.masks import unpack


def bits(text):
    return torch.tensor([letter == "1" for letter in text])


def snap(**layers):
    return snapshot({name: bits(text) for name, text in layers.items()})


def test_a_snapshot_gives_the_mask_back():
    mask = {"a": torch.rand(5, 7) > 0.4, "b": torch.rand(3) > 0.5}
    bits = snapshot(mask).bits
    assert all(torch.equal(unpack(bits[name], kept.shape), kept) for name, kept in mask.items())
    assert snapshot(mask).kept == {name: int(kept.sum()) for name, kept in mask.items()}
    assert snapshot(mask).nbytes == 5 + 1


def test_the_raw_distance_is_the_fraction_of_differing_positions():
    first, second = snap(a="1100", b="111111"), snap(a="1010", b="111111")
    assert mask_distance(first, second, "hamming") == 2 / 10
    assert layer_distances(first, second, "hamming") == {"a": 0.5, "b": 0.0}
    assert mask_distance(first, first, "hamming") == mask_distance(first, first, "chance") == 0


def test_a_distance_in_units_of_chance_is_worked_out_by_hand():
    """At half density chance is ½ of 4 positions; b, full in both, cannot differ: 2 / 2. a alone: the same."""
    assert mask_distance(snap(a="1100", b="111"), snap(a="1010", b="111"), "chance") == 1.0
    # densities ¼ and ¾: ¼·¼ + ¾·¾ = 0.625 of 8 positions by chance, 4 found
    assert mask_distance(snap(a="11000000"), snap(a="11111100"), "chance") == pytest.approx(4 / 5)
    # two layers: 2 of 4 (chance 2) and 0 of 8 (density ⅛: chance 2·⅛·⅞·8 = 1.75)
    two = mask_distance(snap(a="1100", b="10000000"), snap(a="1010", b="10000000"), "chance")
    assert two == pytest.approx(2 / 3.75)


@pytest.mark.parametrize("density", [0.5, 0.2, 0.05])
def test_unrelated_masks_are_one_unit_apart_whatever_the_density(density):
    generator = torch.Generator().manual_seed(1)
    drawn = [{"a": torch.rand(200_000, generator=generator) < density} for _ in range(2)]
    found = mask_distance(snapshot(drawn[0]), snapshot(drawn[1]), "chance")
    assert found == pytest.approx(1, abs=0.02)
    raw = mask_distance(snapshot(drawn[0]), snapshot(drawn[1]), "hamming")
    assert raw == pytest.approx(2 * density * (1 - density), abs=0.005)


def test_layers_in_which_chance_has_no_say_are_no_distance():
    assert mask_distance(snap(a="1111", b="0000"), snap(a="1111", b="0000"), "chance") == 0


def test_a_mask_settles_only_in_a_full_window_and_below_epsilon():
    assert not has_settled([0.01, 0.01, 0.01], window=5, epsilon=0.1)
    assert has_settled([0.01, 0.02, 0.05, 0.09], window=5, epsilon=0.1)
    assert not has_settled([0.01, 0.02, 0.05, 0.1], window=5, epsilon=0.1)
    # what lies before the window does not count
    assert has_settled([0.9, 0.01, 0.02, 0.05, 0.09], window=5, epsilon=0.1)
    assert has_settled([0.05], window=2, epsilon=0.1)


def test_equal_saliencies_decide_nothing():
    half = {"a": torch.full((4,), 0.5), "b": torch.full((3,), 0.5)}
    together, apart = [Pool(("a", "b"), 0.2)], [Pool(("a",), 0.2), Pool(("b",), 0.2)]
    assert decides_nothing(half, together)
    other = {**half, "b": torch.tensor([0.5, 0.5, 0.6])}
    assert not decides_nothing(other, together)
    assert not decides_nothing(other, apart)  # one layer that is still constant does not silence the others
    # a pool that loses nothing does not decide
    assert decides_nothing(other, [Pool(("a",), 0.2), Pool(("b",), 0.0)])


def test_a_layer_far_below_the_average_density_is_about_to_be_empty():
    mask = {"a": bits("1" * 18 + "0" * 2), "b": bits("1" + "0" * 19), "c": bits("1")}
    # average 20 / 41; a tenth of it in b is 0.98 weights, but a single one of several is always told
    assert nearly_empty(mask, 0.1) == ["b"]
    assert nearly_empty({"a": bits("1" * 20), "b": bits("11" + "0" * 18)}, 0.1) == []
    assert nearly_empty({"a": bits("1" * 20), "b": bits("11" + "0" * 38)}, 0.2) == ["b"]
