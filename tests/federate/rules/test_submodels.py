"""Fused networks for the weak: what they change in the ticket, and what they leave alone."""

import pytest
import torch

from ticketlab.codec import Sparse
from ticketlab.errors import TicketlabError
from ticketlab.federate.rules.rule import Answer
from ticketlab.federate.rules.submodels import Submodels
from ticketlab.models import models
from ticketlab.pruning.masks import full_mask, masked
from ticketlab.recipe import FederateSection

FACTS = {
    "model": {"name": "lenet_300_100", "file": None, "options": {"widths": {"fc1": 12, "fc2": 8}}},
    "input_shape": [1, 8, 8],
    "classes": 10,
}


def start(density=0.5):
    torch.manual_seed(0)
    model = models.find("lenet_300_100")((1, 8, 8), 10, **FACTS["model"]["options"])
    mask = {name: torch.rand(kept.shape) < density for name, kept in full_mask(model).items()}
    return Sparse(mask, masked(model.state_dict(), mask), FACTS)


def rule_of(network=None, **options):
    return Submodels(
        network or start(), FederateSection(), ["a", "b", "c"], **{"weak": "a, b", "share": 0.5, **options}
    )


def shaken(network, seed):
    generator = torch.Generator().manual_seed(seed)
    state = {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in network.state.items()}
    return Sparse(network.mask, masked(state, network.mask), {})


def test_the_weak_get_half_of_the_units_dense_and_the_others_the_ticket():
    rule = rule_of()
    small = rule.order(1, "a").network
    assert rule.order(1, "c").network is rule.network and rule.order(1, "b").network is small
    assert {name: tuple(value.shape) for name, value in small.state.items() if value.dim() > 1} == {
        "fc1.weight": (6, 64), "fc2.weight": (4, 6), "output.weight": (10, 4),
    }  # fmt: skip
    assert small.mask == {}


def test_masks_are_those_that_were_sent():
    rule = rule_of()
    small, whole = rule.order(1, "a").network, rule.network
    assert rule.accepts("a", small) is None and rule.accepts("c", whole) is None
    assert rule.accepts("a", whole) == "another mask" and rule.accepts("c", small) == "another mask"


def test_weak_clients_alone_change_what_their_network_reaches_and_nothing_else():
    before = start()
    rule = rule_of(before)
    kept, mixing, small = rule.fused.kept, rule.fused.mixing, rule.small
    rule.merge(1, [Answer("a", shaken(small, 1), 4), Answer("b", shaken(small, 2), 4)])
    after = rule.network.state
    moved = {name: after[name] != value for name, value in before.state.items()}
    read = {group: (of != 0).any(1) for group, of in mixing.items()}
    rows = {group: torch.isin(torch.arange(len(read[group])), stays) for group, stays in kept.items()}
    for name, reached in {
        "fc1.weight": rows["fc1"][:, None].expand(12, 64), "fc1.bias": rows["fc1"],
        "fc2.weight": rows["fc2"][:, None] & read["fc1"][None], "fc2.bias": rows["fc2"],
        "output.weight": read["fc2"][None].expand(10, 8), "output.bias": torch.ones(10, dtype=torch.bool),
    }.items():  # fmt: skip
        assert torch.equal(moved[name], reached & before.mask.get(name, torch.tensor(True))), name
    assert all(bool((after[name][~mask] == 0).all()) for name, mask in rule.network.mask.items())


def test_a_weight_that_both_kinds_train_is_the_mean_of_all_and_others_of_the_strong_alone():
    before = start(1.0)
    rule = rule_of(before)
    rows, small = rule.fused.kept["fc1"].tolist(), rule.small
    weak, strong = shaken(small, 1), shaken(before, 2)
    rule.merge(1, [Answer("a", weak, 1), Answer("c", strong, 3)])
    found = rule.network.state["fc1.bias"]
    for unit in range(12):
        of_strong = strong.state["fc1.bias"][unit].item()
        if unit not in rows:
            assert found[unit].item() == pytest.approx(of_strong)
            continue
        at = rows.index(unit)
        of_weak = (before.state["fc1.bias"][unit] + weak.state["fc1.bias"][at] - small.state["fc1.bias"][at]).item()
        assert found[unit].item() == pytest.approx((of_weak + 3 * of_strong) / 4, abs=1e-6)


def test_a_change_of_a_dense_network_comes_back_as_it_was_made():
    # fused by the same map again: rows that stay, columns times B
    before = start(1.0)
    rule = rule_of(before)
    kept, mixing = rule.fused.kept, rule.fused.mixing
    answer = shaken(rule.small, 3)
    rule.merge(1, [Answer("a", answer, 1)])
    weight = rule.network.state["fc2.weight"].double()[kept["fc2"]] @ mixing["fc1"].double()
    assert torch.allclose(weight.float(), answer.state["fc2.weight"], atol=1e-5)
    assert torch.allclose(
        (rule.network.state["output.weight"].double() @ mixing["fc2"].double()).float(),
        answer.state["output.weight"],
        atol=1e-5,
    )


def test_the_fused_network_follows_the_ticket_and_needs_no_memory():
    rule, other = rule_of(), rule_of()
    rule.merge(1, [Answer("c", shaken(rule.network, 5), 1)])
    assert not torch.equal(rule.small.state["output.weight"], other.small.state["output.weight"])
    other.recall_(rule.network, rule.memory())
    assert all(torch.equal(rule.small.state[name], value) for name, value in other.small.state.items())


@pytest.mark.parametrize("options", [{"weak": ""}, {"weak": "d"}, {"weak": "a,d"}, {"share": 0.0}, {"share": 1.0}])
def test_weak_clients_that_are_not_there_and_shares_out_of_range_are_refused(options):
    with pytest.raises(TicketlabError, match="rule submodels: weak names clients"):
        rule_of(**options)
