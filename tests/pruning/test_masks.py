import pytest
import torch
from torch import nn

from ticketlab.pruning.masks import density, full_mask, masked, prunable, remaining


def toy_mask():
    return {
        "a.weight": torch.tensor([[True, False], [False, False]]),
        "b.weight": torch.tensor([[True, True, True, False]]),
    }


def test_only_weights_of_linear_and_convolution_layers_may_be_pruned():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3), nn.LayerNorm(3))
    assert prunable(model) == ["0.weight", "3.weight"]
    assert prunable(nn.Linear(2, 2)) == ["weight"]
    assert all(kept.all() for kept in full_mask(model).values())


def test_density_counts_what_remains():
    assert remaining(toy_mask()) == 4
    assert density(toy_mask()) == 0.5


def test_masking_copies_and_leaves_positive_zeros_even_over_nan():
    weights = {"a.weight": torch.tensor([[1.0, -2.0], [float("nan"), -0.0]]), "a.bias": torch.ones(2)}
    found = masked(weights, {"a.weight": toy_mask()["a.weight"]})
    assert found["a.weight"].tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert not found["a.weight"].signbit().any()
    found["a.bias"][0] = 7
    assert weights["a.bias"][0] == 1


@pytest.mark.parametrize("name", ["a.weight", "b.weight"])
def test_masking_keeps_the_kept_values_bit_for_bit(name):
    mask = toy_mask()
    weights = {key: torch.randn(kept.shape) for key, kept in mask.items()}
    found = masked(weights, mask)
    assert torch.equal(found[name][mask[name]], weights[name][mask[name]])
