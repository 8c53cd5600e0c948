"""Narrower editions of the networks, and networks rebuilt from a compact state."""

import pytest
import torch

from ticketlab.errors import PluginError
from ticketlab.models import models
from ticketlab.models.compact import layer_widths, rebuild

NARROW = {
    "lenet_300_100": {"fc1": 7, "fc2": 3},
    "lenet_5": {"conv1": 3, "conv2": 4, "fc1": 5},
    "conv_2": {"conv1": 3, "conv2": 4, "fc1": 5, "fc2": 6},
    "conv_6": {"conv5": 9, "fc2": 2},
    "resnet_20": {"blocks.0.conv1": 5, "blocks.7.conv1": 9},
    "vgg_16": {"conv1": 5, "conv13": 11},
}


@pytest.mark.parametrize("name", NARROW)
def test_a_network_is_rebuilt_from_a_narrower_state(name):
    shape = (3, 32, 32)
    narrow = models.find(name)(shape, 10, widths=NARROW[name]).eval()
    assert layer_widths(narrow) == {**layer_widths(models.find(name)(shape, 10)), **NARROW[name]}
    again = rebuild(models.find(name)(shape, 10), narrow.state_dict()).eval()
    images = torch.randn(2, *shape)
    with torch.no_grad():
        assert torch.equal(narrow(images), again(images))
    assert repr(again) == repr(narrow)


def test_a_stream_of_a_residual_network_may_be_narrower_as_a_whole():
    stream = {"conv": 5, **{f"blocks.{i}.conv2": 5 for i in range(3)}}
    assert models.find("resnet_20")((3, 32, 32), 10, widths=stream)(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(ValueError, match=r"what blocks\.0 adds up must be equally wide"):
        models.find("resnet_20")((3, 32, 32), 10, widths={"conv": 5})


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"fc3": 5}, "no layer 'fc3'; did you mean 'fc"),
        ({"fc1": 0}, "at least 1"),
        ({"fc1": "many"}, "whole number"),
        ({"output": 7}, "must stay 10"),
    ],
)
def test_widths_that_make_no_sense_are_told(widths, message):
    with pytest.raises(ValueError, match=message):
        models.find("lenet_300_100")((1, 28, 28), 10, widths=widths)


def test_weights_of_another_network_are_told():
    state = models.find("lenet_5")((1, 28, 28), 10).state_dict()
    with pytest.raises(PluginError, match="belong to another network"):
        rebuild(models.find("lenet_300_100")((1, 28, 28), 10), state)
