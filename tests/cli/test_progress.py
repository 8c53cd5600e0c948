"""Bars count steps; lines are told in their place."""

import pytest
from rich.console import Console

from ticketlab.cli import progress
from ticketlab.cli.progress import Bars
from ticketlab.runs.store import Level
from ticketlab.workflows.progress import Progress


def at(step, level=0, start=0, replicate=1):
    return Progress(replicate, level, start, step, 30, 0.5)


def finished(level, steps):
    return Level(1, 0, level, 0.8, 8, 10, 0.9, 0.1, 0.9, 0.1, 10, 0.9, 0.9, 0.1, steps, 1.0, 1.0, {}, ())


def test_a_bar_counts_each_training_once():
    bars = Bars(quiet=True)
    bars.begin("replicate 1", 50)
    for seen in (at(10), at(20), finished(0, 30), finished(0, 30), at(20, level=1, start=10)):
        bars.move("replicate 1", seen)
    assert bars.done("replicate 1") == 30 + 10
    bars.move("replicate 1", at(5), point=1)
    bars.move("replicate 1", at(7, replicate=2), point=1)
    assert bars.done("replicate 1") == 30 + 10 + 5 + 7


def test_a_bar_that_is_gone_begins_again_at_nothing():
    bars = Bars(quiet=True)
    bars.begin("reinit", 30)
    bars.move("reinit", at(30))
    bars.end("reinit")
    bars.end("reinit")
    bars.begin("reinit", 30)
    assert bars.done("reinit") == 0


@pytest.mark.parametrize(("quiet", "lines"), [(False, ["seen", "told"]), (True, ["seen"])])
def test_who_is_quiet_sees_only_what_must_be_seen(capsys, quiet, lines):
    with Bars(quiet) as bars:
        bars.say("seen")
        bars.tell("told")
    assert capsys.readouterr().err.splitlines() == lines


def test_on_a_terminal_bars_show_how_far_each_name_is(monkeypatch, tmp_path):
    with (tmp_path / "screen").open("w") as file:
        screen = Console(file=file, force_terminal=True, width=100, color_system=None)
        monkeypatch.setattr(progress, "console", lambda stderr: screen)
        with Bars(quiet=False) as bars:
            bars.begin("replicate 1", 60)
            bars.move("replicate 1", finished(0, 30))
            bars.resize("replicate 1", 10)
            bars.describe("replicate 1", "replicate 1 · level 1/1")
            bars.tell("a [line] between")
    told = (tmp_path / "screen").read_text()
    assert "replicate 1 · level 1/1" in told and "30/40 steps" in told and "a [line] between" in told
