"""`ticketlab controls` and `ticketlab verify`, as users type them."""

import json

import pytest
from support import TINY
from typer.testing import CliRunner

from ticketlab.cli.app import app
from ticketlab.cli.findings import _measured, _spoken

CLAIMS = """
claims:
  - {claim: tickets are networks, source: here, that: ticket, at: {level: 1}, at_least: 0, seeds: 2}
  - {claim: and perfect, source: there, that: ticket - reinit, at: {level: 2}, at_least: 1, seeds: 2}
"""


@pytest.fixture
def ticketlab(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


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


def test_controls_that_cannot_be_are_one_line_and_exit_status_2(ticketlab, write_recipe):
    assert ticketlab("controls").exit_code == 2
    assert ticketlab("prune", write_recipe(), "--quiet").exit_code == 0
    ran = ticketlab("controls", "--level", 2, "--control", "reinnit")
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


def test_figures_are_told_in_their_own_units():
    points = {"metric": "test_accuracy", "that": "ticket - dense"}
    ratio = {"metric": "test_accuracy", "that": "ticket / dense"}
    steps = {"metric": "early_stop_step", "that": "1 - ticket / dense"}
    assert _spoken(0.0123, points) == "1.23 points"
    assert (_spoken(0.98765, ratio), _spoken(0.21, steps)) == ("0.9877", "0.21")
    found = {"mean": 0.005, "low": 0.003, "high": 0.007, "n": 5}
    assert _measured({**points, "measured": found}) == "0.50 points ± 0.20 points"
    assert _measured({**points, "measured": {**found, "high": None}}) == "0.50 points"
    assert _measured({**points, "measured": None}) == "nothing"
