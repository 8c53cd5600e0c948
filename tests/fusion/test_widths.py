"""How many units each group keeps: costs against counting, budgets met, curves as they are defined."""

import pytest
import torch
from networks import SHAPE, Branches, Depthwise, Preactivated, images, shaken
from test_trace import ZOO

from ticketlab.cost import layer_macs
from ticketlab.errors import FusionError
from ticketlab.fusion.fuse import Method, fuse
from ticketlab.fusion.trace import trace
from ticketlab.fusion.widths import cost_model, error_curves, uniform, within
from ticketlab.models import models


def counted(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["lenet_300_100", "lenet_5", "conv_4", "resnet_20"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_forecast_costs_are_those_of_the_network_that_is_made(name, share):
    shape = ZOO[name]
    model = models.find(name)(shape, 10).eval()
    groups = trace(model, images(1, shape)).groups
    costs = cost_model(model, groups, layer_macs(model, shape))
    widths = uniform(groups, share)
    small = fuse(model, groups, widths, Method("l1", "drop")).model
    assert costs.parameters(widths) == counted(small)
    assert costs.macs(widths) == sum(layer_macs(small, shape).values())


@pytest.mark.parametrize("network", [Branches, Depthwise, Preactivated])
def test_forecast_parameters_hold_for_odd_networks(network):
    model = shaken(network())
    groups = trace(model, images(1)).groups
    widths = uniform(groups, 0.5)
    small = fuse(model, groups, widths, Method("l1", "drop")).model
    assert cost_model(model, groups, layer_macs(model, SHAPE)).parameters(widths) == counted(small)


def lenet():
    torch.manual_seed(0)
    model = models.find("lenet_300_100")((1, 8, 8), 10).eval()
    return model, trace(model, images(1)).groups


@pytest.mark.parametrize("round_to", [1, 8])
@pytest.mark.parametrize("budget", [2_000, 10_000, 30_000])
def test_a_budget_is_met_and_used(budget, round_to):
    model, groups = lenet()
    costs = cost_model(model, groups, {})
    curves = error_curves(model, groups, images(500))
    widths = within(groups, curves, costs.parameters, budget, round_to)
    assert costs.parameters(widths) <= budget
    assert all(width % round_to == 0 for width in widths.values() if width not in (300, 100))
    one_more = [{**widths, name: width + round_to} for name, width in widths.items()]
    assert all(costs.parameters(wider) > budget for wider in one_more)


def test_the_group_whose_error_does_not_rise_goes_first():
    _, groups = lenet()
    curves = {"fc1": torch.zeros(301), "fc2": torch.linspace(1, 0, 101)}
    widths = within(groups, curves, lambda w: w["fc1"] + w["fc2"], 150)
    assert widths == {"fc1": 50, "fc2": 100}


def test_a_budget_below_the_narrowest_network_is_told_with_its_cost():
    model, groups = lenet()
    costs = cost_model(model, groups, {})
    least = 64 + 1 + 1 + 1 + 10 + 10
    with pytest.raises(FusionError, match=f"narrowest network's cost of {least};"):
        within(groups, {}, costs.parameters, least - 1)


def test_error_curves_fall_from_one_to_zero():
    model, groups = lenet()
    for group in groups:
        curve = error_curves(model, groups, images(500))[group.name]
        assert len(curve) == group.units + 1
        assert curve[0] == 1 and curve[-1] == 0
        assert (curve[:-1] >= curve[1:]).all()


def test_uniform_keeps_at_least_one_unit():
    _, groups = lenet()
    assert uniform(groups, 0.001) == {"fc1": 1, "fc2": 1}
