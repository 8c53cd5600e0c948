import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ticketlab.cost import training_flops
from ticketlab.models import models


def test_training_operations_of_lenet_are_those_worked_out_by_hand():
    """Two for a product; forward, gradient of weights, and gradient of inputs but in the first layer."""
    model = models.find("lenet_300_100")((1, 28, 28), 10)
    assert training_flops(model, (1, 28, 28)) == {"fc1": 4 * 235_200, "fc2": 6 * 30_000, "output": 6 * 1_000}


@pytest.mark.parametrize("name", ["conv_2", "resnet_20", "vgg_16"])
def test_training_operations_are_those_that_torch_counts(name):
    """Independent: torch's counter over a real forward and backward pass of two examples."""
    model = models.find(name)((3, 32, 32), 10)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = training_flops(model, (3, 32, 32))
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items()) and model.training
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 3, 32, 32)).sum().backward()
    assert sum(found.values()) == counter.get_total_flops() / 2
