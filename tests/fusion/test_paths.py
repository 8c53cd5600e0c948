import pytest
import torch
from torch import nn
from torch.nn import functional

from ticketlab.errors import FusionError
from ticketlab.fusion.paths import Paths, effective_density
from ticketlab.models import models
from ticketlab.pruning.masks import full_mask, remaining


def chain():
    return nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))


def bits(rows):
    return torch.tensor(rows, dtype=torch.bool)


def test_live_weights_of_a_chain_are_those_worked_out_by_hand():
    # unit 0 has inputs and is read; unit 1 has inputs, but nobody reads it; both outputs read unit 0 and unit 1's place
    mask = {"0.weight": bits([[1, 0, 1], [0, 1, 0]]), "2.weight": bits([[1, 0], [0, 0]])}
    live = Paths(chain(), (3,)).live(mask)
    assert live["0.weight"].tolist() == bits([[1, 0, 1], [0, 0, 0]]).tolist()
    assert live["2.weight"].tolist() == bits([[1, 0], [0, 0]]).tolist()
    assert effective_density(chain(), (3,), mask) == 3 / 10


def test_reach_tells_what_would_be_live_if_it_were_kept():
    mask = {"0.weight": bits([[1, 0, 0], [0, 0, 0]]), "2.weight": bits([[1, 0], [0, 0]])}
    reach = Paths(chain(), (3,)).reach(mask)
    # any weight into the unit that is read, any weight out of the unit that is fed
    assert reach["0.weight"].tolist() == bits([[1, 1, 1], [0, 0, 0]]).tolist()
    assert reach["2.weight"].tolist() == bits([[1, 0], [1, 0]]).tolist()


def sparse_mask(model, density, seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(kept.shape, generator=generator) < density for name, kept in full_mask(model).items()}


def moved_by(model, mask, shape):
    """Weights that move the sum of the outputs when all weights and inputs are positive: an independent way."""
    model = model.double().eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if name in mask:
            parameter.data = mask[name].double() / parameter[0].numel()
        elif parameter.dim() == 1 and name.endswith("bias"):
            parameter.data.zero_()
    model(torch.ones(1, *shape, dtype=torch.double)).sum().backward()
    return {name: kept & (parameters[name].grad > 0) for name, kept in mask.items()}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("name", "shape", "density"), [
    ("lenet_300_100", (1, 28, 28), 0.005),
    ("resnet_20", (3, 32, 32), 0.03),
    ("conv_2", (3, 32, 32), 0.002),
])  # fmt: skip
def test_live_weights_are_those_that_move_the_output(name, shape, density, seed):
    torch.manual_seed(seed)
    model = models.find(name)(shape, 10)
    mask = sparse_mask(model, density, seed)
    live = Paths(model, shape).live(mask)
    moved = moved_by(model, mask, shape)
    assert 0 < remaining(live) < remaining(mask)
    for layer in mask:
        # autograd's maximum looks at one place of its window only
        assert not (moved[layer] & ~live[layer]).any()
    if name != "conv_2":
        assert all(torch.equal(moved[layer], live[layer]) for layer in mask)
    else:
        assert remaining(live) <= 1.02 * remaining(moved)


@pytest.mark.parametrize("name", ["lenet_5", "conv_4", "vgg_16", "resnet_20"])
def test_every_weight_of_a_dense_network_is_live(name):
    shape = (1, 28, 28) if name == "lenet_5" else (3, 32, 32)
    model = models.find(name)(shape, 10)
    assert effective_density(model, shape, full_mask(model)) == 1.0


def test_a_block_whose_branch_is_cut_leaves_its_shortcut_alive():
    shape = (3, 32, 32)
    model = models.find("resnet_20")(shape, 10)
    mask = full_mask(model)
    inside = [name for name in mask if name.startswith(next(n for n in mask if "conv2" in n).rsplit(".", 2)[0])]
    assert len(inside) == 2
    mask[inside[0]] = torch.zeros_like(mask[inside[0]])
    live = Paths(model, shape).live(mask)
    assert not live[inside[1]].any()
    assert all(torch.equal(live[name], mask[name]) for name in mask if name not in inside)


class Gated(nn.Module):
    """Something that no rule covers, between two layers."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.two(torch.cumsum(self.one(x), dim=1))


def test_what_is_unknown_counts_as_live():
    model = Gated()
    mask = {"one.weight": bits([[1, 0, 0, 0]] + 3 * [[0, 0, 0, 0]]), "two.weight": bits([[0, 0, 0, 1], [0, 0, 0, 0]])}
    live = Paths(model, (4,)).live(mask)
    assert all(torch.equal(live[name], mask[name]) for name in mask)


class Own(nn.Linear):
    pass


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.two(functional.linear(x, self.one.weight))


@pytest.mark.parametrize(("model", "shape"), [
    (nn.Sequential(Own(4, 4), nn.ReLU(), nn.Linear(4, 2)), (4,)),
    (Functional(), (4,)),
    (nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(32, 2)), (1, 4, 4)),
], ids=["subclass", "functional", "circular"])  # fmt: skip
def test_layers_that_no_rule_covers_count_as_live(model, shape):
    assert effective_density(model, shape, full_mask(model)) == 1.0


class Fickle(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(4, 4)

    def forward(self, x):
        return functional.relu(self.one(x)) if x.sum() > 0 else self.one(x)


def test_a_network_that_cannot_be_traced_has_no_effective_density():
    assert effective_density(Fickle(), (4,), full_mask(Fickle())) is None
    with pytest.raises(FusionError, match="cannot be traced"):
        Paths(Fickle(), (4,))
