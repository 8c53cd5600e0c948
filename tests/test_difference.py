import json
from dataclasses import asdict

import pytest
from support import level

from ticketlab.difference import Change, difference
from ticketlab.errors import RunError
from ticketlab.report import estimate


def levels(*accuracies, first=1, **changes):
    """A dense and a half level of each replicate, of which the half one has these accuracies."""
    return [
        one
        for replicate, accuracy in enumerate(accuracies, first)
        for one in (level(replicate, 0, 0.9, **changes), level(replicate, 1, accuracy, **changes))
    ]


def test_fields_that_are_not_the_same_are_named_with_both_values(make_run):
    machine = {"host": "a", "versions": {"torch": "2.15.0", "numpy": "2.4.6"}}
    one = make_run("one", levels(0.9), **machine)
    other = make_run(
        "other", levels(0.9), "train.lr=0.5", "pruning.rate=0.4",
        data="mnist_5k", stand_in_for="mnist", **{**machine, "versions": {"torch": "2.16.0", "numpy": "2.4.6"}},
    )  # fmt: skip
    found = difference(one, other)
    assert {change.field for change in found.settings} == {"train.lr", "pruning.rate"}
    assert Change("train.lr", 0.0012, 0.5) in found.settings
    assert found.data == [Change("data", "mnist", "mnist_5k"), Change("stand_in_for", None, "mnist")]
    assert found.versions == [Change("torch", "2.15.0", "2.16.0")]
    assert found.machine == []
    json.dumps(asdict(found))


def test_an_edited_file_of_ones_own_is_named(make_run):
    one, other = (make_run(name, levels(0.9), files={"mine.py": name, "same.py": "0"}) for name in ("one", "other"))
    assert difference(one, other).settings == [Change("files.mine.py", "one", "other")]


def test_levels_of_the_same_density_are_paired_by_seed(make_run):
    one = make_run("one", levels(0.91, 0.92, 0.93))
    other = make_run("other", levels(0.94, 0.96, 0.5, first=2))  # the seeds of replicates 2, 3 and 4
    found = difference(one, other)
    dense, half = found.pairs
    assert (dense.density, dense.levels, dense.difference.mean) == (1.0, (0, 0), 0)
    assert half.density == 0.5
    assert half.difference == estimate([0.94 - 0.92, 0.96 - 0.93])
    assert [accuracy.n for accuracy in half.test_accuracy] == [3, 3]
    assert found.seeds == [8, 9] and found.equal == []


def test_levels_on_the_way_of_a_network_are_not_compared_with_whole_ones(make_run):
    whole = make_run("whole", levels(0.91))
    on_the_way = make_run("gradual", levels(0.94), "method=gradual", "pruning.levels=1")
    assert [pair.levels for pair in difference(whole, on_the_way).pairs] == [(1, 1)]
    searched = make_run("search", [level(1, 0, 0.7)], "method=early_bird", "pruning={scope: global}")
    assert difference(whole, searched).pairs == []


def test_levels_of_no_common_density_or_seed_are_not_compared(make_run):
    one = make_run("one", [level(1, 0, 0.9), level(1, 1, 0.8, density=0.3)])
    other = make_run("other", [level(2, 0, 0.95), level(2, 1, 0.8, density=0.31)])
    found = difference(one, other)
    assert [(pair.density, pair.difference) for pair in found.pairs] == [(1.0, None)]
    assert found.seeds == []


def test_a_repeated_run_has_the_same_figures_whatever_the_clock_says(make_run):
    one = make_run("one", levels(0.91, 0.92))
    again = make_run("again", levels(0.91, 0.92, seconds=9.0, step_ms=7.0))
    assert difference(one, again).equal == [7, 8]
    later = make_run("later", [*levels(0.91), *levels(0.92, first=2, final_test_accuracy=0.91)])
    assert difference(one, later).equal == [7]  # the same until the early-stop step only
    changed = make_run("changed", [*levels(0.91), *levels(0.92, first=2, early_stop_step=6)])
    assert difference(one, changed).equal == [7]


def test_two_levels_of_one_density_are_paired_by_their_numbers(make_run):
    twice = [level(1, 0, 0.9), level(1, 1, 0.8), level(1, 2, 0.7, density=0.5)]
    found = difference(make_run("one", twice), make_run("other", twice))
    assert [pair.levels for pair in found.pairs] == [(0, 0), (1, 1), (2, 2)]


def test_a_run_is_not_compared_with_itself_nor_with_another_kind(make_run):
    one = make_run("one", levels(0.9))
    with pytest.raises(RunError, match="is the same run twice"):
        difference(one, one)
    with pytest.raises(RunError, match=r"one was made by ticketlab prune, .*fused by ticketlab fuse"):
        difference(one, make_run("fused", [], kind="fuse"))
