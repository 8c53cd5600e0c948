"""Fitting a small network to the answers of the one before."""

from copy import deepcopy

import pytest
import torch
from networks import chain, images, shaken
from torch import nn
from torch.nn import functional

from ticketlab.fusion.fuse import Method, fuse
from ticketlab.fusion.refit import WORK, output_layer, probabilities, refit_
from ticketlab.fusion.trace import trace
from ticketlab.models import models


def pair(name="lenet_300_100"):
    torch.manual_seed(0)
    model = shaken(models.find(name)((1, 8, 8) if name == "lenet_300_100" else (1, 28, 28), 10))
    x = images(300, (1, 8, 8) if name == "lenet_300_100" else (1, 28, 28))
    groups = trace(model, x[:1]).groups
    return model, fuse(model, groups, {group.name: 5 for group in groups}, Method("l1", "drop")).model, x


def disagreement(model, small, x):
    with torch.no_grad():
        return float(functional.cross_entropy(small(x), probabilities(model, x)))


def test_all_weights_are_fitted_where_that_is_cheap():
    model, small, x = pair()
    before = deepcopy(small)
    assert refit_(small, model, x, macs=1000) == "all"
    assert disagreement(model, small, x) < disagreement(model, before, x)
    assert not torch.equal(before.fc1.weight, small.fc1.weight)


def test_elsewhere_the_last_layer_alone_is_fitted():
    model, small, x = pair("lenet_5")
    before = deepcopy(small)
    assert refit_(small, model, x, macs=int(WORK)) == "output"
    assert disagreement(model, small, x) < disagreement(model, before, x)
    changed = [n for n, v in small.state_dict().items() if not torch.equal(v, before.state_dict()[n])]
    assert changed == ["output.weight", "output.bias"]


def test_the_last_layer_s_fit_is_the_best_there_is():
    """Softmax regression is convex: no step in any direction lowers the loss."""
    model, small, x = pair("lenet_5")
    refit_(small, model, x, macs=int(WORK))
    best = disagreement(model, small, x)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = deepcopy(small)
        with torch.no_grad():
            other.output.weight += 0.05 * torch.randn(other.output.weight.shape, generator=generator)
        assert disagreement(model, other, x) > best


def test_the_same_network_is_already_fitted():
    model, _, x = pair()
    copy = deepcopy(model)
    refit_(copy, model, x, macs=1000)
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(copy.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize(("last", "found"), [([], "1"), ([nn.LogSoftmax(dim=1)], None)])
def test_the_output_layer_is_the_one_nothing_comes_after(last, found):
    model = chain(nn.Flatten(), nn.Linear(64, 3), *last)
    assert output_layer(model, images(2)) == found
