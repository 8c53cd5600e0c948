import pytest
import torch
from torch import nn
from torch.nn import functional

from ticketlab.models.lenet import lenet_300_100
from ticketlab.models.resnet import resnet_20
from ticketlab.pruning.learned_masks import (
    Bernoulli,
    EdgePopup,
    attach_,
    draw_,
    expected_density,
    fixed_weights,
    seen_state,
    settle_,
)

WEIGHT = torch.tensor([[2.0, -3.0, 0.5], [4.0, 1.0, -1.0]])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def edge_popup(density=0.5, rescale=False):
    """Highest scores: 0.9, 0.4, 0.3."""
    mask = EdgePopup(WEIGHT.shape, density, rescale, generator())
    mask.scores.data = torch.tensor([[0.9, -2.0, 0.1], [0.3, 0.4, 0.0]])
    mask.put_(mask.drawn(generator()))
    return mask


def test_edge_popup_keeps_exactly_the_highest_scores_and_their_weights_bit_for_bit():
    assert edge_popup()(WEIGHT).tolist() == [[2.0, 0.0, 0.0], [4.0, 1.0, 0.0]]
    assert edge_popup(density=0.01)(WEIGHT).tolist() == [[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_rescaling_multiplies_by_size_over_number_kept():
    # three of six stay: twice
    assert edge_popup(rescale=True)(WEIGHT).tolist() == [[4.0, 0.0, 0.0], [8.0, 2.0, 0.0]]


@pytest.mark.parametrize(("rescale", "factor"), [(False, 1.0), (True, 2.0)])
def test_every_score_gets_the_gradient_of_its_weight_times_the_weight(rescale, factor):
    """Of output = seen · (1, 10, 100): ∂/∂seen is (1, 10, 100) in each row, removed weights included."""
    mask = edge_popup(rescale=rescale)
    (mask(WEIGHT) @ torch.tensor([1.0, 10.0, 100.0])).sum().backward()
    expected = torch.tensor([[2.0, -30.0, 50.0], [4.0, 10.0, -100.0]])
    assert torch.equal(mask.scores.grad, factor * expected)


def test_a_bernoulli_score_gets_it_times_the_slope_of_the_sigmoid():
    mask = Bernoulli(WEIGHT.shape, rescale=False)
    mask.put_(WEIGHT > 0)
    seen = mask(WEIGHT)
    assert seen.tolist() == [[2.0, 0.0, 0.5], [4.0, 1.0, 0.0]]
    seen.sum().backward()
    # σ'(0) = ¼
    assert torch.equal(mask.scores.grad, WEIGHT / 4)


def test_bernoulli_draws_with_the_probability_of_its_scores():
    mask = Bernoulli(torch.Size([40_000]), rescale=False)
    mask.scores.data[:] = 1.0
    share = mask.drawn(generator()).double().mean().item()
    # σ(1) = 0.7311; the deviation of the mean of 40,000 draws is 0.0022
    assert share == pytest.approx(0.7311, abs=0.009)
    assert mask.density() == pytest.approx(0.7311, abs=1e-4)
    assert torch.equal(mask.drawn(generator(1)), mask.drawn(generator(1)))
    assert not torch.equal(mask.drawn(generator(1)), mask.drawn(generator(2)))
    assert mask.settled().all() and not Bernoulli(torch.Size([3]), rescale=False).settled().any()


@pytest.mark.parametrize("method", ["edge_popup", "bernoulli"])
@pytest.mark.parametrize("build", [lenet_300_100, resnet_20])
def test_training_changes_scores_and_no_weight_in_any_bit(method, build):
    torch.manual_seed(0)
    model = build((1, 8, 8), 10)
    before = {name: value.clone() for name, value in model.named_parameters()}
    masks = attach_(model, method, 0.5, rescale=True, generator=generator())
    scores = {name: mask.scores.detach().clone() for name, mask in masks.items()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {id(parameter) for parameter in trained} == {id(mask.scores) for mask in masks.values()}
    optimizer = torch.optim.SGD(trained, lr=1.0, momentum=0.9)
    for step in range(3):
        draw_(masks, step)
        functional.cross_entropy(model(torch.randn(8, 1, 8, 8)), torch.arange(8)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(not torch.equal(mask.scores, scores[name]) for name, mask in masks.items())
    fixed = fixed_weights(model, masks)
    assert list(fixed) == list(masks) and all(torch.equal(before[name], value) for name, value in fixed.items())
    others = {name: value for name, value in model.named_parameters() if "parametrizations" not in name}
    assert all(torch.equal(before[name], value) for name, value in others.items())


@pytest.mark.parametrize("build", [lenet_300_100, resnet_20])
def test_a_plain_network_with_the_seen_weights_computes_the_same(build):
    torch.manual_seed(0)
    model = build((1, 8, 8), 10)
    plain = build((1, 8, 8), 10)
    masks = attach_(model, "bernoulli", 1.0, rescale=True, generator=generator())
    draw_(masks, 5)
    state = seen_state(model, masks)
    plain.load_state_dict(state)
    images = torch.randn(4, 1, 8, 8)
    assert torch.equal(plain.eval()(images), model.eval()(images))
    share = sum(int((state[name] != 0).sum()) for name in masks) / sum(state[name].numel() for name in masks)
    assert share == pytest.approx(0.5, abs=0.02)


def test_densities_are_per_layer_and_of_all_layers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 8), nn.Linear(8, 2))
    masks = attach_(model, "edge_popup", 0.25, rescale=False, generator=generator())
    assert {name: int(kept.sum()) for name, kept in settle_(masks).items()} == {"0.weight": 20, "1.weight": 4}
    assert expected_density(masks) == 24 / 96
