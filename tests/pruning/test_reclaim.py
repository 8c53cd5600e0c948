from itertools import pairwise

import pytest
import torch
from torch import nn

from ticketlab.fusion.paths import Paths
from ticketlab.models import models
from ticketlab.pruning.allocate import Pool, make_pools, prune
from ticketlab.pruning.masks import full_mask, remaining
from ticketlab.pruning.reclaim import prune_live


def net(*sizes):
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())][:-1])


def test_a_weight_without_a_way_out_gives_its_place_to_the_next_best_that_has_one():
    model = net(2, 2, 2)
    saliency = {"0.weight": torch.tensor([[9.0, 2.0], [8.0, 7.0]]), "2.weight": torch.tensor([[6.0, 1.0], [3.0, 0.5]])}
    pool = [Pool(("0.weight", "2.weight"), 0.5)]
    mask = prune_live(saliency, full_mask(model), pool, [4], Paths(model, (2,)).reach)
    # usual: 9 8 7 6; but 8 and 7 feed unit 1, which nobody reads: 3 and 2 lie on paths through unit 0
    assert mask["0.weight"].tolist() == [[True, True], [False, False]]
    assert mask["2.weight"].tolist() == [[True, False], [True, False]]


def test_where_everything_is_live_nothing_changes():
    model = net(3, 3, 2)
    saliency = {name: torch.rand(kept.shape) for name, kept in full_mask(model).items()}
    calls = []

    def reach(mask):
        calls.append(mask)
        return {name: torch.ones_like(kept) for name, kept in mask.items()}

    pools = [Pool(tuple(saliency), 0.5)]
    usual = prune(saliency, full_mask(model), pools, [8])
    found = prune_live(saliency, full_mask(model), pools, [8], reach)
    assert all(torch.equal(found[name], usual[name]) for name in usual)
    assert len(calls) == 1


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("seed", range(3))
def test_counts_are_exact_and_all_kept_weights_are_live(scope, seed):
    torch.manual_seed(seed)
    model = models.find("lenet_300_100")((1, 28, 28), 10)
    before = full_mask(model)
    saliency = {name: dict(model.named_parameters())[name].detach().abs() for name in before}
    sizes = {name: kept.numel() for name, kept in before.items()}
    pools = make_pools(sizes, scope, 0.5)
    keeps = [300] if scope == "global" else [200, 60, 40]
    paths = Paths(model, (1, 28, 28))
    mask = prune_live(saliency, before, pools, keeps, paths.reach)
    assert [sum(int(mask[name].sum()) for name in pool.layers) for pool in pools] == keeps
    assert remaining(paths.live(mask)) == remaining(mask)


def test_only_weights_that_are_still_there_are_given_a_place():
    torch.manual_seed(0)
    model = models.find("lenet_300_100")((1, 28, 28), 10)
    before = {name: torch.rand(kept.shape) < 0.05 for name, kept in full_mask(model).items()}
    saliency = {name: torch.rand(kept.shape) for name, kept in before.items()}
    mask = prune_live(saliency, before, [Pool(tuple(before), 0.5)], [400], Paths(model, (1, 28, 28)).reach)
    assert remaining(mask) == 400
    assert not any((mask[name] & ~before[name]).any() for name in mask)


def test_where_no_path_is_left_the_count_is_exact_all_the_same():
    model = net(2, 2, 2)
    before = {"0.weight": torch.tensor([[True, True], [False, False]]), "2.weight": torch.tensor([[False, True]] * 2)}
    saliency = {name: torch.rand(2, 2) for name in before}
    mask = prune_live(saliency, before, [Pool(tuple(before), 0.5)], [3], Paths(model, (2,)).reach)
    assert remaining(mask) == 3
    assert all(kept.any() for kept in mask.values())


class Residual(nn.Module):
    """Two blocks with shortcuts, so that a layer can be empty and the network live all the same."""

    def __init__(self, width=6):
        super().__init__()
        self.first, self.last = nn.Linear(5, width), nn.Linear(width, 3)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4), nn.ReLU(), nn.Linear(4, width)) for _ in range(2)
        )

    def forward(self, x):
        x = torch.relu(self.first(x))
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return self.last(x)


@pytest.mark.parametrize("keep", [6, 9, 13, 30, 70])
def test_counts_are_exact_where_shortcuts_leave_layers_empty(keep):
    model = Residual()
    paths = Paths(model, (5,))
    for seed in range(60):
        torch.manual_seed(seed)
        before = {name: torch.rand(kept.shape) < 0.7 for name, kept in full_mask(model).items()}
        saliency = {name: torch.rand(kept.shape) for name, kept in before.items()}
        mask = prune_live(saliency, before, [Pool(tuple(before), 0.5)], [keep], paths.reach)
        assert remaining(mask) == keep
        assert all(kept.any() for kept in mask.values())
        assert not any((mask[name] & ~before[name]).any() for name in mask)


def test_resnet_keeps_exact_counts_level_by_level():
    torch.manual_seed(0)
    model = models.find("resnet_20")((3, 32, 32), 10)
    mask, weights = full_mask(model), dict(model.named_parameters())
    saliency = {name: weights[name].detach().abs() for name in mask}
    paths = Paths(model, (3, 32, 32))
    for keep in (9000, 2708, 902):
        mask = prune_live(saliency, mask, [Pool(tuple(mask), 0.5)], [keep], paths.reach)
        assert remaining(mask) == keep


def test_ties_fall_to_the_earlier_position_as_in_allocation():
    model = net(4, 2, 1)
    before = full_mask(model)
    # unit 1 is read by nobody among the best: its inputs of saliency 3 are dead, those of unit 0 tie
    saliency = {"0.weight": torch.tensor([[1.0] * 4, [3.0] * 4]), "2.weight": torch.tensor([[9.0, 0.1]])}
    mask = prune_live(saliency, before, [Pool(tuple(saliency), 0.5)], [4], Paths(model, (4,)).reach)
    assert mask["0.weight"].tolist() == [[False, True, True, True], [False] * 4]
    assert mask["2.weight"].tolist() == [[True, False]]
