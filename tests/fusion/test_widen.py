"""A narrow network's change in the wide one: fused again with the same map it is the same, and none is smaller."""

import pytest
import torch
from networks import SHAPE, Branches, Depthwise, Padded, Preactivated, images, shaken
from torch import nn

from ticketlab.fusion.fuse import Fused, Method, fuse
from ticketlab.fusion.groups import Group, Slot
from ticketlab.fusion.trace import trace
from ticketlab.fusion.widen import widen
from ticketlab.fusion.widths import uniform

METHOD = Method("in_out", "neuron_merging")


def two_layers():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


def convolutions():
    """A flatten gives the last layer four columns for each filter."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip


NETWORKS = [two_layers, convolutions, Padded, Branches, Depthwise, Preactivated]


def fused(make, share=0.5):
    torch.manual_seed(1)
    model = shaken(make())
    groups = [group for group in trace(model, images(1, SHAPE)).groups if group.reason is None]
    return model, groups, fuse(model, groups, uniform(groups, share), METHOD)


def again(state, groups, made):
    """Fuse by hand with a map that is given: rows of the units that stay, columns times B."""
    found = {name: value.double() for name, value in state.items() if value.is_floating_point()}
    for group in groups:
        if group.name not in made.kept:
            continue
        kept, mixing = made.kept[group.name], made.mixing[group.name].double()
        for slot in group.consumers:
            weight, name = found[f"{slot.layer}.weight"].clone(), f"{slot.layer}.weight"
            for tap in range(slot.index.shape[1]):
                places = slot.index[:, tap]
                read = torch.zeros(len(weight), len(kept), *weight.shape[2:], dtype=torch.double)
                for new in range(len(kept)):
                    for old in range(group.units):
                        read[:, new] += mixing[old, new] * found[name][:, places[old]]
                weight[:, places[kept]] = read
            found[name] = weight
    rows, columns = {}, {}
    for group in groups:
        if group.name not in made.kept:
            continue
        gone = [unit for unit in range(group.units) if unit not in made.kept[group.name].tolist()]
        for slots, where in (((*group.producers, *group.norms, *group.depthwise), rows), (group.consumers, columns)):
            for slot in slots:
                where.setdefault(slot.layer, set()).update(slot.index[gone].reshape(-1).tolist())
    for name, value in found.items():
        layer, _, part = name.rpartition(".")
        stay = [row for row in range(value.shape[0]) if row not in rows.get(layer, ())]
        found[name] = value[stay]
        if part == "weight" and value.dim() > 1:
            found[name] = found[name][:, [c for c in range(value.shape[1]) if c not in columns.get(layer, ())]]
    return found


def change_of(made, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in made.model.state_dict().items()
        if value.is_floating_point()
    }


@pytest.mark.parametrize("make", NETWORKS)
def test_fusing_by_hand_gives_the_fused_network(make):
    model, groups, made = fused(make)
    assert made.kept
    for name, value in again(model.state_dict(), groups, made).items():
        assert torch.allclose(value.float(), made.model.state_dict()[name], atol=1e-5), name


@pytest.mark.parametrize("make", NETWORKS)
def test_the_widened_change_fuses_to_the_change_of_the_narrow_network(make):
    model, groups, made = fused(make)
    change = change_of(made)
    wide, _ = widen(change, model.state_dict(), groups, made.kept, made.mixing)
    moved = {name: value + wide.get(name, 0) for name, value in model.state_dict().items()}
    narrow = made.model.state_dict()
    for name, value in again(moved, groups, made).items():
        assert torch.allclose(value.float(), narrow[name] + change[name], atol=1e-5), name


def test_no_other_change_that_fuses_to_it_is_smaller():
    # the middle layer: rows of the second group, columns of the first; ΔW · B = ΔW' for each row that stays
    model, groups, made = fused(two_layers, 0.4)
    change = change_of(made)
    wide, _ = widen(change, model.state_dict(), groups, made.kept, made.mixing)
    mixing, rows = made.mixing["1"].double(), made.kept["3"]
    assert mixing.shape == (12, 5)
    best = torch.linalg.lstsq(mixing.T, change["3.weight"].double().T, driver="gelsd").solution.T
    assert torch.allclose(wide["3.weight"][rows].double(), best, atol=1e-6)
    others = [row for row in range(8) if row not in rows.tolist()]
    assert not bool(wide["3.weight"][others].any()) and not bool(wide["3.bias"][others].any())
    assert torch.equal(wide["3.bias"][rows], change["3.bias"])


def test_a_change_by_hand_where_two_units_became_one():
    # three units; the third is read as twice the first; the change d of a column becomes d · (1, 2) / 5
    group = Group((Slot("a", torch.arange(3)[:, None]),), (Slot("b", torch.arange(3)[:, None]),))
    like = {
        "a.weight": torch.zeros(3, 2),
        "a.bias": torch.zeros(3),
        "b.weight": torch.zeros(1, 3),
        "n": torch.tensor(4),
    }
    change = {
        "a.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "a.bias": torch.tensor([5.0, 6.0]),
        "b.weight": torch.tensor([[10.0, 7.0]]), "n": torch.tensor(5),
    }  # fmt: skip
    mixing = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
    found, reached = widen(change, like, [group], {"a": torch.tensor([0, 1])}, {"a": mixing})
    assert found["a.weight"].tolist() == [[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]]
    assert found["a.bias"].tolist() == [5.0, 6.0, 0.0]
    assert found["b.weight"][0].tolist() == pytest.approx([2.0, 7.0, 4.0])
    assert reached["a.weight"].tolist() == [[True, True], [True, True], [False, False]]
    assert reached["a.bias"].tolist() == [True, True, False]
    assert reached["b.weight"].tolist() == [[True, True, True]]
    assert "n" not in found and "n" not in reached


def test_a_column_that_nobody_reads_is_not_reached():
    group = Group((Slot("a", torch.arange(3)[:, None]),), (Slot("b", torch.arange(3)[:, None]),))
    like = {"b.weight": torch.zeros(2, 3)}
    mixing = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    found, reached = widen({"b.weight": torch.ones(2, 2)}, like, [group], {"a": torch.tensor([0, 1])}, {"a": mixing})
    assert reached["b.weight"].tolist() == [[True, True, False]] * 2
    assert torch.allclose(found["b.weight"], torch.tensor([[1.0, 1.0, 0.0]] * 2))


@pytest.mark.parametrize("seed", range(20))
def test_what_is_reached_are_the_rows_that_stay_and_the_columns_that_the_map_reads(seed):
    # as neuron merging makes maps: each unit that goes is read as a multiple of one that stays, or not at all
    generator = torch.Generator().manual_seed(seed)
    units, kept = 40, torch.randperm(40, generator=generator)[:9].sort().values
    mixing = torch.zeros(units, 9, dtype=torch.double)
    mixing[torch.arange(units), torch.randint(0, 9, (units,), generator=generator)] = torch.rand(
        units, generator=generator, dtype=torch.double
    ) * (torch.rand(units, generator=generator) < 0.5)
    mixing[kept] = torch.eye(9, dtype=torch.double)
    group = Group((Slot("a", torch.arange(units)[:, None]),), (Slot("b", torch.arange(units)[:, None]),))
    _, reached = widen(
        {"b.weight": torch.ones(4, 9)}, {"b.weight": torch.zeros(4, units)}, [group], {"a": kept}, {"a": mixing}
    )
    assert torch.equal(reached["b.weight"], (mixing != 0).any(1).expand(4, units))


def test_a_network_that_was_not_fused_changes_as_it_is():
    model, groups, _ = fused(convolutions)
    whole = Fused(model, {}, {})
    change = change_of(whole)
    found, reached = widen(change, model.state_dict(), groups, {}, {})
    assert all(torch.equal(found[name], change[name]) and bool(reached[name].all()) for name in change)
