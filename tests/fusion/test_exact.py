"""Reductions that change nothing: each case worked out by hand, then every network at once."""

from copy import deepcopy

import pytest
import torch
from networks import SHAPE, Branches, Depthwise, Padded, Preactivated, chain, images, linear, relative, shaken
from test_trace import ZOO
from torch import nn

from ticketlab.errors import FusionError
from ticketlab.fusion.exact import fold_norms, reduce_exactly
from ticketlab.fusion.trace import trace
from ticketlab.models import models
from ticketlab.models.compact import layer_widths


def reduced(model, shape=SHAPE):
    return reduce_exactly(model, trace(model.float(), images(1, shape)).groups, shape)


def zero_some_(model, seed=0):
    """Zero a third of the rows and a fifth of the columns: no row of the last layer, no column of the first."""
    generator = torch.Generator().manual_seed(seed)
    weights = [value for value in model.parameters() if value.dim() > 1]
    for index, weight in enumerate(weights):
        if index < len(weights) - 1:
            weight.data[some(len(weight), 0.33, generator)] = 0
        if index and weight.shape[1] > 1:
            weight.data[:, some(weight.shape[1], 0.2, generator)] = 0
    return model


def some(count, share, generator):
    """A random choice; never the first, so that no network dies as a whole."""
    chosen = torch.rand(count, generator=generator) < share
    chosen[0] = False
    return chosen


def zoo_network(name, dtype):
    torch.manual_seed(0)
    return zero_some_(shaken(models.find(name)(ZOO[name], 10))).to(dtype)


@pytest.mark.parametrize("name", ZOO)
def test_every_model_of_the_zoo_keeps_its_logits_with_a_third_of_its_rows_dead(name):
    model = zoo_network(name, torch.float32)
    found = reduced(model, ZOO[name])
    small, x = found.model, images(4, ZOO[name])
    assert sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in model.parameters())
    assert set(found.removed) >= {"dead_inputs", "dead_outputs"}
    with torch.no_grad():
        assert relative(model(x), small(x)) <= 1e-6
        groups = trace(model, x[:1]).groups
        double = model.double()
        exact = reduce_exactly(double, groups, ZOO[name]).model
        assert relative(double(x.double()), exact(x.double())) <= 1e-12


@pytest.mark.parametrize("network", [Padded, Branches, Depthwise, Preactivated])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_odd_networks_keep_their_logits(network, seed):
    torch.manual_seed(seed)
    model = zero_some_(shaken(network(), seed), seed).double()
    groups = trace(deepcopy(model).float(), images(1)).groups
    small = reduce_exactly(model, groups, SHAPE).model
    with torch.no_grad():
        assert relative(model(images().double()), small(images().double())) <= 1e-12
        larger = images(2, (1, 11, 9)).double()
        if network is not Depthwise:  # its adaptive pooling to 2×2 is as exact; sizes that do not divide are not its
            assert relative(model(larger), small(larger)) <= 1e-12


def test_a_dead_unit_behind_a_sigmoid_leaves_half_its_column_in_the_bias():
    model = chain(
        nn.Flatten(), linear([[0.0, 0.0], [1.0, -1.0]]), nn.Sigmoid(), linear([[4.0, 2.0], [-6.0, 1.0]], [1.0, 0.0])
    )
    small = reduced(model, (1, 1, 2)).model
    assert layer_widths(small) == {"1": 1, "3": 2}
    assert small[3].bias.tolist() == [1.0 + 4.0 * 0.5, -6.0 * 0.5]
    assert small[3].weight.tolist() == [[2.0], [1.0]]


def test_a_unit_whose_weights_add_up_to_zero_is_alive():
    model = chain(nn.Flatten(), linear([[1.0, -1.0], [2.0, 1.0]]), nn.ReLU(), linear([[1.0, 1.0], [0.0, 1.0]]))
    assert reduced(model, (1, 1, 2)).removed == {}


def padded(bias):
    """A first layer with two dead filters of constants `bias`, before a convolution padded with zeros."""
    torch.manual_seed(0)
    first = nn.Conv2d(1, 4, 3, padding=1)
    first.weight.data[1:3] = 0
    first.bias.data[1:3] = torch.tensor(bias)
    return chain(first, nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 64, 3))


def test_one_constant_unit_stays_where_padding_cuts_constants_off():
    model = padded([1.0, 0.5])
    small = reduced(model).model
    assert layer_widths(small)["0"] == 3
    with torch.no_grad():
        assert relative(model(images()), small(images())) <= 1e-6
    assert reduced(small).removed == {}  # one carrier is as small as it gets


def test_no_unit_stays_where_the_constant_is_zero():
    assert layer_widths(reduced(padded([-1.0, -0.5])).model)["0"] == 2


def test_no_unit_stays_where_padding_repeats_the_border():
    model = padded([1.0, 0.5])
    model[2].padding_mode = "replicate"
    model[2]._reversed_padding_repeated_twice = [1, 1, 1, 1]
    small = reduced(model).model
    assert layer_widths(small)["0"] == 2
    with torch.no_grad():
        assert relative(model(images()), small(images())) <= 1e-6


def test_constants_move_into_a_norm_where_the_layer_has_no_bias():
    torch.manual_seed(0)
    model = shaken(models.find("lenet_5")((1, 28, 28), 10, batch_norm=True))
    model.conv1.weight.data[:5] = 0
    small = reduced(model, (1, 28, 28)).model
    assert layer_widths(small)["conv1"] == 15
    assert small.conv2.bias is None
    x = images(3, (1, 28, 28))
    with torch.no_grad():
        assert relative(model(x), small(x)) <= 1e-6


def test_a_zero_scale_of_a_norm_makes_a_unit_constant():
    model = shaken(models.find("lenet_5")((1, 28, 28), 10, batch_norm=True))
    model.norm1.weight.data[2] = 0
    assert reduced(model, (1, 28, 28)).removed == {"dead_inputs": 1}


def test_a_stream_unit_goes_only_when_it_is_dead_on_every_branch():
    model = shaken(models.find("resnet_20")((3, 32, 32), 10))
    model.conv.weight.data[3] = 0
    assert reduced(model, (3, 32, 32)).removed == {}
    for block in model.blocks[:3]:
        block.conv2.weight.data[3] = 0
    found = reduced(model, (3, 32, 32))
    # the constant is not zero and convolutions are padded: the one constant unit is its own carrier
    assert found.removed == {}
    model.conv.weight.data[4] = 0
    for block in model.blocks[:3]:
        block.conv2.weight.data[4] = 0
    assert reduced(model, (3, 32, 32)).removed == {"dead_inputs": 1}


def test_positive_multiples_join_behind_relu_and_negative_ones_do_not():
    rows = [[1.0, -2.0], [3.0, -6.0], [-1.0, 2.0]]
    model = chain(nn.Flatten(), linear(rows, [0.5, 1.5, -0.5]), nn.ReLU(), linear([[1.0, 1.0, 1.0], [2.0, 0.0, 1.0]]))
    found = reduced(model, (1, 1, 2))
    assert found.removed == {"parallel": 1}
    assert found.model[3].weight.tolist() == [[1.0 + 3.0, 1.0], [2.0, 1.0]]
    assert found.kept["1"].tolist() == [0, 2]


def test_multiples_with_another_bias_are_not_parallel():
    rows = [[1.0, -2.0], [3.0, -6.0]]
    model = chain(nn.Flatten(), linear(rows, [0.5, 1.0]), nn.ReLU(), linear([[1.0, 1.0], [2.0, 0.0]]))
    assert reduced(model, (1, 1, 2)).removed == {}


@pytest.mark.parametrize(("activation", "removed"), [(nn.Tanh(), 2), (nn.Sigmoid(), 1), (nn.ReLU(), 1), (nn.GELU(), 1)])
def test_equal_units_join_behind_any_activation_and_mirrored_ones_behind_odd_ones(activation, removed):
    rows = [[1.0, -2.0], [1.0, -2.0], [-1.0, 2.0]]
    model = chain(nn.Flatten(), linear(rows, [0.5, 0.5, -0.5]), activation, linear([[1.0, 1.0, 1.0], [2.0, 0.0, 1.0]]))
    found = reduced(model, (1, 1, 2))
    assert found.removed == {"parallel": removed}
    x = images(5, (1, 1, 2))
    with torch.no_grad():
        assert relative(model(x), found.model(x)) <= 1e-6


def test_parallel_filters_join_through_batch_norm():
    """Neuron merging's published scale is 16.87 in such a case; the exact one follows from the norm's own formula."""
    model = shaken(models.find("lenet_5")((1, 28, 28), 10, batch_norm=True))
    norm, conv = model.norm1, model.conv1
    # filter 1 is twice filter 0, and its norm makes it 0.474 times filter 0 afterwards
    scale = 0.474
    conv.weight.data[1] = 2 * conv.weight.data[0]
    deviation = (norm.running_var + norm.eps).sqrt()
    norm.weight.data[1] = scale * norm.weight.data[0] / deviation[0] * deviation[1] / 2
    norm.running_mean[1] = 2 * norm.running_mean[0]
    norm.bias.data[1] = scale * norm.bias.data[0]
    double = model.double()
    # the same in double precision, where the two are parallel to rounding
    deviation = (norm.running_var + norm.eps).sqrt()
    norm.weight.data[1] = scale * norm.weight.data[0] / deviation[0] * deviation[1] / 2
    norm.bias.data[1] = scale * norm.bias.data[0]
    groups = trace(deepcopy(double).float(), images(1, (1, 28, 28))).groups
    before = double.conv2.weight.detach().clone()
    found = reduce_exactly(double, groups, (1, 28, 28))
    assert found.removed == {"parallel": 1}
    added = found.model.conv2.weight[:, 0] - before[:, 0]
    assert torch.allclose(added, scale * before[:, 1], rtol=1e-12, atol=0)


def test_one_reduction_exposes_the_next():
    # the only reader of hidden unit 0 is hidden unit 0 of the next layer, which nobody reads
    first, second = [[1.0, 2.0], [2.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]
    model = chain(nn.Flatten(), linear(first), nn.ReLU(), linear(second), nn.ReLU(), linear([[0.0, 1.0], [0.0, 2.0]]))
    found = reduced(model, (1, 1, 2))
    assert layer_widths(found.model) == {"1": 1, "3": 1, "5": 2}
    assert found.removed == {"dead_outputs": 2}


def test_a_network_that_ignores_its_input_is_refused():
    model = models.find("lenet_300_100")((1, 28, 28), 10)
    model.fc2.weight.data.zero_()
    with pytest.raises(FusionError, match="layer collapse"):
        reduced(model, (1, 28, 28))


def test_the_source_is_left_as_it_was():
    model = zoo_network("lenet_5", torch.float32)
    before = deepcopy(model.state_dict())
    reduced(model, (1, 28, 28))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["resnet_20", "vgg_16"])
def test_folded_norms_compute_the_same(name):
    model = shaken(models.find(name)(ZOO[name], 10))
    x = images(3, ZOO[name])
    folded = fold_norms(model, trace(model, x[:1]).norm_of)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    with torch.no_grad():
        assert relative(model(x), folded(x)) <= 1e-5


class Read(nn.Module):
    """One convolution's units, read by two padded ones through ReLUs of either sign, or by one through both."""

    def __init__(self, both):
        super().__init__()
        self.both = both
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.one = nn.Conv2d(12 if both else 6, 4, 3, padding=0 if both == "bare" else 1)
        self.other = nn.Conv2d(6, 4, 3, padding=1)
        self.output = nn.Linear(4, 3)

    def forward(self, x):
        x = self.first(x)
        y = torch.relu(-x)
        read = self.one(torch.cat((torch.relu(x), y), 1)) if self.both else self.one(torch.relu(x)) + self.other(y)
        return self.output(torch.relu(read).mean((2, 3)))


@pytest.mark.parametrize(("both", "removed"), [(None, 1), ("bare", 2), ("padded", 1)])
def test_constants_reach_each_consumer_and_each_column_by_their_own_way(both, removed):
    """A dead unit is 0 for one reader and not for the other; or it stands in two columns of one reader."""
    torch.manual_seed(0)
    model = Read(both).eval()
    model.first.weight.data[1:3] = 0
    model.first.bias.data[1:3] = torch.tensor([1.0, 0.5])
    found = reduced(model)
    assert found.removed == {"dead_inputs": removed}
    with torch.no_grad():
        assert relative(model(images()), found.model(images())) <= 1e-6


def test_grouped_convolutions_are_kept_and_their_norms_can_be_folded():
    model = shaken(
        chain(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
        )
    )  # fmt: skip
    found = trace(model, images(1))
    assert {group.name for group in found.groups} == {"5"}
    with torch.no_grad():
        assert relative(model(images()), fold_norms(model, found.norm_of)(images())) <= 1e-6
