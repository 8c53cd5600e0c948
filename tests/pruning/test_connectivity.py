"""Points on a line, barriers and the search for the smallest stable step, by hand."""

import pytest
import torch

from ticketlab.pruning.connectivity import Bracket, barrier, bracket, distance, interpolate, next_probe, positions

ONE = {"w": torch.tensor([1.0, 0.0, -4.0]), "b": torch.tensor([0.1]), "count": torch.tensor(7)}
OTHER = {"w": torch.tensor([3.0, 0.0, 4.0]), "b": torch.tensor([0.7]), "count": torch.tensor(9)}


def test_positions_are_evenly_spaced_from_0_to_1():
    assert positions(5) == [0.0, 0.25, 0.5, 0.75, 1.0]
    thirty = positions(30)
    assert (len(thirty), thirty[0], thirty[-1]) == (30, 0.0, 1.0)
    assert thirty[1] == pytest.approx(1 / 29)


def test_a_quarter_of_the_way_is_three_parts_of_one_and_one_of_the_other():
    found = interpolate(ONE, OTHER, 0.25)
    assert found["w"].tolist() == [1.5, 0.0, -2.0]
    assert found["b"].item() == pytest.approx(0.25)
    assert found["count"].item() == 7


def test_the_ends_are_the_networks_themselves_and_share_no_memory_with_them():
    for alpha, end in ((0.0, ONE), (1.0, OTHER)):
        found = interpolate(ONE, OTHER, alpha)
        assert all(torch.equal(found[name], end[name]) for name in ("w", "b"))
        found["w"].add_(1)
        found["count"].add_(1)
    assert (ONE["w"].tolist(), OTHER["w"].tolist(), ONE["count"].item()) == ([1, 0, -4], [3, 0, 4], 7)


@pytest.mark.parametrize(
    ("errors", "rise"),
    [
        ([0.1, 0.5, 0.3], 0.3),  # 0.5 − (0.1 + 0.3) / 2
        ([0.2, 0.2, 0.2], 0.0),
        ([0.2, 0.1, 0.4], 0.1),  # nothing rises between; the worse end stands above the mean of both
    ],
)
def test_the_barrier_is_the_largest_error_minus_the_mean_of_the_ends(errors, rise):
    assert barrier(errors) == pytest.approx(rise)


def test_distance_is_that_of_all_named_tensors_together():
    # (2, 0, 8) and 0.6: √(4 + 64 + 0.36)
    assert distance(ONE, OTHER, ["w", "b"]) == pytest.approx(68.36**0.5)
    assert distance(ONE, OTHER, ["b"]) == pytest.approx(0.6)


def search(is_stable, stop, resolution):
    found = {}
    while (step := next_probe(found, stop, resolution)) is not None:
        assert step not in found and 0 <= step < stop
        found[step] = is_stable(step)
    return found


@pytest.mark.parametrize("threshold", [1, 50, 51, 100, 333, 700, 901, 950])
def test_a_search_finds_a_known_threshold_to_within_the_resolution(threshold):
    found = search(lambda step: step >= threshold, 1000, 50)
    answer = bracket(found)
    assert answer == Bracket(stable=-(-threshold // 50) * 50, unstable=-(-threshold // 50) * 50 - 50)
    assert len(found) <= 10, "twenty steps come into question"


def test_the_order_of_probes_is_zero_then_doublings_then_halves():
    assert list(search(lambda step: step >= 620, 1000, 50)) == [0, 50, 100, 200, 400, 800, 600, 700, 650]


def test_what_is_stable_from_the_start_takes_one_probe():
    assert search(lambda _: True, 1000, 50) == {0: True}
    assert bracket({0: True}) == Bracket(0, None)


def test_what_is_never_stable_ends_with_the_last_step_that_can_be_tried():
    found = search(lambda _: False, 1000, 300)
    assert list(found) == [0, 300, 600, 900]
    assert bracket(found) == Bracket(None, 900)
