"""Tables and verdicts of the fusion study, from rows made up so that the answer is known."""

import math

import pytest

from ticketlab.fusion_findings import findings, lost_per_halving, method_name, pick, points, smallest_within


def row(method, share, loss, *, level=0, replicate=1, run="lenet", **more):
    """A row whose network loses `loss` points against a source of 90 %."""
    select, combine = method
    made = {
        "run": run, "replicate": replicate, "level": level, "select": select, "combine": combine, "share": share,
        "allocation": "uniform", "refit": False, "distil": 0, "epochs": 0, "params": round(100_000 * share),
        "accuracy": 0.9 - loss / 100, "source_accuracy": 0.9, "sparsity": 0.0, "model": run,
    }  # fmt: skip
    return {**made, **more}


DROP, FOLD, LS = ("l1", "drop"), ("l1", "fold"), ("greedy", "least_squares")


def test_points_are_means_over_replicates_the_smallest_first():
    found = points([row(LS, 0.5, 1), row(LS, 0.5, 3, replicate=2), row(LS, 0.25, 8)])
    assert [(p.params, p.loss.n) for p in found] == [(25_000, 1), (50_000, 2)]
    assert found[1].loss.mean == pytest.approx(2) and found[1].accuracy.mean == pytest.approx(88)


def test_the_smallest_network_within_a_point_is_by_the_mean():
    rows = [row(LS, 0.5, 0.5), row(LS, 0.25, 0.9), row(LS, 0.25, 1.3, replicate=2), row(FOLD, 0.5, 4)]
    assert smallest_within(rows) == {"greedy + least squares": {0: 50_000}, "l1 + fold": {0: None}}


def test_points_lost_per_halving_is_the_area_over_the_logarithm_of_size():
    # 12,500 → 25,000 → 50,000: losses 8, 4, 0 over two halvings
    found = points([row(LS, 0.125, 8), row(LS, 0.25, 4), row(LS, 0.5, 0)])
    assert lost_per_halving(found) == pytest.approx(4)
    assert math.isnan(lost_per_halving(found[:1]))


def test_names_tell_methods_apart():
    plain = row(LS, 0.5, 1)
    assert method_name(plain) == "greedy + least squares"
    assert method_name({**plain, "allocation": "curves", "refit": True, "distil": 9}) == (
        "greedy + least squares, curves, refit, distilled"
    )
    assert method_name(row(("none", "scratch"), 0.5, 1)) == "scratch"


def test_stages_that_are_not_asked_for_are_left_out():
    rows = [row(LS, 0.5, 1), row(LS, 0.5, 0, refit=True), row(LS, 0.5, 0, epochs=1)]
    assert len(pick(rows, LS)) == 1
    assert len(pick(rows, LS, epochs=1)) == 1


def verdict(name, rows):
    return next(finding.verdict for finding in findings(rows) if finding.hypothesis == name)


def h1(greedy=3, l1=5, random=8, drop=40):
    bare = [row((s, "drop"), 0.25, drop + k) for k, s in enumerate(("random", "l1", "greedy"))]
    fitted = [row((s, "least_squares"), 0.25, x) for s, x in (("greedy", greedy), ("l1", l1), ("random", random))]
    return bare + fitted


def test_h1_needs_both_the_gain_and_the_order():
    assert verdict("H1", h1()) == "supported"
    assert verdict("H1", h1(l1=2)) == "refuted"
    assert verdict("H1", h1(greedy=37, l1=38, random=39)) == "refuted"
    assert verdict("H1", []) == "not measured"


def h2(allocated):
    rows = []
    for share in (0.25, 0.15, 0.1, 0.05):
        rows += [row(DROP, share, 40), row(("l1", "least_squares"), share, 10)]
        rows += [row(DROP, share, allocated, allocation="curves")]
    return rows


def test_h2_compares_allocation_with_compensation():
    assert verdict("H2", h2(24)) == "supported"  # gains 16 of 30
    assert verdict("H2", h2(26)) == "refuted"


def test_h3_is_refuted_by_a_sparse_source_that_fuses_better():
    assert verdict("H3", [row(LS, 0.25, 2), row(LS, 0.25, 1.6, level=9)]) == "supported"
    assert verdict("H3", [row(LS, 0.25, 2), row(LS, 0.25, 1.4, level=9)]) == "refuted"


def h4(wide, narrow):
    methods = (DROP, ("in_out", "neuron_merging"), FOLD, LS)
    return [row(m, s, x * k, epochs=1) for s, x in ((0.25, wide), (0.05, narrow)) for k, m in enumerate(methods)]


def test_h4_looks_at_both_widths():
    assert verdict("H4", h4(0.5, 4)) == "supported"
    assert verdict("H4", h4(0.9, 4)) == "refuted"
    assert verdict("H4", h4(0.5, 2)) == "refuted"


def test_h5_looks_at_every_convolutional_run():
    first = h1()
    conv = [row(LS, 0.5, 1, run="a"), row(("greedy", "least_squares_channel"), 0.5, 7, run="a")]
    other = [row(LS, 0.5, 1, run="b"), row(("greedy", "least_squares_channel"), 0.5, 3, run="b")]
    assert verdict("H5", first + conv) == "supported"
    assert verdict("H5", first + conv + other) == "refuted"
    assert verdict("H5", first) == "not measured"


def test_h6_takes_the_worst_case():
    assert verdict("H6", [row(FOLD, 0.75, 0.1), row(FOLD, 0.5, 0.9)]) == "supported"
    assert verdict("H6", [row(FOLD, 0.75, 0.1), row(FOLD, 0.5, 0.9), row(FOLD, 0.75, 0, level=3), row(FOLD, 0.5, 2, level=3)]) == "refuted"  # fmt: skip  # noqa: E501
