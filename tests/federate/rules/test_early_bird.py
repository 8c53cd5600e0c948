"""When the ticket is drawn from averaged networks, on layers of four weights."""

import pytest
import torch

from ticketlab.codec import Sparse
from ticketlab.errors import TicketlabError
from ticketlab.federate.rules.early_bird import EarlyBird, magnitude_mask
from ticketlab.federate.rules.rule import Answer
from ticketlab.recipe import FederateSection

FULL = {"w": torch.ones(1, 4, dtype=torch.bool)}


def sparse(*values):
    return Sparse(FULL, {"w": torch.tensor([values])}, {})


def rule_of(settings=None, start=(9.0, 8.0, 7.0, 6.0), **options):
    return EarlyBird(sparse(*start), settings or FederateSection(), ["a", "b"], **{"density": 0.5, **options})


def answers(*networks, examples=(1, 1, 1)):
    return [Answer(name, each, n) for name, each, n in zip("abc", networks, examples, strict=False)]


FIRST, SECOND = (4.0, 3.0, 0.2, 0.1), (0.1, 3.0, 4.0, 0.2)
"""Their masks keep 0, 1 and 1, 2: 2 of 4 positions differ, as many as by chance (2 · ½ · ½ · 4), a distance of 1."""


def test_the_mask_keeps_the_largest_weights_of_each_layer():
    state = {"w": torch.tensor([[1.0, -5.0, 3.0, 2.0]]), "v": torch.tensor([[0.0, 0.1, 0.2, 0.3]])}
    mask = {name: torch.ones(1, 4, dtype=torch.bool) for name in state}
    found = magnitude_mask(state, mask, 0.5)
    assert found["w"].tolist() == [[False, True, True, False]]
    assert found["v"].tolist() == [[False, False, True, True]]


def test_a_layer_that_keeps_less_already_keeps_what_it_has():
    mask = {"w": torch.tensor([[False, True, False, False]])}
    assert magnitude_mask({"w": torch.tensor([[9.0, 1.0, 9.0, 9.0]])}, mask, 0.5)["w"].tolist() == mask["w"].tolist()


def test_the_ticket_is_drawn_when_the_newest_of_three_masks_is_close_to_both_others():
    rule = rule_of(window=3, epsilon=0.5)
    moves = [FIRST, SECOND, SECOND, SECOND]
    records = [rule.merge(number, answers(sparse(*each), sparse(*each))) for number, each in enumerate(moves, 1)]
    # masks: A, B, B, B; only in round 4 is the newest as near as 0 to the two before it
    assert [record["mask_distance"] for record in records] == [None, 1.0, 1.0, 0.0]
    assert [record["drawn"] for record in records] == [None, None, None, 4]
    assert rule.network.mask["w"].tolist() == [[False, True, True, False]]
    assert rule.network.state["w"].tolist() == [[0.0, 3.0, 4.0, 0.0]]


def test_a_distance_of_epsilon_itself_is_not_close_enough():
    for epsilon, drawn in ((1.0, None), (1.01, 2)):
        rule = rule_of(window=2, epsilon=epsilon)
        for number, each in enumerate((FIRST, SECOND), 1):
            record = rule.merge(number, answers(sparse(*each)))
        assert record["drawn"] == drawn


def test_the_mask_is_the_means_and_not_a_clients():
    rule = rule_of(window=2, epsilon=0.5)
    mean = answers(sparse(8.0, 0.0, 3.0, 0.0), sparse(0.0, 0.0, 3.0, 2.0), examples=(1, 3))
    rule.merge(1, mean)
    record = rule.merge(2, mean)
    # mean (2, 0, 3, 1.5): 0 and 2; the clients' own masks keep 0 and 2 (distance 0), 2 and 3 (distance 1)
    assert rule.network.mask["w"].tolist() == [[True, False, True, False]]
    assert record["disagreement"] == 0.5


def test_patience_draws_a_mask_that_still_moves():
    rule = rule_of(window=3, epsilon=1e-6, patience=2)
    records = [rule.merge(number, answers(sparse(*each))) for number, each in enumerate((FIRST, SECOND), 1)]
    assert [record["drawn"] for record in records] == [None, 2]


@pytest.mark.parametrize(("rewind", "expected"), [(False, [[0.0, 3.0, 4.0, 0.0]]), (True, [[0.0, 8.0, 7.0, 0.0]])])
def test_a_drawn_ticket_goes_on_or_restarts_from_the_first_weights(rewind, expected):
    rule = rule_of(patience=1, rewind=rewind)
    rule.merge(1, answers(sparse(*SECOND)))
    assert rule.network.state["w"].tolist() == expected


def test_after_the_draw_the_mask_is_everybodys_and_stays():
    rule = rule_of(patience=1)
    rule.merge(1, answers(sparse(*SECOND)))
    mask = rule.network.mask
    sent = Sparse(mask, {"w": torch.tensor([[0.0, 1.0, 9.0, 0.0]])}, {})
    assert rule.accepts("a", sent) is None
    assert rule.accepts("a", sparse(1.0, 1.0, 1.0, 1.0)) == "another mask"
    record = rule.merge(2, answers(sent))
    assert record == {"drawn": 1}
    assert rule.network.mask is mask and rule.network.state["w"].tolist() == [[0.0, 1.0, 9.0, 0.0]]


def test_the_servers_momentum_begins_anew_with_the_ticket():
    rule = rule_of(FederateSection(server_momentum=0.5), patience=1)
    rule.merge(1, answers(sparse(*SECOND)))
    assert rule.memory().tensors.keys() == {"0/w"}
    still = Sparse(rule.network.mask, rule.network.state, {})
    rule.merge(2, answers(still))
    assert torch.equal(rule.network.state["w"], still.state["w"])


def test_the_window_is_remembered_up_to_ten_masks_and_more():
    rule = rule_of(window=12, epsilon=0.5)
    for number in range(1, 12):
        rule.merge(number, answers(sparse(*(FIRST if number < 4 else SECOND))))
    memory = rule.memory()
    other = rule_of(window=12, epsilon=0.5)
    other.recall_(rule.network, memory)
    assert [mask["w"].tolist() for mask in other.masks] == [mask["w"].tolist() for mask in rule.masks]
    for number in range(12, 16):
        assert rule.drawn is None
        assert rule.merge(number, answers(sparse(*SECOND))) == other.merge(number, answers(sparse(*SECOND)))
    assert rule.drawn == other.drawn == 15  # the first window of twelve from round 4 on


@pytest.mark.parametrize("options", [{"density": 0.0}, {"density": 1.0}, {"epsilon": 0.0}, {"window": 1}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(TicketlabError, match="rule early_bird"):
        rule_of(**options)
