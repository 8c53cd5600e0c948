import math

import pytest
import torch

from ticketlab.pruning.rewire import anywhere, growth, moved_share, opposed, strongest, weakest


def test_the_share_that_moves_falls_like_a_cosine_or_stays():
    assert [moved_share(0.4, done, True) for done in (0, 0.5, 1)] == pytest.approx([0.4, 0.2, 0.0])
    assert moved_share(0.4, 1 / 3, True) == pytest.approx(0.2 * (1 + math.cos(math.pi / 3)))
    assert [moved_share(0.4, done, False) for done in (0, 1)] == [0.4, 0.4]


def test_the_smallest_of_those_that_remain_go():
    weight = torch.tensor([[0.1, -0.5], [0.3, 0.0]])
    mask = torch.tensor([[True, True], [True, False]])
    assert weakest(weight, mask, 2).tolist() == [[True, False], [True, False]]
    assert not weakest(weight, mask, 0).any()


def test_the_highest_of_those_allowed_come_and_of_equal_ones_the_earlier():
    score = torch.tensor([5.0, 1.0, 1.0, 3.0])
    assert strongest(score, torch.tensor([False, True, True, True]), 2).tolist() == [False, True, False, True]


def test_what_has_left_its_sign_goes_and_zero_has_not():
    weight = torch.tensor([0.1, -0.1, 0.0, -2.0])
    sign = torch.tensor([1.0, 1.0, -1.0, 1.0])
    assert opposed(weight, sign, torch.tensor([True, True, True, False])).tolist() == [False, True, False, False]


def test_layers_get_weights_in_proportion_to_the_mean_momentum_of_those_that_remain():
    momentum = {"a": torch.tensor([3.0, -3.0, 9.0, 0.0]), "b": torch.tensor([1.0, 0.0, 0.0, 0.0])}
    masks = {"a": torch.tensor([True, True, False, False]), "b": torch.tensor([True, False, False, False])}
    assert growth(momentum, masks, {"a": 1, "b": 3}) == {"a": 2, "b": 2}  # 3 : 1, but a has room for two alone
    assert growth(momentum, masks, {"a": 0, "b": 2}) == {"a": 2, "b": 0}  # 1.5 and 0.5: the earlier is rounded up
    still = {name: torch.zeros(4) for name in momentum}
    assert growth(still, masks, {"a": 1, "b": 2}) == {"a": 1, "b": 2}


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 6])
def test_any_place_that_is_allowed_has_the_same_chance(count):
    allowed = torch.tensor([[True, False, True, True], [True, True, False, True]])
    generator = torch.Generator().manual_seed(0)
    found = torch.stack([anywhere(allowed, count, generator) for _ in range(3000)])
    assert (found.flatten(1).sum(1) == count).all() and not found[:, ~allowed].any()
    # 6 places: a share of count / 6 each, with a deviation of at most √(0.25 / 3000) = 0.009
    torch.testing.assert_close(
        found[:, allowed].double().mean(0), torch.full((6,), count / 6).double(), atol=0.04, rtol=0
    )
