"""Selection and combination: every method against numbers worked out by hand or another way."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import SHAPE, Branches, Depthwise, Padded, Preactivated, chain, images, linear, relative, shaken
from torch import nn

from ticketlab.errors import FusionError
from ticketlab.fusion.combine import combiners
from ticketlab.fusion.fuse import Method, fuse
from ticketlab.fusion.groups import keep_units_, named_groups
from ticketlab.fusion.least_squares import eliminate, refit
from ticketlab.fusion.select import selectors
from ticketlab.fusion.trace import trace
from ticketlab.fusion.units import View, apply_, observe, view_units
from ticketlab.models import models


def looked_at(model, index=0, shape=SHAPE, count=200, seed=0):
    """(units of a group with all that can be seen of them, the group)."""
    x = images(count, shape)
    group = trace(model, x[:1]).groups[index]
    units = view_units(model, group, torch.Generator().manual_seed(seed))
    ((activations, regressions),) = observe(View(model, [group]), View(model, [group]), x, seed)
    return replace(units, activations=activations, regressions=regressions), group


def network(seed=0):
    torch.manual_seed(seed)
    return chain(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 3))


def hand(rows, columns, biases=None):
    """Units with these rows and columns."""
    model = chain(nn.Flatten(), linear(rows, biases), nn.ReLU(), linear(columns))
    x = torch.zeros(1, 1, 1, len(rows[0]))
    group = named_groups(model, [{"producers": ["1"], "consumers": ["3"]}], x)[0]
    return view_units(model, replace(group, operations=frozenset({"relu"})), torch.Generator().manual_seed(0))


# --- all methods


@pytest.mark.parametrize("name", list(selectors))
def test_every_selection_keeps_so_many_different_units_in_order(name):
    units, _ = looked_at(network())
    for keep in (1, 5, 12):
        kept = selectors.find(name)(units, keep)
        assert len(kept) == keep == len(kept.unique())
        assert kept.equal(kept.sort().values)


@pytest.mark.parametrize("name", list(combiners))
@pytest.mark.parametrize("build", [network, lambda: shaken(Branches()), lambda: shaken(Depthwise())])
def test_keeping_all_units_changes_nothing(name, build):
    model = build()
    units, group = looked_at(model, count=400)
    options = {"ridge": 1e-12} if name.startswith("least_squares") else {}
    plan = combiners.find(name)(units, torch.arange(group.units), **options)
    x = images(20)
    before = model(x).detach()
    apply_(model, group, plan)
    assert relative(before, model(x).detach()) <= 1e-5


@pytest.mark.parametrize("name", list(combiners))
@pytest.mark.parametrize(
    "build", [network, lambda: shaken(Padded()), lambda: shaken(Branches()), lambda: shaken(Depthwise())]
)
def test_weights_edited_at_full_width_compute_what_the_compact_network_does(name, build):
    model = build()
    units, group = looked_at(model)
    plan = combiners.find(name)(units, selectors.find("l1")(units, group.units // 2))
    apply_(model, group, plan)
    x = images(20)
    wide = model(x).detach()
    keep_units_(model, group, plan.kept)
    assert relative(wide, model(x).detach()) <= 1e-5


MERGING = [name for name in combiners if name not in ("drop", "mean_bias", "least_squares", "optimal_transport")]
"""Optimal transport's uniform plan mixes units that are not equal when distances tie."""


@pytest.mark.parametrize("name", MERGING)
def test_equal_units_become_one_without_loss(name):
    """Two copies of each of three units: any method that merges finds them."""
    torch.manual_seed(0)
    rows, columns = torch.randn(3, 4).repeat(2, 1), torch.randn(2, 3).repeat(1, 2)
    model = chain(nn.Flatten(), linear(rows), nn.ReLU(), linear(columns))
    units, group = looked_at(model, shape=(1, 2, 2))
    plan = combiners.find(name)(units, torch.arange(3))
    x = images(50, (1, 2, 2))
    before = model(x).detach()
    apply_(model, group, plan)
    keep_units_(model, group, plan.kept)
    assert relative(before, model(x).detach()) <= 2e-4


@pytest.mark.parametrize("build", [lambda: shaken(Branches()), lambda: shaken(Preactivated()), network])
def test_all_groups_in_turn_take_the_widths_that_were_asked(build):
    model = build()
    groups = trace(model, images(1)).groups
    widths = {group.name: max(1, group.units // 2) for group in groups}
    small = fuse(model, groups, widths, Method(), images(100)).model
    assert {name: small.get_submodule(name).weight.shape[0] for name in widths} == widths
    assert small(images(3)).shape == (3, 3)


def test_residual_streams_and_inner_groups_fuse_together():
    """Every unit twice: half of each group is exactly enough, whatever the order of groups."""
    torch.manual_seed(0)
    model = shaken(models.find("resnet_20")(SHAPE, 3))
    for group in trace(model, images(1)).groups:
        half = group.units // 2
        twice = torch.arange(group.units) % half
        for slot in (*group.producers, *group.norms):
            layer = model.get_submodule(slot.layer)
            for name in ("weight", "bias", "running_mean", "running_var"):
                if getattr(layer, name, None) is not None:
                    getattr(layer, name).data = getattr(layer, name).data[twice]
    groups = trace(model, images(1)).groups
    small = fuse(model, groups, {g.name: g.units // 2 for g in groups}, Method("greedy"), images(128)).model
    with torch.no_grad():
        assert relative(model(images(9)), small(images(9))) <= 1e-2


def test_the_same_seed_gives_the_same_network():
    model = network()
    groups = trace(model, images(1)).groups
    one, other = (fuse(model, groups, {"1": 5, "3": 4}, Method("random"), images(100), 3).model for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


# --- selection


def test_l1_and_in_out_rank_as_on_paper():
    units = hand([[3.0, -1.0], [1.0, 1.0], [0.0, 2.5]], [[0.1, 5.0, 1.0]])
    # Σ|w|: 4, 2, 2.5; ‖in‖·‖out‖: 0.32, 7.07, 2.5
    assert selectors.find("l1")(units, 2).tolist() == [0, 2]
    assert selectors.find("in_out")(units, 2).tolist() == [1, 2]


def test_pivoted_qr_leaves_out_what_the_others_explain():
    # unit 2 is the sum of units 0 and 1 (all inputs positive), unit 0 the widest, so 2 then has nothing of its own
    model = chain(
        nn.Flatten(), linear([[5.0, 0.0], [0.0, 1.0], [0.5, 0.1]], [50.0] * 3), nn.ReLU(), linear([[1.0] * 3])
    )
    units, _ = looked_at(model, shape=(1, 1, 2))
    assert selectors.find("pivoted_qr")(units, 2).tolist() == [0, 1]


def test_greedy_elimination_adds_the_error_that_least_squares_finds():
    """The optimal brain surgeon's formula against refitting with numpy for each unit removed."""
    model = network()
    units, _ = looked_at(model, count=300)
    x = images(300)
    inputs = torch.relu(model[1](x.flatten(1))).detach().double().numpy()
    outputs = model[3](torch.relu(model[1](x.flatten(1)))).detach().double().numpy()
    found = eliminate(units, keep=6, ridge=1e-12)
    spread = ((outputs - outputs.mean(0)) ** 2).sum()
    gone: list[int] = []
    for unit, error in zip(found.order.tolist(), found.errors[1:].tolist(), strict=True):
        losses = {u: lost(inputs, outputs, [*gone, u]) / spread for u in range(12) if u not in gone}
        assert unit == min(losses, key=losses.get)
        assert error == pytest.approx(losses[unit], rel=1e-4, abs=1e-6)
        gone.append(unit)


def lost(inputs, outputs, gone):
    """Squared error of the best linear fit without these inputs."""
    stay = [u for u in range(inputs.shape[1]) if u not in gone]
    design = np.column_stack((inputs[:, stay], np.ones(len(inputs))))
    return ((outputs - design @ np.linalg.lstsq(design, outputs, rcond=None)[0]) ** 2).sum()


def test_elimination_treats_the_taps_of_a_unit_as_one():
    model = shaken(models.find("lenet_5")((1, 28, 28), 10))
    units, _ = looked_at(model, 1, (1, 28, 28), count=64)
    found = eliminate(units, keep=48, ridge=1e-3)
    pair = found.order.tolist()
    regression = units.regressions[0]
    errors = {
        others: share_lost(regression, torch.tensor([u for u in range(50) if u not in others]))
        for others in itertools.islice(itertools.combinations(range(50), 2), 60)
    }
    chosen = share_lost(regression, torch.tensor([u for u in range(50) if u not in pair]))
    assert chosen <= min(errors.values()) * 1.05 + 1e-6


def share_lost(regression, kept):
    """Share of a consumer's variance that its refitted weights leave unexplained."""
    weight, _ = refit(regression, kept)
    explained = 2 * (weight * regression.cov_cross.T).sum() - (weight * (weight @ regression.cov_in)).sum()
    return float(1 - explained / regression.var_out.sum())


class TwoReaders(nn.Module):
    """Two consumers that see the same units through different operations."""

    def __init__(self):
        super().__init__()
        self.fc1, self.one, self.other = nn.Linear(64, 12), nn.Linear(12, 5), nn.Linear(12, 5)
        self.output = nn.Linear(10, 3)

    def forward(self, x):
        x = self.fc1(x.flatten(1))
        return self.output(torch.cat((self.one(torch.relu(x)), self.other(torch.sigmoid(-3 * x))), 1))


def test_each_consumer_is_served_with_what_it_sees_itself():
    torch.manual_seed(0)
    model = TwoReaders().eval()
    units, group = looked_at(model)
    x = images(200)
    before = model(x).mean(0).detach()
    apply_(model, group, combiners.find("mean_bias")(units, torch.arange(6)))
    assert torch.allclose(before, model(x).mean(0).detach(), atol=1e-5)


def test_consumers_too_large_to_be_regressed_still_have_their_say(monkeypatch):
    """Unit 0 matters to the large consumer alone: elimination must not drop it first."""
    torch.manual_seed(0)
    model = TwoReaders().eval()
    model.one.weight.data[:, 0] = 0
    model.other.weight.data[:, 0] = 9
    monkeypatch.setattr("ticketlab.fusion.units._inputs", lambda _, slot: 1 if slot.layer == "one" else 10**9)
    units, _ = looked_at(model)
    assert [regression.layer for regression in units.regressions] == ["one"]
    assert 0 in eliminate(units, keep=3).kept.tolist()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (nn.Conv2d(1, 6, 3), nn.Conv2d(6, 5, 3, padding="same", dilation=2)),
        (nn.Conv2d(1, 6, 3), nn.Conv2d(6, 5, 3, padding=1, padding_mode="reflect")),
        (nn.Conv2d(1, 6, 3), nn.Conv2d(6, 5, (3, 2), stride=(2, 1), padding=(1, 0))),
    ],
)  # fmt: skip
def test_patches_are_what_any_convolution_sees(first, second):
    """Weights times patches are the layer's own outputs."""
    from ticketlab.fusion.units import _patches, _rows

    hidden = first(images(3)).detach()
    ours = _patches(second, hidden) @ second.weight.detach().flatten(1).T + second.bias.detach()
    assert torch.allclose(ours, _rows(second(hidden).detach(), second), atol=1e-5)


def test_patches_of_one_dimension():
    from ticketlab.fusion.units import _patches, _rows

    layer, x = nn.Conv1d(4, 5, 3, padding="same", dilation=2), images(3, (4, 20))
    ours = _patches(layer, x) @ layer.weight.detach().flatten(1).T + layer.bias.detach()
    assert torch.allclose(ours, _rows(layer(x).detach(), layer), atol=1e-5)


def test_methods_that_look_at_data_say_so_where_there_is_none():
    model = network()
    groups = trace(model, images(1)).groups
    with pytest.raises(FusionError, match="needs images"):
        fuse(model, groups, {"1": 3}, Method())
    with pytest.raises(FusionError, match="ridge must be above 0"):
        fuse(model, groups, {"1": 3}, Method(options={"ridge": 0.0}), images(100))


# --- combination


def test_neuron_merging_moves_a_column_scaled_by_the_ratio_of_norms():
    units = hand([[1.0, 0.0], [2.0, 0.2], [0.0, -1.0]], [[1.0, 10.0, 100.0]])
    plan = combiners.find("neuron_merging")(units, torch.tensor([0, 2]))
    assert plan.B[1].tolist() == pytest.approx([4.04**0.5, 0.0])
    far = combiners.find("neuron_merging")(units, torch.tensor([2]))
    assert far.B[:, 0].tolist() == [0.0, 0.0, 1.0]  # no kept unit is similar: dropped


def test_folding_averages_rows_and_adds_columns():
    units = hand([[1.0, 0.0], [1.2, 0.0], [0.0, -5.0]], [[1.0, 2.0, 3.0]])
    plan = combiners.find("fold")(units, torch.tensor([0, 1]))
    assert plan.R is not None
    assert (plan.R @ units.incoming).tolist() == [pytest.approx([1.1, 0.0]), pytest.approx([0.0, -5.0])]
    assert (units.outgoing.T @ plan.B).tolist() == [[3.0, 3.0]]


def test_folding_directions_is_exact_for_parallel_units_of_any_length():
    model = chain(nn.Flatten(), linear([[1.0, 2.0], [10.0, 20.0], [3.0, -1.0]]), nn.ReLU(), linear([[1.0, 2.0, 3.0]]))
    units, group = looked_at(model, shape=(1, 1, 2))
    before = model(images(20, (1, 1, 2))).detach()
    plan = combiners.find("fold_directions")(units, torch.arange(2))
    apply_(model, group, plan)
    keep_units_(model, group, plan.kept)
    assert relative(before, model(images(20, (1, 1, 2))).detach()) <= 1e-6


def test_folding_mixes_rows_through_batch_norm_exactly():
    """The new unit's value before its activation is the mean of the old ones', whatever their norms."""
    model = shaken(models.find("lenet_5")((1, 28, 28), 10, batch_norm=True))
    units, group = looked_at(model, shape=(1, 28, 28), count=20)
    plan = combiners.find("fold")(units, torch.arange(8))
    x = images(5, (1, 28, 28))
    wanted = torch.einsum("ku,nuhw->nkhw", plan.R.float(), model.norm1(model.conv1(x)).detach())
    apply_(model, group, plan)
    assert relative(wanted, model.norm1(model.conv1(x)).detach()[:, plan.kept]) <= 1e-5


def test_optimal_transport_moves_all_mass_once():
    units, _ = looked_at(network())
    plan = combiners.find("optimal_transport")(units, torch.tensor([0, 3, 5, 7, 9]))
    assert plan.R is not None
    assert plan.B.sum(dim=1).tolist() == pytest.approx([1.0] * 12)
    assert plan.R.sum(dim=1).tolist() == pytest.approx([1.0] * 5)


def test_optimal_transport_finds_the_cheapest_plan():
    from ticketlab.fusion.combine import _transport

    cost = np.random.default_rng(0).random((4, 4))
    best = min(sum(cost[i, p[i]] for i in range(4)) for p in itertools.permutations(range(4))) / 4
    assert float((_transport(cost) * torch.from_numpy(cost)).sum()) == pytest.approx(best)


def test_correlation_merges_the_most_correlated_pair():
    model = chain(
        nn.Flatten(), linear([[1.0, 0.1], [1.0, 0.0], [0.0, 1.0]], [9.0] * 3), nn.ReLU(), linear([[1.0, 2.0, 3.0]])
    )
    units, _ = looked_at(model, shape=(1, 1, 2))
    plan = combiners.find("correlation")(units, torch.arange(2))
    assert plan.B.tolist() == [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]


def test_mean_bias_keeps_the_mean_of_the_consumers_outputs():
    model = network()
    units, group = looked_at(model)
    x = images(200)
    before = model[3](torch.relu(model[1](x.flatten(1)))).mean(0)
    apply_(model, group, combiners.find("mean_bias")(units, torch.arange(6)))
    after = model[3](torch.relu(model[1](x.flatten(1)))).mean(0)
    assert torch.allclose(before, after, atol=1e-5)


@pytest.mark.parametrize("name", ["least_squares", "least_squares_channel"])
def test_a_unit_that_is_a_sum_of_others_goes_without_loss(name):
    rows = torch.rand(3, 4)
    rows = torch.cat((rows, rows[:1] + 2 * rows[1:2]))
    model = chain(nn.Flatten(), linear(rows, [20.0] * 4), nn.ReLU(), linear(torch.randn(2, 4)))  # never negative
    units, group = looked_at(model, shape=(1, 2, 2))
    before = model(images(9, (1, 2, 2))).detach()
    plan = combiners.find(name)(units, torch.arange(3), ridge=1e-10)
    apply_(model, group, plan)
    keep_units_(model, group, plan.kept)
    assert (model(images(9, (1, 2, 2))).detach() - before).abs().max() <= 1e-3


def test_least_squares_per_consumer_is_the_regression_on_patches():
    """Against numpy on patches cut out by hand, padding and stride included."""
    torch.manual_seed(0)
    model = chain(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 3, 2, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 2),
    )
    units, _ = looked_at(model, count=50)
    weight, shift = refit(units.regressions[0], torch.tensor([0, 2]), ridge=1e-12)
    hidden = torch.relu(model[0](images(50))).detach()
    target = model[2](hidden).detach().permute(0, 2, 3, 1).reshape(-1, 3).double().numpy()
    framed = torch.nn.functional.pad(hidden, (1, 1, 1, 1))
    patches = [framed[:, [0, 2], r : r + 2, c : c + 2].flatten(1) for r in range(0, 8, 2) for c in range(0, 8, 2)]
    design = torch.stack(patches, 1).flatten(0, 1).double().numpy()
    fitted = np.linalg.lstsq(np.column_stack((design, np.ones(len(design)))), target, rcond=None)[0]
    ours = weight.view(3, 4, 2, 2)[:, [0, 2]].flatten(1)
    assert np.allclose(ours.numpy(), fitted[:-1].T, atol=1e-4)
    assert np.allclose((model[2].bias.detach().double() + shift).numpy(), fitted[-1], atol=1e-4)
    assert not weight.view(3, 4, 2, 2)[:, [1, 3]].any()


def test_least_squares_beats_every_other_combination_on_what_it_fits():
    model = network()
    units, group = looked_at(model, count=400)
    kept = selectors.find("l1")(units, 5)
    x = images(400)
    target = model[3](torch.relu(model[1](x.flatten(1)))).detach()
    errors = {}
    for name in combiners:
        copy = network()
        apply_(copy, group, combiners.find(name)(units, kept))
        errors[name] = float((copy[3](torch.relu(copy[1](x.flatten(1)))).detach() - target).square().mean())
    assert errors.pop("least_squares") <= 1.001 * min(errors.values())
    assert errors.pop("least_squares_channel") < min(errors.values())
