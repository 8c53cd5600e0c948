"""Claims by hand: expressions per seed, intervals, verdicts."""

import math

import pytest

from ticketlab.claims import Bounds, expected_in_words, measured, measured_in_words, seeds_to_decide, terms, verdict
from ticketlab.report import Estimate, estimate


def test_terms_are_the_names_of_an_expression():
    assert terms("ticket - reinit") == ["ticket", "reinit"]
    assert terms("1 - -(ticket + 2.5) / dense * ticket") == ["ticket", "dense"]
    assert terms("supermask.magnitude.init - ticket") == ["supermask.magnitude.init", "ticket"]


@pytest.mark.parametrize(
    "text", ["", "ticket -", "abs(ticket)", "ticket ** 2", "ticket > 1", "'a' + ticket", "True - ticket", "f().x", "3"]
)
def test_anything_else_is_no_expression(text):
    with pytest.raises(ValueError, match=r"is not an expression of names|names nothing that is measured"):
        terms(text)


def test_an_expression_is_taken_seed_by_seed_over_the_seeds_that_all_have():
    values = {"a": {0: 4.0, 1: 6.0, 2: 100.0}, "b": {0: 2.0, 1: 4.0, 7: 1.0}}
    assert measured("a - b", values) == Estimate(2.0, 2.0, 2.0, 2)
    # (1 − 2/4) and (1 − 4/6), by hand; the ratio of the means would be 1 − 3/5
    assert measured("1 - b / a", values).mean == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert measured("-a + b", values).mean == -2
    assert measured("a - b", {"a": {0: 1.0}, "b": {1: 1.0}}) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a / b", "with seed 4 something is divided by zero"),
        ("a * 1e308 * 10", "with seed 3 it is too large for a number"),
        ("a * 1" + "0" * 400, "with seed 3 it is too large"),
    ],
)
def test_what_is_no_number_is_told_with_its_seed(text, message):
    with pytest.raises(ArithmeticError, match=message):
        measured(text, {"a": {3: 1.0, 4: 1.0}, "b": {3: 1.0, 4: 0.0}})


def test_an_endless_expression_is_none():
    with pytest.raises(ValueError, match="is not an expression"):
        terms(" + ".join(["a"] * 100_000))


@pytest.mark.parametrize(
    ("low", "high", "n", "seeds", "expected"),
    [
        (0.1, 0.5, 5, 5, "holds"),
        (0.0, 0.5, 5, 5, "holds"),  # the bound itself is within
        (-0.1, 0.5, 5, 5, "not enough seeds"),
        (-0.5, -0.1, 5, 5, "fails"),
        (0.1, 0.5, 4, 5, "not enough seeds"),
        (-0.5, -0.1, 4, 5, "not enough seeds"),
    ],
)
def test_a_verdict_needs_the_whole_interval_and_the_seeds(low, high, n, seeds, expected):
    assert verdict(Estimate((low + high) / 2, low, high, n), Bounds(low=0.0), seeds) == expected
    assert verdict(Estimate(-(low + high) / 2, -high, -low, n), Bounds(high=0.0), seeds) == expected


def test_two_bounds_are_both_kept():
    assert verdict(Estimate(0.0, -0.1, 0.1, 5), Bounds(-0.2, 0.2), 5) == "holds"
    assert verdict(Estimate(0.15, 0.05, 0.25, 5), Bounds(-0.2, 0.2), 5) == "not enough seeds"
    assert verdict(Estimate(0.4, 0.3, 0.5, 5), Bounds(-0.2, 0.2), 5) == "fails"
    assert verdict(None, Bounds(0.0), 2) == verdict(Estimate(1.0, None, None, 1), Bounds(0.0), 1) == "not enough seeds"


def test_seeds_to_decide_are_those_whose_interval_would_be_short_enough():
    found = estimate([0.1, 0.3, -0.1, 0.3, 0.4])
    deviation = math.sqrt(((0.1 - 0.2) ** 2 + 0.1**2 + 0.3**2 + 0.1**2 + 0.2**2) / 4)
    enough = seeds_to_decide(found, Bounds(low=0.0), 5)
    # t tables, two-sided 95 %: 2.571 for 5 degrees of freedom, 2.447 for 6
    assert enough == 7
    assert seeds_to_decide(found, Bounds(low=0.0), 9) == 9
    assert 2.571 * deviation / math.sqrt(6) > 0.2 >= 2.447 * deviation / math.sqrt(7)
    assert seeds_to_decide(Estimate(0.0, -1.0, 1.0, 3), Bounds(low=0.0), 2) is None
    assert seeds_to_decide(Estimate(1.0, None, None, 1), Bounds(low=0.0), 2) is None


def test_figures_are_told_in_their_own_units():
    points = {"metric": "test_accuracy", "that": "ticket - dense"}
    ratio = {"metric": "test_accuracy", "that": "ticket / dense"}
    steps = {"metric": "early_stop_step", "that": "1 - ticket / dense"}
    found = {"mean": 0.005, "low": 0.003, "high": 0.007, "n": 5}
    assert measured_in_words({**points, "measured": found}) == "0.50 points ± 0.20 points"
    assert measured_in_words({**points, "measured": {**found, "mean": 0.0123, "high": None}}) == "1.23 points"
    assert measured_in_words({**ratio, "measured": {**found, "mean": 0.98765, "high": None}}) == "0.9877"
    assert measured_in_words({**steps, "measured": {**found, "mean": 0.21, "high": None}}) == "0.21"
    assert measured_in_words({**points, "measured": None, "problem": None}) == "nothing"
    assert measured_in_words({**points, "measured": None, "problem": "with seed 0 …"}) == "with seed 0 …"
    assert (
        expected_in_words({**points, "expected": {"expected": 0.003, "tolerance": 0.001}})
        == "0.30 points ± 0.10 points"
    )
    assert (
        expected_in_words({**points, "expected": {"at_least": -0.002, "at_most": 0.01}})
        == "≥ -0.20 points, ≤ 1.00 points"
    )
