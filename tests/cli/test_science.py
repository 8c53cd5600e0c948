"""`ticketlab controls` and `ticketlab verify`, as users type them."""

import errno
import json

import pytest
from support import TINY

from ticketlab.cli import branches, findings
from ticketlab.runs.store import Level, RunStore
from ticketlab.workflows.progress import Drawn
from ticketlab.workflows.stability import Line
from ticketlab.workflows.trunk import Branch, Branched

CLAIMS = """
claims:
  - {claim: tickets are networks, source: here, that: ticket, at: {level: 1}, at_least: 0, seeds: 2}
  - {claim: and perfect, source: there, that: ticket - reinit, at: {level: 2}, at_least: 1, seeds: 2}
"""


def test_controls_of_the_newest_run_as_a_table_and_as_one_object(ticketlab, write_recipe):
    assert ticketlab("prune", write_recipe(), "-s", "replicates=2", "--workers", 1).exit_code == 0
    ran = ticketlab("controls", "--level", 2, "--control", "reinit, signed_constant", "--workers", 1)
    assert ran.exit_code == 0, ran.stderr
    assert "reinit, replicate 2: test accuracy" in ran.stderr and "controls/level_2/controls.png" in ran.stderr
    for name in ("ticket", "dense", "reinit", "signed constant"):
        assert any(line.strip().startswith(name) for line in ran.stdout.splitlines())
    record = json.loads(ticketlab("controls", "--level", 2, "--control", "reinit", "--json").stdout)
    assert {"run", "level", "density", "ticket", "controls"} <= set(record)
    assert {row["control"] for row in record["controls"]} == {"reinit", "signed_constant"}, "finished ones are told too"
    for row in record["controls"]:
        assert set(row["test_accuracy"]) == {"mean", "low", "high", "n"} == set(row["minus_ticket"])


def test_the_run_that_is_chosen_is_named(ticketlab, write_recipe):
    made = json.loads(ticketlab("prune", write_recipe(), "--quiet", "--json").stdout)["run"]
    name = made.rpartition("/")[2]
    for command in ("controls", "stability", "supermask"):
        given = {"controls": ("--control", "reinnit"), "stability": ("--level", 9), "supermask": ("--criterion", "no")}
        ran = ticketlab(command, *given[command])
        assert ran.exit_code == 2
        assert ran.stderr.splitlines()[0] == f"run: {name}"
        assert "run: " not in ticketlab(command, *given[command], "--quiet").stderr
        assert "run: " not in ticketlab(command, name, *given[command]).stderr


def test_verify_takes_the_newest_run_whose_recipe_has_claims(ticketlab, write_recipe):
    others = "others: {tuned: [pruning.after=finetune]}"
    claim = f"claims: [{{claim: c, source: s, that: tuned, at: {{level: 1}}, at_least: 0, seeds: 2, {others}}}]"
    recipe = write_recipe(TINY.replace("levels: 2", "levels: 1") + claim, "claiming.yaml")
    first = ticketlab("verify", recipe, "--workers", 1, "--json", "--quiet")
    assert first.exit_code == 0, first.stderr
    assert ticketlab("prune", write_recipe(), "--quiet").exit_code == 0
    ran = ticketlab("verify", "--measured")
    name = json.loads(first.stdout)["run"].rpartition("/")[2]
    assert ran.exit_code == 0, ran.stderr
    assert ran.stderr.splitlines()[0] == f"run: {name}", "neither the newest run, nor that of the other recipe"


def test_verify_without_any_claims_says_so(ticketlab, write_recipe):
    assert ticketlab("prune", write_recipe(), "--quiet").exit_code == 0
    ran = ticketlab("verify")
    assert (ran.exit_code, ran.stderr) == (
        2, "error: no run in runs has a recipe with claims; name one: ticketlab verify RECIPE\n",
    )  # fmt: skip


@pytest.mark.parametrize("command", ["controls", "stability", "verify"])
def test_lists_of_values_are_refused_where_one_run_is_meant(ticketlab, write_recipe, command):
    ran = ticketlab(command, write_recipe(), "--set", "seed=0,1")
    assert (ran.exit_code, ran.stderr) == (
        2, "error: --set seed: lists of values (sweeps) belong to ticketlab prune; give one value\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("command", "file"),
    [
        (("controls", "--level", "1", "--control", "reinit"), "controls.json"),
        (("supermask", "--criterion", "random"), "supermask.json"),
        (("stability", "--level", "0", "--points", "3"), "stability.json"),
        (("verify", "claiming.yaml"), "claims.json"),
    ],
)
def test_a_full_disk_under_the_record_is_one_line_and_exit_status_1(
    ticketlab, write_recipe, monkeypatch, command, file
):
    claim = "claims: [{claim: c, source: s, that: ticket, at: {level: 1}, at_least: 0, seeds: 2}]"
    recipe = write_recipe(TINY.replace("levels: 2", "levels: 1") + claim, "claiming.yaml")
    assert ticketlab("prune", recipe, "--quiet").exit_code == 0
    write = RunStore.write_result

    def full(store, name, result):
        if name.endswith(file):
            raise OSError(errno.ENOSPC, "No space left on device", f"runs/{file}")
        write(store, name, result)

    monkeypatch.setattr(RunStore, "write_result", full)
    ran = ticketlab(*command, "--quiet", "--workers", 1)
    said = f"error: runs/{file}: no space left on the disk; free some and run the same command, it resumes\n"
    assert (ran.exit_code, ran.stderr) == (1, said)


def test_what_a_worker_tells_twice_is_shown_once(capsys):
    control, other = (Branch(f"controls/level_{level}/reinit", 1, level) for level in (1, 2))
    line = Branch("stability/level_1/at_0", 1, 1, "level 1, line")
    levels = {
        level: Level(1, 0, level, 0.8, 8, 10, 0.9, 0.1, 0.9, 0.1, 10, 0.9, 0.9, 0.1, 10, 1.0, 1.0, {}, ())
        for level in (1, 2)
    }
    events = [
        Drawn(1, 0.5, 10, 30, True, True, 0.05),
        Branched(control, levels[1]), Branched(control, levels[1]), Branched(other, levels[2]),
        Branched(line, Line(1, 1, 0.01, 2.0)), Branched(line, Line(1, 1, 0.02, 2.0)),
        Branched(line, Line(1, 1, 0.01, 2.0)),
        {"the": "record"},
    ]  # fmt: skip
    assert branches.follow(events, quiet=False) == {"the": "record"}
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("replicate 1 drew the ticket of density 0.5 at step 10 of 30")
    assert [text.partition(":")[0] for text in told[1:]] == ["reinit, replicate 1"] * 2 + [
        "level 1, line, replicate 1"
    ] * 2


def test_controls_that_cannot_be_are_one_line_and_exit_status_2(ticketlab, write_recipe):
    assert ticketlab("controls").exit_code == 2
    assert ticketlab("prune", write_recipe(), "--quiet").exit_code == 0
    ran = ticketlab("controls", "tiny", "--level", 2, "--control", "reinnit")
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr == "error: unknown control 'reinnit'; did you mean 'reinit'?\n"


def test_verify_tells_each_claim_and_exits_with_3_where_one_fails(ticketlab, write_recipe, tmp_path):
    recipe = write_recipe(TINY + CLAIMS, "claiming.yaml")
    ran = ticketlab("verify", recipe, "--workers", 1)
    assert ran.exit_code == 3, ran.stderr
    assert ran.stderr.splitlines()[-1] == "error: 1 of 2 claims failed: and perfect"
    assert "tickets are networks" in ran.stdout and "holds" in ran.stdout and "fails" in ran.stdout
    again = ticketlab("verify", "--json", "--measured")
    assert again.exit_code == 3
    record = json.loads(again.stdout)
    assert [one["verdict"] for one in record["claims"]] == ["holds", "fails"]
    for one in record["claims"]:
        assert {"claim", "source", "expected", "measured", "verdict"} <= set(one)
    kept = ticketlab("verify", write_recipe(TINY + CLAIMS.replace("at_least: 1", "at_least: -1"), "claiming.yaml"))
    assert kept.exit_code == 0, kept.stderr


def test_tables_of_stand_in_data_say_so(capsys):
    one = {"mean": 0.5, "low": None, "high": None, "n": 1}
    record = {"run": "runs/tiny", "data": "mnist_5k", "stand_in_for": "mnist"}
    findings.supermasks({**record, "trained": one, "no_mask": [], "one_shot": [], "learned": []}, json=False)
    findings.stability({**record, "rows": [], "search": None, "folder": "runs/tiny/stability"}, json=False)
    told = " ".join(capsys.readouterr().out.split())
    assert told.count("runs/tiny on mnist_5k (STAND-IN for mnist): ") == 2
