"""A client's own work: steps by hand on a linear model, masks, halves of a round, gradients."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from ticketlab.codec import Sparse
from ticketlab.data.batches import Examples, split
from ticketlab.data.sources import load_dataset
from ticketlab.errors import FailedRun
from ticketlab.federate.local import dense_gradient, fit, judge
from ticketlab.federate.rules.rule import Work
from ticketlab.models import models
from ticketlab.pruning.masks import full_mask, masked
from ticketlab.recipe import FederateSection


class Linear(nn.Module):
    """Two features, two classes."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2, bias=False)

    def forward(self, images):
        return self.fc(images.flatten(1))


def examples_of(features, labels):
    images = torch.tensor(features).view(-1, 1, 1, 2)
    return Examples(images, torch.tensor(labels), torch.ones(1, 1, 1), torch.zeros(1, 1, 1))


def work_of(model, state, mask, examples, seed=1, **section):
    settings = FederateSection(**section)
    return Work(model, Sparse(mask, dict(state), {}), examples, examples.first(0), settings, {}, seed)


def test_one_step_on_a_linear_model_by_hand():
    # logits 0, so each class has probability 1/2: the gradient is (p − onehot) · x
    state, examples = {"fc.weight": torch.zeros(2, 2)}, examples_of([[1.0, 2.0]], [0])
    work = work_of(Linear(), state, {}, examples, lr=0.5)
    done = fit(work, full_mask(work.model), state)
    assert done.state["fc.weight"].tolist() == [[0.25, 0.5], [-0.25, -0.5]]
    assert done.loss == pytest.approx(0.6931472)
    assert state["fc.weight"].tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_two_steps_of_fedprox_by_hand():
    # steps with lr 1/2 and μ = 1/2; the first is where the pull is 0
    state, examples = {"fc.weight": torch.zeros(2, 2)}, examples_of([[1.0, 0.0]], [0])
    work = work_of(Linear(), state, {}, examples, lr=0.5, epochs=2, proximal=0.5)
    found = fit(work, full_mask(work.model), state).state["fc.weight"]
    # after step 1: (1/4, −1/4); p of class 0 = 1 / (1 + e^(−1/2)), gradient −(1 − p), pull 1/2 · 1/4
    left = 1 - 1 / (1 + torch.tensor(-0.5).exp().item())
    expected = 0.25 - 0.5 * (-left + 0.5 * 0.25)
    assert found[:, 0].tolist() == pytest.approx([expected, -expected])
    plain = fit(work_of(Linear(), state, {}, examples, lr=0.5, epochs=2), full_mask(work.model), state)
    assert plain.state["fc.weight"][0, 0].item() == pytest.approx(0.25 + 0.5 * left)


def test_removed_weights_take_no_part_and_are_not_pulled_back():
    mask = {"fc.weight": torch.tensor([[True, False], [True, True]])}
    state, examples = {"fc.weight": torch.zeros(2, 2)}, examples_of([[1.0, 2.0]] * 3, [0, 1, 0])
    work = work_of(Linear(), state, mask, examples, lr=0.5, epochs=3, proximal=1.0, momentum=0.9)
    found = fit(work, mask, state).state["fc.weight"]
    assert found[0, 1].item() == 0 and bool((found[mask["fc.weight"]] != 0).all())


@pytest.fixture
def lenet(places):
    """A network on digits whose first layer is large and sparse enough to be trained as a sparse one."""
    torch.manual_seed(0)
    model = models.find("lenet_300_100")((1, 8, 8), 10, widths={"fc1": 400, "fc2": 20})
    mask = {name: torch.rand(kept.shape) < 0.2 for name, kept in full_mask(model).items()}
    examples = split(load_dataset("digits", places), 200, 0).train
    return model, masked(model.state_dict(), mask), mask, examples


@pytest.mark.parametrize("section", [{}, {"proximal": 0.1}, {"momentum": 0.9}], ids=str)
def test_removed_weights_stay_exactly_zero_and_the_rest_moves(lenet, section):
    model, state, mask, examples = lenet
    done = fit(work_of(model, state, mask, examples, **section), mask, state)
    for name, kept in mask.items():
        assert bool((done.state[name][~kept] == 0).all())
        assert not torch.equal(done.state[name], state[name])


def test_tensors_come_back_in_the_order_in_which_they_came(lenet):
    model, state, mask, examples = lenet
    done = fit(work_of(model, state, mask, examples), mask, state)
    assert list(done.state) == list(state)


def test_fedprox_stays_closer_to_where_it_came_from(lenet):
    model, state, mask, examples = lenet

    def moved(**section):
        found = fit(work_of(model, state, mask, examples, epochs=3, **section), mask, state).state
        return sum(float((found[name] - value).square().sum()) for name, value in state.items())

    assert moved(proximal=1.0) < 0.8 * moved()


def test_two_halves_of_a_round_are_the_whole_round(lenet):
    # 1,237 examples in steps of 32 are 39 steps: halves of 20 and 19
    model, state, mask, examples = lenet
    work = work_of(model, state, mask, examples)
    whole = fit(work, mask, state).state
    half = fit(work, mask, state, part=(0.0, 0.5)).state
    rest = fit(work, mask, half, part=(0.5, 1.0)).state
    assert all(torch.equal(whole[name], rest[name]) for name in whole)
    assert not torch.equal(half["fc1.weight"], rest["fc1.weight"])


def test_the_same_seed_gives_the_same_answer_another_one_another_and_training_helps(lenet):
    model, state, mask, examples = lenet
    first, again, other = (
        fit(work_of(model, state, mask, examples, seed, epochs=3, lr=0.3), mask, state) for seed in (5, 5, 6)
    )
    assert all(torch.equal(first.state[name], value) for name, value in again.state.items())
    assert not torch.equal(first.state["fc1.weight"], other.state["fc1.weight"])
    assert judge(model, first.state, examples) > judge(model, state, examples) + 0.3


def test_training_that_diverges_is_told_with_its_learning_rate(lenet):
    model, state, mask, examples = lenet
    with pytest.raises(FailedRun, match=r"diverged here \(learning rate 1e\+20\)"):
        fit(work_of(model, state, mask, examples, lr=1e20), mask, state)


def test_no_step_at_all_has_no_loss(lenet):
    model, state, mask, examples = lenet
    done = fit(work_of(model, state, mask, examples), mask, state, part=(0.0, 0.0))
    assert done.loss != done.loss
    assert all(torch.equal(done.state[name], value) for name, value in state.items())


def test_accuracy_is_the_share_of_right_answers():
    state = {"fc.weight": torch.eye(2)}
    examples = examples_of([[1.0, 0.0], [0.0, 1.0], [3.0, 2.0], [2.0, 3.0]], [0, 1, 1, 1])
    assert judge(Linear(), state, examples) == 0.75


def test_a_dense_gradient_is_that_of_the_mean_loss_over_batches_of_any_number(lenet):
    model, state, _, examples = lenet
    found = dense_gradient(model, state, examples, None)
    weights = {name: value.clone().requires_grad_() for name, value in state.items()}
    images = examples.images.float() * examples.scale + examples.shift
    loss = functional.cross_entropy(torch.func.functional_call(model, weights, (images,)), examples.labels)
    for (name, value), expected in zip(found.items(), torch.autograd.grad(loss, list(weights.values())), strict=True):
        assert torch.allclose(value, expected, atol=1e-6), name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_gradient_of_the_first_examples_looks_at_no_others():
    state = {"fc.weight": torch.zeros(2, 2)}
    examples = examples_of([[1.0, 2.0], [9.0, 9.0]], [0, 1])
    found = dense_gradient(Linear(), state, examples, 1)["fc.weight"]
    assert found.tolist() == [[-0.5, -1.0], [0.5, 1.0]]
