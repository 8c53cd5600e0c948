"""Frozen weights act on what layers compute, and on nothing that is trained."""

import copy

import pytest
import torch
from torch import nn

from ticketlab.training.frozen import keep_frozen_
from ticketlab.training.sparse import SparseLinear


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 5), (3, 6)),
        (nn.Conv1d(2, 4, 3, padding=1), (3, 2, 9)),
        (nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False), (3, 2, 8, 8)),
        (nn.Conv2d(4, 4, 3, groups=2, padding="same", padding_mode="circular"), (3, 4, 8, 8)),
    ],
)
def test_a_layer_computes_with_its_own_and_its_frozen_weights(layer, shape):
    torch.manual_seed(0)
    kept = torch.rand(layer.weight.shape) < 0.5
    whole = copy.deepcopy(layer)
    frozen = torch.where(kept, 0.0, whole.weight.detach())
    with torch.no_grad():
        layer.weight.mul_(kept)
    model = nn.Sequential(layer)
    names = list(model.state_dict())
    keep_frozen_(model, {"0.weight": frozen})
    given = torch.randn(shape, requires_grad=True)
    twin = given.detach().clone().requires_grad_()
    torch.testing.assert_close(model(given), whole(twin))
    model(given).square().sum().backward()
    whole(twin).square().sum().backward()
    torch.testing.assert_close(given.grad, twin.grad)
    torch.testing.assert_close(layer.weight.grad, whole.weight.grad)
    assert list(model.state_dict()) == names


def test_a_layer_that_stores_its_remaining_weights_alone_takes_frozen_ones():
    torch.manual_seed(0)
    whole = nn.Linear(30, 20)
    kept = torch.rand(20, 30) < 0.2
    model = nn.Sequential(SparseLinear(whole, kept))
    keep_frozen_(model, {"0.weight": torch.where(kept, 0.0, whole.weight.detach())})
    given = torch.randn(7, 30)
    torch.testing.assert_close(model(given), whole(given))
