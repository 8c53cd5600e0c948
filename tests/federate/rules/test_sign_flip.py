"""Votes of signs by hand."""

import pytest
import torch

from ticketlab.codec import Sparse
from ticketlab.errors import TicketlabError
from ticketlab.federate.rules.rule import Answer
from ticketlab.federate.rules.sign_flip import SignFlip, outvoted
from ticketlab.recipe import FederateSection

ALL = torch.ones(1, 6, dtype=torch.bool)
BEFORE = torch.tensor([[1.0, -2.0, 3.0, -4.0, 5.0, -6.0]])


def rule_of(start=BEFORE, mask=ALL, settings=None, **options):
    network = Sparse({"w": mask}, {"w": start * mask}, {})
    return SignFlip(network, settings or FederateSection(), ["a", "b"], **options)


def removed(after, examples, mean, kept=ALL, **options):
    """Places of the weights that go."""
    rule = rule_of(**{"vote": 0.5, "smallest": 1.0, "until": 0.01, **options})
    after = [torch.tensor([each]) for each in after]
    found = outvoted(BEFORE, after, examples, torch.tensor([mean]), kept, rule)
    assert not bool((found & ~kept).any())
    return (kept & ~found).nonzero()[:, 1].tolist()


ONE = [-1.0, 2.0, 3.0, -4.0, 5.0, -6.0]
"""Places 0 and 1 have flipped."""
OTHER = [-1.0, -2.0, -3.0, -4.0, 5.0, -6.0]
"""Places 0 and 2 have flipped."""
MEAN = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]


def test_what_flipped_on_more_than_half_of_the_examples_goes():
    assert removed([ONE, OTHER], [1, 1], MEAN) == [0]  # 1 and 2 have half of the votes, which is not more
    assert removed([ONE, OTHER], [3, 1], MEAN) == [0, 1]
    assert removed([ONE, OTHER], [1, 3], MEAN) == [0, 2]
    assert removed([ONE, OTHER], [1, 1], MEAN, vote=0.4) == [0, 1, 2]
    assert removed([ONE, OTHER], [3, 1], MEAN, vote=0.8) == [0]


def test_only_the_smallest_share_by_the_means_size_may_go():
    # a third of six weights: places 4 and 5 here, of which neither flipped; then 5 and 0
    assert removed([ONE], [1], [0.6, 0.5, 0.4, 0.3, -0.1, 0.2], smallest=0.34) == []
    assert removed([ONE], [1], [-0.2, 0.5, 0.4, 0.3, 0.6, 0.1], smallest=0.34) == [0]


def test_a_zero_counts_as_positive():
    positive_to_zero, negative_to_zero = [0.0, -2.0, 3.0, -4.0, 5.0, -6.0], [1.0, 0.0, 3.0, -4.0, 5.0, -6.0]
    assert removed([positive_to_zero], [1], MEAN) == []
    assert removed([negative_to_zero], [1], MEAN) == [1]
    assert removed([[-0.0, -2.0, 3.0, -4.0, 5.0, -6.0]], [1], MEAN) == []


def test_no_more_go_than_leave_the_floor_and_the_smallest_go_first():
    turned = [[-value for value in BEFORE[0].tolist()]]
    assert removed(turned, [1], [0.6, 0.5, 0.4, 0.3, 0.2, 0.1], until=0.5) == [3, 4, 5]
    assert removed(turned, [1], MEAN, until=0.99) == []
    assert removed(turned, [1], MEAN, until=0.01) == [0, 1, 2, 3, 4]  # one weight stays, whatever the floor


def test_weights_that_are_gone_neither_vote_nor_count():
    kept = torch.tensor([[True, False, True, True, False, True]])
    turned = [[-value for value in BEFORE[0].tolist()]]
    # floor: half of all six are three, and four remain
    assert removed(turned, [1], [0.4, 0.0, 0.3, 0.2, 0.0, 0.1], kept=kept, until=0.5) == [5]


def test_a_round_removes_what_was_outvoted_and_the_mask_is_everybodys():
    rule = rule_of(smallest=1.0, until=0.01)
    rule.merge(1, [Answer("a", Sparse({"w": ALL}, {"w": torch.tensor([ONE])}, {}), 1)])
    assert rule.network.mask["w"].tolist() == [[False, False, True, True, True, True]]
    assert rule.network.state["w"].tolist() == [[0.0, 0.0, 3.0, -4.0, 5.0, -6.0]]
    assert rule.accepts("a", Sparse({"w": ALL}, {"w": torch.tensor([ONE])}, {})) == "another mask"
    same = Sparse(rule.network.mask, rule.network.state, {})
    assert rule.merge(2, [Answer("a", same, 1)]) == {"density": 4 / 6}


def test_momentum_goes_on_while_the_mask_stays_and_begins_anew_when_it_shrinks():
    settings = FederateSection(server_momentum=0.5)
    grown = {"w": BEFORE * 2}
    rule = rule_of(settings=settings)
    rule.merge(1, [Answer("a", Sparse({"w": ALL}, grown, {}), 1)])
    assert rule.memory().tensors["momentum"].tolist() == (-BEFORE).flatten().tolist()
    rule = rule_of(settings=settings, smallest=1.0)
    rule.merge(1, [Answer("a", Sparse({"w": ALL}, {"w": torch.tensor([ONE])}, {}), 1)])
    assert rule.memory().tensors == {}


@pytest.mark.parametrize(
    "options", [{"vote": 1.0}, {"vote": -0.1}, {"smallest": 0.0}, {"smallest": 1.1}, {"until": 0.0}, {"until": 1.0}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(TicketlabError, match="rule sign_flip"):
        rule_of(**options)
