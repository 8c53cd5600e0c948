"""`ticketlab report --compare` on real little runs."""

import csv
import json

import pytest


@pytest.fixture
def runs(ticketlab, write_recipe):
    """A gradual and a flipout run of two seeds, one iterative run."""
    recipe = write_recipe()
    common = ("-s", "replicates=2", "--workers", "1", "--quiet", "-s", "pruning.output_rate=null")
    both = (*common, "-s", "pruning.scope=global", "-s", "pruning.rate=0.5")
    for more in (
        ("-s", "method=gradual", *both),
        ("-s", "method=sign_flip", "-s", "pruning.criterion=flipout", "-s", "train.gradient_noise=1", *both),
        common,
    ):
        ran = ticketlab("prune", recipe, *more)
        assert ran.exit_code == 0, ran.stderr


def test_runs_of_several_methods_stand_side_by_side(ticketlab, runs, tmp_path):
    ran = ticketlab("report", "--compare", "tiny")
    assert ran.exit_code == 0, ran.stderr
    assert "digits, lenet_300_100: test accuracy" in ran.stdout
    assert "sign_flip flipout" in ran.stdout and "gradual magnitude" in ran.stdout
    assert "× the operations" in ran.stdout and "× the seconds" in ran.stdout
    for name in ("comparison.csv", "comparison.png", "comparison.svg"):
        assert (tmp_path / "runs" / "comparison" / name).stat().st_size > 500
        assert name in ran.stderr
    rows = list(csv.DictReader((tmp_path / "runs/comparison/comparison.csv").read_text().splitlines()))
    # two networks pruned in training, three levels of iterative pruning
    assert len(rows) == 5
    assert {row["test_accuracy_n"] for row in rows} == {"2"}


def test_json_is_one_object_with_every_point(ticketlab, runs):
    ran = ticketlab("report", "--compare", "tiny", "--json", "--against", "sign_flip flipout")
    assert ran.exit_code == 0, ran.stderr
    (found,) = json.loads(ran.stdout)["comparisons"]
    assert found["baseline"].startswith("sign_flip flipout gradient_noise=1.0")
    by_method = {(point["method"], round(point["density"], 4)): point for point in found["points"]}
    pruned = next(point for (name, _), point in by_method.items() if name.startswith("gradual"))
    assert pruned["density"] == pytest.approx(0.25, abs=1e-3)
    assert pruned["minus_baseline"]["n"] == 2
    assert pruned["flops"] > 0 and 0 < pruned["remaining_flops"] < pruned["flops"]
    assert pruned["effective_density"] <= pruned["density"]


def test_the_comparison_is_no_run(ticketlab, runs):
    ticketlab("report", "--compare", "tiny")
    assert "comparison" not in ticketlab("runs", "ls").stdout


@pytest.mark.parametrize(("arguments", "message"), [
    (("report", "tiny"), "say --compare"),
    (("report", "--compare"), "two runs or more"),
    (("report", "--compare", "tinny"), "no run 'tinny' in runs; known: tiny-"),
    (("report", "--compare", "tiny", "--against", "nothing"), "no method or run 'nothing'"),
])  # fmt: skip
def test_what_cannot_be_compared_is_one_message_and_status_2(ticketlab, runs, arguments, message):
    ran = ticketlab(*arguments)
    assert ran.exit_code == 2
    assert message in ran.stderr and ran.stdout == ""
