import pytest
import torch
from torch import nn

from ticketlab.models import models
from ticketlab.pruning.masks import full_mask, masked
from ticketlab.recipe import TrainSection
from ticketlab.training import sparse
from ticketlab.training.loop import train_steps
from ticketlab.training.optim import make_optimizer
from ticketlab.training.sparse import SparseLinear
from ticketlab.training.trainable import make_trainable

CPU = torch.device("cpu")


def random_mask(shape, density, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


@pytest.mark.parametrize("density", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("bias", [True, False])
def test_a_sparse_layer_and_its_gradients_equal_the_masked_dense_ones(density, bias):
    torch.manual_seed(0)
    dense = nn.Linear(40, 30, bias=bias).double()
    mask = random_mask((30, 40), density)
    mask[3] = False
    mask[:, 5] = False
    with torch.no_grad():
        dense.weight.masked_fill_(~mask, 0)
    thin = SparseLinear(dense, mask)
    features, again = (torch.randn(7, 40, dtype=torch.float64, requires_grad=True) for _ in range(2))
    with torch.no_grad():
        again.copy_(features)
    out, expected = thin(features), dense(again)
    assert (out - expected).abs().max() < 1e-12
    weights = torch.randn_like(expected)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    assert (features.grad - again.grad).abs().max() < 1e-12
    assert (thin.values.grad - dense.weight.grad[mask]).abs().max() < 1e-12


def test_gradients_agree_with_finite_differences():
    thin = SparseLinear(nn.Linear(6, 5).double(), random_mask((5, 6), 0.5))
    features = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(thin, (features,))
    assert torch.autograd.gradcheck(
        lambda values: torch.func.functional_call(thin, {"values": values}, (features.detach(),)),
        (thin.values.detach().requires_grad_(),),
    )


def trained(density, pays, monkeypatch, optimizer):
    """A LeNet after 30 steps in double precision, with or without sparse layers."""
    monkeypatch.setattr(sparse, "PAYS_BELOW", pays)
    torch.manual_seed(0)
    model = models.find("lenet_300_100")((1, 28, 28), 10).double()
    mask = {name: random_mask(kept.shape, density) for name, kept in full_mask(model).items()}
    net = make_trainable(model, masked(model.state_dict(), mask), mask, CPU)
    train = TrainSection.model_validate({"steps": "30it", **optimizer})
    generator = torch.Generator().manual_seed(0)
    batches = iter(
        [
            (
                torch.randn(16, 1, 28, 28, generator=generator, dtype=torch.float64),
                torch.randint(0, 10, (16,), generator=generator),
            )
            for _ in range(30)
        ]
    )
    for _ in train_steps(
        net.model, batches, make_optimizer(net.model.parameters(), train), lambda _: 1e-3, net.mask, 0, 30
    ):
        pass
    return net.whole(net.model.state_dict()), mask, len(net.sparse)


@pytest.mark.parametrize(
    "optimizer",
    [{"optimizer": "adam"}, {"optimizer": "adam", "weight_decay": 1e-2}, {"optimizer": "sgd", "momentum": 0.9}],
    ids=str,
)
def test_training_sparse_layers_equals_training_masked_ones(monkeypatch, optimizer):
    thin, mask, count = trained(0.1, 0.25, monkeypatch, optimizer)
    dense, _, none = trained(0.1, -1, monkeypatch, optimizer)
    assert (count, none) == (2, 0)
    assert set(thin) == set(dense)
    for name, value in dense.items():
        assert (thin[name] - value).abs().max() < 1e-10
    for name, kept in mask.items():
        assert not thin[name][~kept].any()


def test_the_network_that_was_given_is_left_alone_and_results_share_no_memory():
    model = models.find("lenet_300_100")((1, 28, 28), 10)
    mask = {name: random_mask(kept.shape, 0.1) for name, kept in full_mask(model).items()}
    start = masked(model.state_dict(), mask)
    copy = {name: value.clone() for name, value in start.items()}
    net = make_trainable(model, start, mask, CPU)
    with torch.no_grad():
        for parameter in net.model.parameters():
            parameter.add_(1)
    assert all(torch.equal(start[name], copy[name]) for name in start)
    assert isinstance(model.fc1, nn.Linear)
    whole = net.whole(net.model.state_dict())
    assert sorted(whole) == sorted(start)
    assert torch.equal(whole["fc1.weight"][mask["fc1.weight"]], copy["fc1.weight"][mask["fc1.weight"]] + 1)


def test_only_plain_large_very_sparse_layers_on_a_cpu_become_sparse():
    class Own(nn.Linear):
        def forward(self, features):
            return super().forward(features) * 2

    model = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 300), Own(300, 300), nn.Linear(300, 10))
    mask = full_mask(model)
    for name in ("0.weight", "2.weight", "3.weight"):
        mask[name] = random_mask(mask[name].shape, 0.1)
    weights = masked(model.state_dict(), mask)
    assert list(make_trainable(model, weights, mask, CPU).sparse) == ["0.weight"]
    assert list(make_trainable(model, weights, mask, torch.device("meta")).sparse) == []
