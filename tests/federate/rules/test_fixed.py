"""One mask for all: orders, answers that are accepted, averages."""

import torch

from ticketlab.codec import Sparse
from ticketlab.federate.rules.fixed import Fixed
from ticketlab.federate.rules.rule import Answer, Memory
from ticketlab.recipe import FederateSection

MASK = {"w": torch.tensor([[True, False, True]])}


def sparse(*values, mask=MASK):
    return Sparse(mask, {"w": torch.tensor([values])}, {})


def test_all_get_the_same_network_and_its_mean_is_the_next():
    rule = Fixed(sparse(1.0, 0.0, 1.0), FederateSection(), ["a", "b"])
    assert rule.order(1, "a").network is rule.order(1, "b").network is rule.network
    told = rule.merge(1, [Answer("a", sparse(1.0, 0.0, 2.0), 1), Answer("b", sparse(5.0, 0.0, 2.0), 3)])
    assert told == {}
    assert rule.network.state["w"].tolist() == [[4.0, 0.0, 2.0]]
    assert rule.network.mask is MASK


def test_only_the_mask_that_was_sent_is_accepted():
    rule = Fixed(sparse(1.0, 0.0, 1.0), FederateSection(), ["a"])
    assert rule.accepts("a", sparse(3.0, 0.0, 3.0, mask={"w": MASK["w"].clone()})) is None
    for other in ({}, {"w": ~MASK["w"]}, {**MASK, "v": MASK["w"]}, {"w": MASK["w"].T}):
        assert rule.accepts("a", sparse(3.0, 0.0, 3.0, mask=other)) == "another mask"


def test_it_goes_on_from_the_network_of_a_round():
    rule = Fixed(sparse(1.0, 0.0, 1.0), FederateSection(), ["a"])
    rule.recall_(sparse(7.0, 0.0, 7.0), Memory({}, {"releases": 3}))
    assert rule.order(4, "a").network.state["w"].tolist() == [[7.0, 0.0, 7.0]]
