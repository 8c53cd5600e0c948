import numpy as np
import pytest
import torch

from ticketlab.pruning.overlap import (
    between_replicates,
    by_chance,
    by_pixel,
    first_layer,
    is_comparable,
    kept_by_both,
    nesting,
    picture_shape,
)


def mask(*kept, size=8):
    made = torch.zeros(size, dtype=torch.bool)
    made[list(kept)] = True
    return {"fc.weight": made}


def test_overlap_is_the_share_of_one_masks_weights_that_the_other_keeps_too():
    assert kept_by_both(mask(0, 1, 2, 3), mask(2, 3, 4)) == 2 / 4
    assert kept_by_both(mask(2, 3, 4), mask(0, 1, 2, 3)) == 2 / 3
    assert kept_by_both(mask(), mask(1)) == 0


def test_overlap_counts_all_layers_together():
    one = {"a": torch.tensor([True, True]), "b": torch.tensor([True, False, True])}
    other = {"a": torch.tensor([False, True]), "b": torch.tensor([True, True, True])}
    assert kept_by_both(one, other) == 3 / 4


def test_between_replicates_is_the_mean_over_pairs():
    assert between_replicates([mask(0, 1), mask(1, 2), mask(0, 1)]) == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)
    assert between_replicates([mask(0)]) is None


def test_chance_is_that_of_random_masks_with_the_same_density_in_each_layer():
    mask = {"a": torch.tensor([True] * 2 + [False] * 98), "b": torch.tensor([True] * 5 + [False] * 5)}
    # two weights meet with chance 0.02 each, five with chance 0.5 each; the density of all is 7 / 110
    assert by_chance([mask, mask]) == pytest.approx((2 * 0.02 + 5 * 0.5) / 7)
    left = {"a": torch.arange(10) < 8, "b": torch.arange(10) < 2}
    right = {"a": torch.arange(10) < 2, "b": torch.arange(10) < 8}
    # of the eight in a, a fifth; of the two in b, four fifths
    assert by_chance([left, right]) == pytest.approx((8 * 0.2 + 2 * 0.8) / 10)


def test_masks_of_weights_and_of_channels_are_not_comparable():
    weights = {"conv.weight": torch.ones(4, 3, 3, 3, dtype=torch.bool)}
    smaller = {"conv.weight": torch.ones(2, 3, 3, 3, dtype=torch.bool)}
    assert is_comparable(weights, weights)
    assert not is_comparable(weights, smaller)
    assert not is_comparable(weights, {"0": torch.ones(4, dtype=torch.bool)})
    assert not is_comparable({}, {})


def test_nested_masks_are_kept_by_all_before_them():
    found = nesting([mask(0, 1, 2, 3), mask(0, 1), mask(1)])
    assert found.tolist() == [[1, 0.5, 0.25], [1, 1, 0.5], [1, 1, 1]]


@pytest.mark.parametrize(
    ("inputs", "shape"),
    [(784, (1, 28, 28)), (64, (1, 8, 8)), (3072, (3, 32, 32)), (49, None), (100, (1, 10, 10)), (561, None)],
)
def test_square_inputs_are_pictures(inputs, shape):
    assert picture_shape(inputs) == shape


def test_a_pixel_of_three_channels_counts_the_weights_of_all():
    kept = torch.zeros(2, 3 * 64, dtype=torch.bool)
    kept[0, 0] = kept[1, 64] = kept[0, 128] = True  # the first pixel: one weight of two in each channel
    shares = by_pixel(kept)
    assert shares.shape == (8, 8) and shares[0, 0] == 0.5 and shares.sum() == 0.5


def test_filters_of_a_first_convolution_are_tiles():
    kept = torch.tensor([[[[1, 0], [0, 1]]], [[[1, 1], [1, 1]]]], dtype=torch.bool)  # two filters of one channel
    name, picture = first_layer({"conv1.weight": kept, "fc.weight": torch.ones(2, 2)})
    assert name == "conv1.weight"
    rows = [[1, 0], [0, 1], [0.3, 0.3], [1, 1], [1, 1], [0.3, 0.3]]
    assert np.array_equal(picture, [[*row, 0.3, 0.3] for row in rows])
    # 64 filters of three colours in 16 rows of four, about as high as they are wide
    name, picture = first_layer({"conv1.weight": torch.ones(64, 3, 3, 3)})
    assert picture.shape == (16 * 4, 4 * (3 * 4 + 1)) and picture[4:7, 13:16].min() == 1


def test_masks_of_channels_and_of_tables_have_no_picture():
    assert first_layer({"bn1": torch.ones(8, dtype=torch.bool)}) is None
    assert first_layer({"fc.weight": torch.ones(4, 13, dtype=torch.bool)}) is None
    assert first_layer({}) is None
