import pytest
import torch
from torch import nn

from ticketlab.recipe import SparsifySection
from ticketlab.training.loop import Adjust, train_steps
from ticketlab.training.sparsify import group_lasso, hoyer_square, l1, make_sparsify


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


def gradients(section, weight, gradient):
    parameter = nn.Parameter(torch.tensor(weight))
    parameter.grad = torch.tensor(gradient)
    made = make_sparsify(section, [parameter])
    made.after_()
    return parameter.grad.tolist()


def test_a_penalty_is_added_so_many_times():
    section = SparsifySection(kind="l1", strength=0.5)
    assert gradients(section, [[2.0, -1.0, 0.0]], [[1.0, 1.0, 1.0]]) == [[1.5, 0.5, 1.0]]


def test_only_weights_of_the_largest_product_learn():
    section = SparsifySection(kind="global_sparse_momentum", share=0.5)
    # |w · g| = 2, 3, 0.5, 1
    assert gradients(section, [[2.0, -1.0], [0.5, 1.0]], [[1.0, 3.0], [1.0, -1.0]]) == [[1.0, 3.0], [0.0, 0.0]]


def test_targeted_dropout_takes_the_smaller_weights_of_each_unit_and_puts_them_back():
    parameter = nn.Parameter(torch.tensor([[0.1, -3.0, 0.2, 4.0], [5.0, 0.5, -0.4, 6.0]]))
    before = parameter.detach().clone()
    made = make_sparsify(SparsifySection(kind="targeted_dropout", probability=1.0), [parameter])
    made.before_()
    assert parameter.tolist() == [[0.0, -3.0, 0.0, 4.0], [5.0, 0.0, 0.0, 6.0]]
    parameter.grad = torch.ones(2, 4)
    made.after_()
    assert torch.equal(parameter.detach(), before)
    assert parameter.grad.tolist() == [[0, 1, 0, 1], [1, 0, 0, 1]]


def test_targeted_dropout_drops_with_its_probability():
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.rand(100, 100) + 1)
    made = make_sparsify(SparsifySection(kind="targeted_dropout", share=0.4, probability=0.25), [parameter])
    made.before_()
    gone = parameter == 0
    assert 0.09 < float(gone.float().mean()) < 0.11
    kept = made.kept[0]
    assert (gone.sum(1) <= 40).all() and float(kept[gone].mean()) < float(kept[~gone].mean())


def test_the_loop_draws_weights_to_zero():
    def trained(section):
        torch.manual_seed(0)
        model = nn.Linear(8, 2, bias=False)
        data = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
        batches = iter([(data, (data[:, 0] > 0).long())] * 200)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        adjust = Adjust(sparsify=make_sparsify(section, [model.weight]) if section else None)
        list(train_steps(model, batches, optimizer, lambda _: 0.1, {}, 0, 200, adjust))
        sizes = model.weight.detach().abs()
        return float(sizes.sum() / sizes.norm())  # at most √16 = 4, where all are equal

    plain = trained(None)
    for kind in ("l1", "hoyer_square"):
        assert trained(SparsifySection(kind=kind, strength=0.01)) < plain


@pytest.mark.parametrize(("kind", "other"), [("l1", {"share": 0.2}), ("global_sparse_momentum", {"strength": 1.0})])
def test_what_a_kind_would_ignore_is_refused(kind, other):
    with pytest.raises(ValueError, match=f"does not belong to kind: {kind}"):
        SparsifySection(kind=kind, **other)
