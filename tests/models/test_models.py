import math

import pytest
import torch

from ticketlab.models import models
from ticketlab.pruning.masks import full_mask, prunable, total

GREY, COLOUR, SERIES, TABLE = (1, 28, 28), (3, 32, 32), (6, 1, 128), (18, 1, 1)
# weights without biases and normalisation, from the layer shapes in the papers
EXPECTED = {
    "lenet_300_100": (GREY, 784 * 300 + 300 * 100 + 100 * 10),
    "lenet_5": (GREY, 20 * 25 + 50 * 20 * 25 + 800 * 500 + 500 * 10),
    "conv_2": (COLOUR, 64 * 27 + 64 * 64 * 9 + 64 * 16 * 16 * 256 + 256 * 256 + 2560),
    "conv_4": (COLOUR, 38592 + 128 * 64 * 9 + 128 * 128 * 9 + 128 * 64 * 256 + 256 * 256 + 2560),
    "conv_6": (COLOUR, 259776 + 256 * 128 * 9 + 256 * 256 * 9 + 256 * 16 * 256 + 256 * 256 + 2560),
    "resnet_20": (COLOUR, 432 + 6 * 2304 + 4608 + 5 * 9216 + 512 + 18432 + 5 * 36864 + 2048 + 640),
    "vgg_16": (COLOUR, 1728 + 36864 + 73728 + 147456 + 294912 + 2 * 589824 + 1179648 + 5 * 2359296 + 5120),
    "har_cnn": (SERIES, 32 * 6 * 9 + 64 * 32 * 9 + 64 * 64 * 5 + 64 * 10),
    "mlp": (TABLE, 18 * 32 + 32 * 16 + 16 * 10),
}


def build(name, **options):
    torch.manual_seed(0)
    return models.find(name)(EXPECTED[name][0], 10, **options)


def test_every_model_is_expected_here():
    assert set(models) == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_model_has_the_weights_of_its_paper_and_answers_with_logits(name):
    shape, weights = EXPECTED[name]
    model = build(name)
    assert total(full_mask(model)) == weights
    assert model(torch.zeros(2, *shape)).shape == (2, 10)
    assert prunable(model)[-1] == "output.weight"


@pytest.mark.parametrize("name", ["lenet_300_100", "lenet_5", "conv_2", "conv_4", "conv_6", "mlp"])
def test_the_small_networks_start_glorot_normal_with_zero_biases(name):
    parameters = dict(build(name).named_parameters())
    for key in prunable(build(name)):
        weight = parameters[key]
        area = weight[0, 0].numel() if weight.dim() == 4 else 1
        deviation = math.sqrt(2 / ((weight.shape[0] + weight.shape[1]) * area))
        assert weight.std().item() == pytest.approx(deviation, rel=5 / math.sqrt(weight.numel()))
        assert not parameters[key.replace("weight", "bias")].any()


@pytest.mark.parametrize("name", ["resnet_20", "vgg_16"])
def test_the_deep_networks_start_he_normal_with_uniform_scales(name):
    model = build(name)
    parameters = dict(model.named_parameters())
    for key in prunable(model)[:-1]:
        weight = parameters[key]
        deviation = math.sqrt(2 / weight[0].numel())
        assert weight.std().item() == pytest.approx(deviation, rel=5 / math.sqrt(weight.numel()))
    scales = torch.cat([m.weight.detach() for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)])
    assert 0 <= scales.min() < 0.05 and 0.95 < scales.max() <= 1
    assert scales.mean().item() == pytest.approx(0.5, abs=0.05)
    ones = build(name, batchnorm_init="ones")
    assert all((m.weight == 1).all() for m in ones.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_options_change_the_network():
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in build("lenet_5", batch_norm=True).modules())
    assert sum(isinstance(m, torch.nn.Dropout) for m in build("conv_2", dropout=0.5).modules()) == 2


def test_hidden_widths_are_listed_or_named():
    assert total(full_mask(build("mlp", hidden=[5, 4, 3]))) == 18 * 5 + 5 * 4 + 4 * 3 + 3 * 10
    assert total(full_mask(build("mlp", hidden=[]))) == 180
    assert total(full_mask(build("mlp", widths={"fc2": 7}))) == 18 * 32 + 32 * 7 + 7 * 10
    assert build("har_cnn", widths={"conv2": 5}).conv3.weight.shape == (64, 5, 1, 5)


def test_a_convolution_over_time_answers_the_same_for_any_length():
    """Zero padding aside, a constant series looks the same at every moment: with one tap each, its mean is it."""
    model = build("har_cnn")
    for layer in (model.conv1, model.conv2, model.conv3):
        middle = layer.weight.shape[3] // 2
        layer.weight.data[..., :middle], layer.weight.data[..., middle + 1 :] = 0, 0
    values = torch.randn(2, 6, 1, 1)
    assert torch.allclose(model(values.expand(-1, -1, 1, 128)), model(values.expand(-1, -1, 1, 40)), atol=1e-6)


def test_a_residual_block_adds_its_input():
    """With both convolutions at zero a block is the rectified input: worked out from figure 2 of the paper."""
    block = build("resnet_20").blocks[0].eval()
    torch.nn.init.zeros_(block.conv1.weight)
    torch.nn.init.zeros_(block.conv2.weight)
    images = torch.randn(2, 16, 5, 5)
    assert torch.equal(block(images), images.relu())
