"""Personal tickets: exact counts, what is accepted, restarts, overlap."""

import pytest
import torch

from ticketlab.codec import Sparse
from ticketlab.data.batches import Examples
from ticketlab.errors import TicketlabError
from ticketlab.federate.rules.personal import Personal, overlap, personal, pruned
from ticketlab.federate.rules.rule import Answer, Work
from ticketlab.pruning.masks import full_mask
from ticketlab.recipe import FederateSection


def row(*values):
    return {"w": torch.tensor([values]).bool()}


def sparse(values, mask):
    return Sparse(mask, {"w": torch.tensor([values]) * mask["w"]}, {})


FULL = row(1, 1, 1, 1, 1)


def rule_of(start=(5.0, 4.0, 3.0, 2.0, 1.0), clients=("a", "b"), **options):
    return Personal(sparse(start, FULL), FederateSection(), clients, **options)


def test_a_share_of_each_layer_goes_the_smallest_first():
    state = {"w": torch.arange(1.0, 11.0).view(2, 5) * torch.tensor([1, -1, 1, -1, 1]), "v": torch.ones(3, 3).cumsum(1)}
    mask = {name: torch.ones_like(value, dtype=torch.bool) for name, value in state.items()}
    found = pruned(state, mask, 0.2, 0.1)
    assert found["w"].tolist() == [[False, False, True, True, True], [True] * 5]  # 2 of 10
    assert found["v"].tolist() == [[False, True, True]] * 2 + [[True] * 3]  # round(1.8) of 9, ties: the earlier
    again = pruned(state, found, 0.2, 0.1)
    assert int(again["w"].sum()) == 6 and int(again["v"].sum()) == 6  # round(1.6), round(1.4)
    assert not bool((again["w"] & ~found["w"]).any())


def test_a_layer_stops_at_its_target_and_at_one_weight():
    state, mask = {"w": torch.arange(10.0).view(2, 5)}, {"w": torch.ones(2, 5, dtype=torch.bool)}
    assert int(pruned(state, mask, 0.9, 0.4)["w"].sum()) == 4
    assert int(pruned(state, mask, 0.9, 0.04)["w"].sum()) == 1
    below = {"w": torch.zeros(2, 5, dtype=torch.bool)}
    below["w"][1, 3:] = True
    assert torch.equal(pruned(state, below, 0.5, 0.4)["w"], below["w"])


def test_overlap_is_the_mean_share_of_what_two_keep_over_all_pairs():
    one, other, third = row(1, 1, 0, 0), row(0, 1, 1, 0), row(1, 1, 1, 0)
    assert overlap([one, other]) == 1 / 3
    assert overlap([one, other, third]) == pytest.approx((1 / 3 + 2 / 3 + 2 / 3) / 3)
    assert overlap([one, one]) == 1
    assert overlap([one]) is None


def test_overlap_counts_all_layers_together():
    one = {"w": torch.tensor([True, False]), "v": torch.ones(6, dtype=torch.bool)}
    other = {"w": torch.tensor([False, True]), "v": torch.ones(6, dtype=torch.bool)}
    assert overlap([one, other]) == 6 / 8


def test_a_mask_may_lose_weights_and_gain_none():
    rule = rule_of()
    rule.masks["a"] = row(1, 1, 1, 0, 0)
    assert rule.accepts("a", sparse([1.0] * 5, row(1, 1, 1, 0, 0))) is None
    assert rule.accepts("a", sparse([1.0] * 5, row(0, 1, 1, 0, 0))) is None
    assert "were removed" in rule.accepts("a", sparse([1.0] * 5, row(1, 1, 0, 1, 0)))
    assert "were removed" in rule.accepts("a", Sparse({}, {"w": torch.ones(1, 5)}, {}))
    assert rule.accepts("b", sparse([1.0] * 5, row(1, 1, 0, 1, 0))) is None


def test_a_mask_that_keeps_nothing_of_a_layer_is_not_accepted():
    assert rule_of().accepts("a", sparse([0.0] * 5, row(0, 0, 0, 0, 0))) is not None


def test_each_weight_is_the_mean_over_those_that_keep_it():
    rule = rule_of()
    a, b = row(1, 1, 0, 0, 0), row(1, 0, 1, 0, 0)
    given = [Answer("a", sparse([1.0, 2.0, 9.0, 9.0, 9.0], a), 1), Answer("b", sparse([4.0, 9.0, 6.0, 9.0, 9.0], b), 2)]
    told = rule.merge(1, given)
    assert rule.network.state["w"].tolist() == [[3.0, 2.0, 6.0, 2.0, 1.0]]
    assert told == {"densities": {"a": 0.4, "b": 0.4}, "overlap": 1 / 3}
    assert rule.network.mask is FULL
    same = rule_of(uniform=True)
    same.merge(1, given)
    assert same.network.state["w"].tolist() == [[2.5, 2.0, 6.0, 2.0, 1.0]]


def test_a_client_restarts_from_the_origin_in_the_round_after_its_mask_shrank_and_only_then():
    rule = rule_of()
    a = row(1, 1, 1, 0, 0)
    rule.merge(1, [Answer("a", sparse([9.0] * 5, a), 1), Answer("b", sparse([7.0] * 5, FULL), 1)])
    assert rule.order(2, "a").network.state["w"].tolist() == [[5.0, 4.0, 3.0, 0.0, 0.0]]
    assert rule.order(2, "a").network.mask is a
    assert rule.order(2, "b").network.state["w"].tolist() == [[8.0, 8.0, 8.0, 7.0, 7.0]]
    rule.merge(2, [Answer("b", sparse([7.0] * 5, FULL), 1)])
    assert rule.order(3, "a").network.state["w"].tolist() == [[5.0, 4.0, 3.0, 0.0, 0.0]]  # it has not done so yet
    rule.merge(3, [Answer("a", sparse([6.0] * 5, a), 1)])
    assert rule.order(4, "a").network.state["w"].tolist() == [[6.0, 6.0, 6.0, 0.0, 0.0]]


def test_masks_and_restarts_are_remembered():
    rule, other = rule_of(), rule_of()
    rule.merge(1, [Answer("a", sparse([9.0] * 5, row(1, 0, 1, 0, 0)), 1)])
    other.recall_(rule.network, rule.memory())
    for name in ("a", "b"):
        one, two = rule.order(2, name).network, other.order(2, name).network
        assert torch.equal(one.state["w"], two.state["w"]) and torch.equal(one.mask["w"], two.mask["w"])


# --- the client's side


def work_of(weight, accuracy, validation=4, **task):
    """Two features, two classes; the identity is right on all examples."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 2, bias=False))
    features, labels = torch.eye(2).repeat(4, 1).view(8, 1, 1, 2), torch.tensor([0, 1] * 4)
    examples = Examples(features, labels, torch.ones(1, 1, 1), torch.zeros(1, 1, 1))
    told = {"accuracy": accuracy, "rate": 0.5, "target": 0.1, **task}
    received = Sparse(full_mask(model), {"1.weight": torch.tensor(weight)}, {})
    section = FederateSection(lr=1e-3)
    return Work(model, received, examples, examples.first(validation), section, told, 1)


RIGHT, WRONG = [[2.0, 0.1], [0.2, 3.0]], [[0.1, 2.0], [3.0, 0.2]]


def test_the_smallest_go_where_the_network_that_came_was_good_enough():
    found = personal(work_of(RIGHT, 0.9)).network
    assert found.mask["1.weight"].tolist() == [[True, False], [False, True]]
    assert found.state["1.weight"][~found.mask["1.weight"]].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("weight", "accuracy", "task"), [(WRONG, 0.9, {}), (RIGHT, 1.0, {}), (RIGHT, 0.9, {"target": 1.0})], ids=str
)
def test_nothing_goes_where_it_was_not_or_the_target_is_reached(weight, accuracy, task):
    assert bool(personal(work_of(weight, accuracy, **task)).network.mask["1.weight"].all())


def test_without_examples_to_judge_by_the_client_says_what_to_do():
    with pytest.raises(TicketlabError, match=r"raise federate\.holdout"):
        personal(work_of(RIGHT, 0.5, validation=0))


@pytest.mark.parametrize("options", [{"accuracy": 1.1}, {"rate": 0.0}, {"rate": 1.0}, {"target": 0.0}, {"target": 1.1}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(TicketlabError, match="rule personal"):
        rule_of(**options)
