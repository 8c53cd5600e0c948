"""Runs that fit in a time: what is chosen, what is expected of it, and that the choice is kept."""

import json
import math
import shlex
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from ticketlab.cli.app import app
from ticketlab.errors import RecipeError, TicketlabError
from ticketlab.recipe_file import read_recipe
from ticketlab.report import deviation, half_width
from ticketlab.runs.store import RunStore
from ticketlab.workflows import budget
from ticketlab.workflows.budget import Choice, choose, parse_budget, plan_budget, replicate_seconds, seed_deviation
from ticketlab.workflows.estimate import forecast
from ticketlab.workflows.inputs import load_data
from ticketlab.workflows.make_plan import make_plan
from ticketlab.workflows.pace import Pace, measure, measure_at_work, timed_levels
from ticketlab.workflows.run import Machine, Started, prune_run

CHEAP = Pace({0: 0.01}, example=0.0, level=1.0, start=4.0)
"""A hundred steps a second, a second more for each level, four for each process; evaluation is free."""
LONG = ("train.steps=600it", "train.evaluate_every=100it", "pruning.levels=5", "replicates=3")
"""1,237 examples, 32 at a time: 39 steps an epoch, so 59 steps at least."""


@pytest.fixture
def machine(tmp_path, places):
    return Machine(runs=tmp_path / "runs", places=places, device="cpu", workers=1)


@pytest.fixture
def plan(tiny, places):
    return lambda *overrides: make_plan(*load_data(tiny(*LONG, *overrides), places))


@pytest.fixture
def timed(monkeypatch):
    """How often a machine is timed, which costs no time here."""
    asked = []
    monkeypatch.setattr(budget, "measure_at_work", lambda *_: asked.append(1) or CHEAP)
    monkeypatch.setattr("time.process_time", lambda: 0.0)
    return asked


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400)])
def test_budgets_are_times(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["10", "0m", "-1m", "1d", "ten minutes"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(TicketlabError, match=r"write a time as 90s, 10m or 1\.5h"):
        parse_budget(text)


def test_the_time_of_a_replicate_is_the_sum_of_its_parts(plan):
    # by hand: 4 + (1 + 1) levels · 1 + 2 · 100 steps · 0.01; then with levels 1 to 5 rewound to step 300 of 600
    assert replicate_seconds(plan(), CHEAP, 1, 100) == pytest.approx(8.0)
    assert replicate_seconds(plan("pruning.rewind=300it"), CHEAP, 5, 200) == pytest.approx(4 + 6 + 2.0 + 5 * 1.0)
    # points at 100 and 150 read 200 validation digits each, and the test set of 360 digits is read twice
    read = replace(CHEAP, example=0.01)
    assert replicate_seconds(plan(), read, 1, 150) == pytest.approx(4 + 2 * (1 + 1.5 + (2 * 200 + 2 * 360) * 0.01))


def test_levels_come_first_then_replicates_then_steps(plan):
    # with 59 steps, a replicate of L levels takes 4 + 1.59 (L + 1) seconds on one worker
    assert choose(plan(), CHEAP, 2 * (4 + 1.59 * 2) + 0.1, 1) == Choice(2, 1, 59, pytest.approx(14.36))
    assert choose(plan(), CHEAP, 2 * (4 + 1.59 * 5) + 0.1, 1).levels == 4
    full = 4 + 1.59 * 6
    chosen = choose(plan(), CHEAP, 4 * full + 0.1, 1)
    assert (chosen.replicates, chosen.levels, chosen.steps) == (4, 5, 59)
    # five replicates of 300 steps: 5 · (4 + 6 · 4) = 140; of 400 steps 170
    chosen = choose(plan(), CHEAP, 150.0, 1)
    assert (chosen.replicates, chosen.levels, chosen.steps, chosen.seconds) == (5, 5, 300, pytest.approx(140))


def test_never_more_than_the_recipe_says_and_five_replicates_or_as_many_as_it_says(plan):
    assert choose(plan(), CHEAP, 1e6, 1) == Choice(5, 5, 600, pytest.approx(5 * 46.0))
    assert choose(plan("replicates=8"), CHEAP, 1e6, 1).replicates == 8


def test_workers_share_the_replicates(plan):
    # five replicates in three turns of two
    assert choose(plan(), CHEAP, 1e6, 2).seconds == pytest.approx(3 * 46.0)


def test_where_nothing_fits_the_error_says_how_much_is_missing(plan):
    # 14.36 s for two replicates of one level; 14.36 - 10 = 4.36, of which only 95 % would be planned
    with pytest.raises(RecipeError, match=r"take 14 s here; 10 s are left after timing: give 5 s more"):
        choose(plan(), CHEAP, 10.0, 1)


def test_what_is_chosen_is_said_and_shrinks_other_times_with_the_training(tiny, machine, timed):
    file = tiny(*LONG, "pruning.rewind=60it", "train.milestones=[300it, 10ep]", "train.warmup=0it")
    chosen = plan_budget(file, "150s", machine, lambda: False)
    # 5 · (4 + 6 + 0.01 · (s + 5 · 0.9 s)) ≤ 142.5 for s ≤ 336
    assert chosen.overrides == (
        "replicates=5",
        "pruning.levels=5",
        "train.steps=300it",
        "train.milestones=[150it, 195it]",
        "pruning.rewind=30it",
    )
    assert any("5 replicates: the interval's half-width is 1.2 standard deviations" in text for text in chosen.reasons)
    again = read_recipe(file.path, (*LONG, *chosen.overrides)).recipe
    assert (again.replicates, str(again.train.steps), str(again.pruning.rewind)) == (5, "300it", "30it")


def test_a_choice_is_kept_by_its_run_and_not_made_twice(tiny, machine, timed):
    file = tiny(*LONG[2:], "train.steps=60it", "pruning.levels=1")
    chosen = plan_budget(file, "100s", machine, lambda: False)
    assert chosen.kept_in is None and len(timed) == 1
    run = read_recipe(file.path, ("train.steps=60it", "pruning.levels=1", "replicates=2"))
    store = next(
        e.store for e in prune_run(run, machine, budgets=chosen.record()) if isinstance(e, Started)
    )  # left at its start, as if killed
    again = plan_budget(file, "100s", machine, lambda: False)
    assert (again.overrides, again.reasons, again.kept_in) == (chosen.overrides, chosen.reasons, store.path)
    assert len(timed) == 1
    list(prune_run(run, machine))  # the same run without a budget forgets none
    assert plan_budget(file, "100s", machine, lambda: False).kept_in == store.path
    assert plan_budget(file, "200s", machine, lambda: False).kept_in is None
    other = tiny(*LONG[2:], "train.steps=60it", "pruning.levels=1", "seed=9")
    assert plan_budget(other, "100s", machine, lambda: False).kept_in is None


def test_the_expected_interval_comes_from_earlier_replicates(tiny, machine, places):
    plan = make_plan(*load_data(tiny("replicates=2"), places))
    value, source = seed_deviation(plan, 30, machine.runs)
    assert value == budget.DEVIATION and "no run of this recipe" in source
    list(prune_run(tiny("replicates=2", "pruning.levels=1"), machine))
    for steps in (14, 61):  # runs of half to twice that length count
        assert seed_deviation(plan, steps, machine.runs)[0] == budget.DEVIATION
    value, source = seed_deviation(plan, 15, machine.runs)
    (path,) = machine.runs.iterdir()
    found = [[RunStore(path).read_level(number, level).test_accuracy for number in (1, 2)] for level in (0, 1)]
    # two values differ by √2 standard deviations; variances of two levels are averaged
    assert value == pytest.approx(math.sqrt(sum((a - b) ** 2 / 2 for a, b in found) / 2))
    assert source == f"between the 2 replicates of {path.name}"
    # t(4, 0.975) = 2.776
    assert half_width(0.001, 5) == pytest.approx(2.776 * 0.001 / math.sqrt(5), rel=1e-3)
    assert deviation(RunStore(path).levels(1)) is None


def test_a_search_has_no_budget(tiny, machine):
    file = tiny("method=early_bird", "pruning={}")
    with pytest.raises(RecipeError, match="nobody knows when an early-bird search ends"):
        plan_budget(file, "1m", machine, lambda: False)


def test_real_steps_are_timed_and_sum_up_to_a_forecast(tiny, machine, places):
    plan = make_plan(*load_data(tiny("pruning.levels=8", "train.steps=40it"), places))
    assert timed_levels(plan) == [0, 2, 4, 6, 8]
    pace = measure_at_work(plan, machine, machine.chosen_device(), 1, lambda: False)
    assert list(pace.steps) == [0, 2, 4, 6, 8] and all(0 < seconds < 1 for seconds in pace.steps.values())
    assert 0 < pace.example < 0.01 and pace.start > 0
    assert pace.step(1) == pytest.approx((pace.steps[0] + pace.steps[2]) / 2)
    expected = forecast(plan, pace)
    assert expected.seconds == pytest.approx(replicate_seconds(plan, pace, 8, 40))
    assert not machine.runs.exists()
    assert list(measure(plan, machine.chosen_device()).steps) == [0]


def test_the_command_says_what_it_chose_and_how_to_ask_for_it_again(tiny, machine, timed, places, monkeypatch):
    monkeypatch.setattr("ticketlab.data.files.Places.default", lambda *_: places)
    asked = ["prune", tiny().path, "-s", "train.steps=60it", "--budget", "100s", "--runs", machine.runs, "--workers", 1]

    def ticketlab(*more):
        return CliRunner().invoke(app, [str(word) for word in (*asked, *more)])

    planned = ticketlab("--dry-run")
    assert planned.exit_code == 0, planned.stderr
    chosen = ["--set", "replicates=5", "--set", "pruning.levels=2", "--set", "train.steps=60it"]
    line = ["ticketlab", "prune", str(tiny().path), "--set", "train.steps=60it", *chosen]
    assert shlex.split(planned.stdout.splitlines()[-1].partition(": ")[2]) == line
    assert not machine.runs.exists()
    found = json.loads(ticketlab("--dry-run", "--json").stdout)
    assert (found["budget"]["set"], shlex.split(found["command"])) == (chosen[1::2], line)
    ran = ticketlab("--json")
    assert ran.exit_code == 0 and json.loads(ran.stdout)["summary"][2]["test_accuracy"]["n"] == 5
    again = ticketlab("--json")
    assert "as chosen before" in again.stderr and json.loads(again.stdout)["run"] == json.loads(ran.stdout)["run"]
    assert len(timed) == 3
    swept = ticketlab("-s", "seed=0,1")
    assert swept.exit_code == 2 and "--budget is for one run" in swept.stderr


def test_the_time_of_a_level_counts_what_its_mask_looks_at(tiny, places):
    pace = Pace({0: 0.01}, 0.0, 0.0, 0.0)
    seconds = []
    for criterion in ("magnitude", "snip"):
        plan = make_plan(*load_data(tiny("method=at_init", f"pruning={{criterion: {criterion}}}"), places))
        seconds.append([pace.level_seconds(plan, level, 30) for level in (0, 1)])
    assert seconds[0] == pytest.approx([0.3, 0.3])
    # 1,000 examples in double precision, 32 of which are a step of 0.01 s
    assert seconds[1] == pytest.approx([0.3, 0.3 + 2 * 1000 / 32 * 0.01])
