import pytest
import torch
from torch import nn

from ticketlab.recipe import SparsifySection
from ticketlab.training.loop import Adjust, train_steps
from ticketlab.training.sparsify import Drift, Sparsify, group_lasso, hoyer_square, l1, make_sparsify
from ticketlab.training.trainable import make_trainable


def by_autograd(function, weight):
    weight = weight.clone().requires_grad_()
    return torch.autograd.grad(function(weight), weight)[0]


@pytest.mark.parametrize(
    ("gradient", "penalty"),
    [
        (l1, lambda w: w.abs().sum()),
        (hoyer_square, lambda w: w.abs().sum().square() / w.square().sum()),
        (group_lasso, lambda w: sum(w[unit].numel() ** 0.5 * w[unit].norm() for unit in range(len(w)))),
    ],
)
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 2, 2)])
def test_gradients_are_those_of_the_penalties(gradient, penalty, shape):
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gradient(weight), by_autograd(penalty, weight))


def test_what_is_zero_already_has_no_gradient():
    weight = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    root = 2**0.5
    torch.testing.assert_close(group_lasso(weight), torch.tensor([[0.0, 0.0], [0.6 * root, 0.8 * root]]))
    assert not hoyer_square(torch.zeros(2, 2)).any()


def network(weight):
    """A linear layer with these weights, as it is trained."""
    weight = torch.as_tensor(weight)
    model = nn.Sequential(nn.Linear(weight.shape[1], len(weight), bias=False, dtype=weight.dtype))
    return make_trainable(model, {"0.weight": weight}, {"0.weight": torch.ones_like(weight) > 0}, torch.device("cpu"))


def gradients(section, weight, gradient):
    net = network(weight)
    [parameter] = net.parameters()
    parameter.grad = torch.tensor(gradient)
    make_sparsify(section, net, ["0.weight"]).after_()
    return parameter.grad.tolist()


def test_a_penalty_is_added_so_many_times():
    section = SparsifySection(kind="l1", strength=0.5)
    assert gradients(section, [[2.0, -1.0, 0.0]], [[1.0, 1.0, 1.0]]) == [[1.5, 0.5, 1.0]]


def test_only_weights_of_the_largest_product_learn():
    section = SparsifySection(kind="global_sparse_momentum", share=0.5)
    # |w · g| = 2, 3, 0.5, 1
    assert gradients(section, [[2.0, -1.0], [0.5, 1.0]], [[1.0, 3.0], [1.0, -1.0]]) == [[1.0, 3.0], [0.0, 0.0]]


def test_targeted_dropout_takes_the_smaller_weights_of_each_unit_and_puts_them_back():
    net = network([[0.1, -3.0, 0.2, 4.0], [5.0, 0.5, -0.4, 6.0]])
    [parameter] = net.parameters()
    before = parameter.detach().clone()
    made = make_sparsify(SparsifySection(kind="targeted_dropout", probability=1.0), net, ["0.weight"])
    made.before_()
    assert parameter.tolist() == [[0.0, -3.0, 0.0, 4.0], [5.0, 0.0, 0.0, 6.0]]
    parameter.grad = torch.ones(2, 4)
    made.after_()
    assert torch.equal(parameter.detach(), before)
    assert parameter.grad.tolist() == [[0, 1, 0, 1], [1, 0, 0, 1]]


def test_targeted_dropout_drops_with_its_probability():
    torch.manual_seed(0)
    net = network(torch.rand(100, 100) + 1)
    made = make_sparsify(SparsifySection(kind="targeted_dropout", share=0.4, probability=0.25), net, ["0.weight"])
    made.before_()
    gone = net.parameters()[0] == 0
    assert 0.09 < float(gone.float().mean()) < 0.11
    kept = made.kept[0]
    assert (gone.sum(1) <= 40).all() and float(kept[gone].mean()) < float(kept[~gone].mean())


def test_the_loop_draws_weights_to_zero():
    def trained(section):
        torch.manual_seed(0)
        net = network(torch.randn(2, 8) / 3)
        made = make_sparsify(section, net, ["0.weight"]) if section else Sparsify()
        data = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
        batches = iter([(data, (data[:, 0] > 0).long())] * 200)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        list(train_steps(net.model, batches, optimizer, lambda _: 0.1, {}, 0, 200, Adjust(sparsify=made)))
        sizes = net.whole(net.model.state_dict())["0.weight"].abs()
        return float(sizes.sum() / sizes.norm())  # at most √16 = 4, where all are equal

    plain = trained(None)
    for kind in ("l1", "hoyer_square", "l0", "variational_dropout"):
        assert trained(SparsifySection(kind=kind, strength=0.01)) < plain


def test_a_step_with_drift_is_one_of_deep_rewiring():
    """w − η (g + l1 · sign(w)) − √(2 η T) ν, of which η, l1 and T are worked out here."""
    net = network(torch.tensor([[0.5, -0.25]], dtype=torch.float64))
    [parameter] = net.parameters()
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    gradient = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    parameter.grad = gradient.clone()
    torch.manual_seed(3)
    Drift([parameter], optimizer, strength=0.5, temperature=0.2).after_()
    optimizer.step()
    torch.manual_seed(3)
    noise = torch.randn(1, 2, dtype=torch.float64)
    expected = torch.tensor([[0.5 - 0.1 * 1.5, -0.25 - 0.1 * 1.5]], dtype=torch.float64) - 0.04**0.5 * noise
    torch.testing.assert_close(parameter.detach(), expected)


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        ("l1", {"share": 0.2}),
        ("global_sparse_momentum", {"strength": 1.0}),
        ("variational_dropout", {"probability": 0.2}),
        ("hoyer_square", {"gate_lr": 0.1}),
    ],
)
def test_what_a_kind_would_ignore_is_refused(kind, other):
    with pytest.raises(ValueError, match=f"does not belong to kind: {kind}"):
        SparsifySection(kind=kind, **other)


def test_gates_that_are_all_closed_are_refused():
    with pytest.raises(ValueError, match="let nothing through never open"):
        SparsifySection(kind="l0", probability=1.0)
