"""Groups of units, and the proof that they hold together."""

import pytest
import torch
from networks import (
    SHAPE,
    Branches,
    Chunked,
    Depthwise,
    FixedView,
    Moody,
    Padded,
    Preactivated,
    Twice,
    Unknown,
    images,
    shaken,
)  # fmt: skip
from torch import nn

from ticketlab.errors import FusionError
from ticketlab.fusion.groups import named_groups, permutation_error, prove
from ticketlab.fusion.trace import trace
from ticketlab.models import models

ZOO = {
    "lenet_300_100": (1, 28, 28), "lenet_5": (1, 28, 28), "conv_2": (3, 32, 32), "conv_4": (3, 32, 32),
    "conv_6": (3, 32, 32), "resnet_20": (3, 32, 32), "vgg_16": (3, 32, 32),
    "har_cnn": (6, 1, 128), "mlp": (18, 1, 1),
}  # fmt: skip


def traced(model, shape=SHAPE):
    return trace(model, images(1, shape))


def names(groups):
    return {group.name: group.units for group in groups}


def test_lenet_has_two_groups_and_its_logits_are_left_alone():
    found = traced(models.find("lenet_300_100")((1, 28, 28), 10), (1, 28, 28))
    assert names(found.groups) == {"fc1": 300, "fc2": 100}
    assert [(group.name, group.reason) for group in found.frozen] == [("output", "is the network's output")]


def test_after_a_flatten_a_unit_has_one_column_for_each_position():
    found = traced(models.find("lenet_5")((1, 28, 28), 10, batch_norm=True), (1, 28, 28))
    second = found.groups[1]
    assert second.consumers[0].index[3].tolist() == list(range(3 * 16, 4 * 16))
    assert [slot.norm for slot in second.producers] == ["norm2"]


def test_resnet_has_three_streams_and_an_inner_group_in_every_block():
    found = traced(models.find("resnet_20")((3, 32, 32), 10), (3, 32, 32))
    streams = [group for group in found.groups if group.is_stream]
    assert names(streams) == {"conv": 16, "blocks.3.conv2": 32, "blocks.6.conv2": 64}
    assert len(found.groups) == 3 + 9
    assert {slot.layer for slot in streams[1].producers} == {
        "blocks.3.conv2", "blocks.3.shortcut.0", "blocks.4.conv2", "blocks.5.conv2",
    }  # fmt: skip


@pytest.mark.parametrize("name", ZOO)
def test_every_model_of_the_zoo_passes_the_permutation_proof(name):
    shape = ZOO[name]
    model = models.find(name)(shape, 10)
    found = traced(model, shape)
    assert prove(model, found.groups, images(2, shape)) < 1e-12


def test_padded_shortcuts_move_units_of_two_stages_together_and_freeze_what_stands_beside_the_padding():
    found = traced(Padded())
    assert names(found.groups) == {"conv": 4, "conv1": 8}
    both = found.groups[0]
    assert [slot.index[:, 0].tolist() for slot in both.producers] == [[0, 1, 2, 3], [2, 3, 4, 5]]
    assert "fixed number" in next(group.reason for group in found.frozen if group.name == "conv2")


def test_concatenated_branches_are_groups_of_their_own():
    found = traced(Branches())
    assert names(found.groups) == {"left": 5, "right": 6, "join": 8}
    assert found.groups[1].consumers[0].index[:, 0].tolist() == [5, 6, 7, 8, 9, 10]


def test_depthwise_layers_and_norms_of_consumers_belong_to_the_group():
    depthwise = traced(Depthwise()).groups[0]
    assert [slot.layer for slot in depthwise.depthwise] == ["layers.3"]
    assert [slot.norm for slot in (*depthwise.producers, *depthwise.depthwise)] == ["layers.1", "layers.4"]
    stream = traced(Preactivated()).groups[0]
    assert {slot.layer for slot in stream.norms} == {"norm1", "norm3"}
    assert stream.scales() == "one"


@pytest.mark.parametrize(
    ("model", "frozen", "reason"),
    [
        (FixedView, "conv", "fixed number"),
        (Chunked, "conv", "fixed number"),
        (Unknown, "fc1", "unknown operation, matmul"),
        (Twice, "fc1", "fc2 is used more than once"),
    ],
)
def test_what_cannot_be_followed_is_frozen_and_says_why(model, frozen, reason):
    model = shaken(model())
    found = traced(model)
    assert reason in next(group.reason for group in found.frozen if group.name == frozen)
    assert prove(model, found.groups, images(2)) < 1e-12


def test_a_network_whose_course_depends_on_the_data_is_refused_with_a_way_out():
    with pytest.raises(FusionError, match=r"cannot be traced.*--groups"):
        traced(Moody())


@pytest.mark.parametrize("model", [Padded, Branches, Depthwise, Preactivated])
def test_odd_networks_pass_the_proof(model):
    model = model()
    assert permutation_error(model, traced(model).groups, images(2)) < 1e-12


def test_named_groups_are_those_that_tracing_finds():
    model = models.find("lenet_5")((1, 28, 28), 10, batch_norm=True)
    entries = [
        {"producers": ["conv1"], "norms": ["norm1"], "consumers": ["conv2"]},
        {"producers": ["conv2"], "norms": ["norm2"], "consumers": ["fc1"]},
    ]
    for named, found in zip(
        named_groups(model, entries, images(1, (1, 28, 28))), traced(model, (1, 28, 28)).groups, strict=False
    ):
        assert named.producers[0].norm == found.producers[0].norm
        assert torch.equal(named.consumers[0].index, found.consumers[0].index)


def test_a_wrong_group_is_refused_by_name():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    wrong = named_groups(model, [{"producers": ["1"], "consumers": ["5"]}], images(2))
    with pytest.raises(FusionError, match="units of 1 changes the output"):
        prove(model, wrong, images(2))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"producers": ["fc9"], "consumers": ["output"]}, "no layer 'fc9'; did you mean 'fc"),
        ({"producers": ["fc1"]}, "needs producers and consumers"),
        ({"producers": ["fc1"], "consumers": ["fc1"]}, "800 consumer places for 500 units"),
        ({"producers": ["conv1"], "consumers": ["conv2"]}, "norm1 reads these producers"),
        ({"producers": ["fc1", "fc1"], "consumers": ["output"]}, "fc1 more than once among the producers"),
    ],
)
def test_named_groups_that_do_not_fit_are_told(entry, message):
    with pytest.raises(FusionError, match=message):
        named_groups(models.find("lenet_5")((1, 28, 28), 10, batch_norm=True), [entry], images(1, (1, 28, 28)))


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Tanh, nn.ReLU6, nn.ReLU])
def test_the_proof_sees_wrong_groups_behind_any_activation(activation):
    layers = []
    for first in (1, 16, 16, 16):
        layers += [nn.Conv2d(first, 16, 3, padding=1), activation()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))
    wrong = named_groups(model, [{"producers": ["2"], "consumers": ["6"]}], images(2))
    assert permutation_error(model, wrong, images(2)) > 1e-3


@pytest.mark.parametrize(
    ("layer", "scales"),
    [
        (nn.Hardtanh(0, 6), "one"), (nn.Tanh(), "odd"), (nn.Sigmoid(), "one"), (nn.LeakyReLU(), "positive"),
        (nn.Identity(), "any"),
    ],
)  # fmt: skip
def test_what_an_activation_keeps_of_a_multiple(layer, scales):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), layer, nn.Linear(6, 3))
    assert traced(model).groups[0].scales() == scales


@pytest.mark.parametrize(
    ("step", "scales"),
    [
        (lambda h: 1 / h, "one"), (lambda h: h / 2, "any"), (lambda h: 2 * h, "any"), (lambda h: h + 1, "one"),
        (lambda h: torch.div(h, 0.5, rounding_mode="floor"), "one"),
    ],
)  # fmt: skip
def test_what_plain_arithmetic_keeps_of_a_multiple(step, scales):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.output = nn.Linear(64, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.output(step(self.fc1(x.flatten(1))))

    assert traced(Net()).groups[0].scales() == scales
