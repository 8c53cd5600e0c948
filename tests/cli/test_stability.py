"""`ticketlab stability` as a user types it."""

import json

import pytest

RECIPE = """
model: {name: lenet_300_100}
data: {name: digits, validation: 200}
train: {steps: 20it, batch_size: 32, evaluate_every: 10it}
pruning: {levels: 1}
replicates: 2
"""
FEW = ("--points", "3", "--workers", "1")


@pytest.fixture
def run(ticketlab, write_recipe):
    ran = ticketlab("prune", write_recipe(RECIPE), "--workers", "1", "--quiet", "--json")
    assert ran.exit_code == 0, ran.stderr
    return json.loads(ran.stdout)["run"]


def test_every_level_has_a_row_a_figure_and_a_verdict(ticketlab, run):
    ran = ticketlab("stability", *FEW)
    assert ran.exit_code == 0, ran.stderr
    assert "error on the line between copies" in ran.stdout and "stable" in ran.stdout
    assert "level 1 at step 0, copy 2, replicate 2: test accuracy" in ran.stderr
    assert "level 1 at step 0, line, replicate 2: barrier" in ran.stderr
    assert f"figures: {run}/stability/line.png" in ran.stderr
    again = ticketlab("stability", *FEW, "--json", "--quiet")
    record = json.loads(again.stdout)
    assert again.stderr == ""
    assert [(row["level"], row["step"], row["barrier"]["validation"]["n"]) for row in record["rows"]] == [
        (0, 0, 2), (1, 0, 2),
    ]  # fmt: skip
    assert (record["steps"], record["copies"], record["points"], record["threshold"]) == (20, 2, 3, 0.02)


def test_a_search_ends_with_a_sentence(ticketlab, run, monkeypatch):
    monkeypatch.setattr("ticketlab.workflows.stability.STABLE_BELOW", -1)
    ran = ticketlab("stability", "--bisect", "--resolution", "10it", *FEW)
    assert ran.exit_code == 0, ran.stderr
    assert "not stable at any step that was tried, the last of them 10 of 20" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--level", "first"), "--level first: write a level, several with commas between, or all"),
        (("--at", "100"), "--at 100: write a time as '12ep' (epochs) or '500it' (optimizer steps)"),
        (("--at", "20it"), "20it is step 20: not before the end of training at step 20"),
        (("--bisect", "--level", "all"), "--bisect is of one level"),
        (("--bisect", "--resolution", "1it,2it"), "--resolution 1it,2it: one time, please"),
        (("--level", "2"), "has levels 0 to 1, not 2"),
    ],
)
def test_what_cannot_be_asked_is_one_line_and_exit_status_2(ticketlab, run, arguments, said):
    ran = ticketlab("stability", run, *arguments)
    assert ran.exit_code == 2
    assert said in ran.stderr and ran.stderr.count("\n") == 1
