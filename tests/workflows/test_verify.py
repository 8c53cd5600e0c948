"""Claims of a recipe are measured on runs, controls and other recipes, and judged."""

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ticketlab.errors import RecipeError, RunError
from ticketlab.recipe_file import read_recipe
from ticketlab.report import estimate
from ticketlab.runs.find import find_run, list_runs
from ticketlab.runs.store import RunStore
from ticketlab.workflows.run import Machine, prune_run
from ticketlab.workflows.trunk import run_file
from ticketlab.workflows.verify import expectation, failed, find_claims, verify_run

RECIPE = """
model: {name: lenet_300_100}
data: {name: digits, validation: 200}
train: {steps: 30it, batch_size: 32, evaluate_every: 10it}
pruning: {levels: 2, rate: 0.2, output_rate: 0.1}
claims:
  - {claim: one, source: here, that: ticket - reinit, at: {density: 0.643}, at_least: -1, seeds: 2}
  - {claim: two, source: here, that: 2 * dense, metric: final_test_accuracy, at: {level: 1}, at_most: 0, seeds: 2}
  - claim: three
    source: here
    that: tuned - ticket
    at: {level: 1}
    expected: 0
    tolerance: 1
    seeds: 3
    others: {tuned: [pruning.after=finetune]}
"""


@pytest.fixture
def machine(tmp_path, places):
    return Machine(tmp_path / "runs", places, "cpu", workers=1)


@pytest.fixture
def claiming(write_recipe):
    return lambda text=RECIPE, *overrides: read_recipe(write_recipe(text, "claiming.yaml"), overrides)


def judged(*arguments, **named):
    *_, record = verify_run(*arguments, **named)
    return record


def test_what_is_missing_is_run_and_each_claim_is_judged(claiming, machine):
    record = judged(claiming(), machine)
    store = RunStore(machine.runs / record["run"].rpartition("/")[2])
    first, second, third = record["claims"]
    assert store.replicates() == [1, 2, 3], "as many as the claim that asks for most"

    reinit = store.part("controls/level_2/reinit")
    differences = [
        store.read_level(number, 2).test_accuracy - reinit.read_level(number, 2).test_accuracy for number in (1, 2, 3)
    ]
    assert first["measured"]["mean"] == pytest.approx(sum(differences) / 3, abs=1e-12)
    assert first["measured"]["low"] == estimate(differences).low
    assert (first["level"], first["verdict"], first["measured"]["n"]) == (2, "holds", 3)

    dense = [store.read_level(number, 0).final_test_accuracy for number in (1, 2, 3)]
    assert second["measured"]["mean"] == pytest.approx(2 * sum(dense) / 3)
    assert second["verdict"] == "fails" and failed(record) == ["two"]

    (other,) = [path for path in machine.runs.iterdir() if path != store.path]
    tuned = [RunStore(other).read_level(number, 1).test_accuracy for number in (1, 2, 3)]
    tickets = [store.read_level(number, 1).test_accuracy for number in (1, 2, 3)]
    assert third["measured"]["mean"] == pytest.approx(sum(tuned) / 3 - sum(tickets) / 3, abs=1e-12)
    assert store.read_result("claims.json") == record
    assert EventAccumulator(str(store.path / "claims")).Reload().Tags()["tensors"] == ["claims/text_summary"]

    # a run knows its claims; what is measured is not trained again
    before = {path: path.stat().st_mtime_ns for path in machine.runs.rglob("metrics.json")}
    assert judged(run_file(store), machine)["claims"] == record["claims"]
    assert judged(claiming(), machine, may_train=False)["claims"] == record["claims"]
    assert {path: path.stat().st_mtime_ns for path in machine.runs.rglob("metrics.json")} == before


def test_claims_make_no_other_run(claiming):
    from ticketlab.recipe import recipe_hash

    with_claims, without = claiming().recipe, claiming(RECIPE.partition("claims:")[0]).recipe
    assert recipe_hash(with_claims) == recipe_hash(without)


def test_nothing_is_trained_where_only_what_is_there_should_be_judged(claiming, machine):
    with pytest.raises(RunError, match="no such run yet; leave --measured out"):
        judged(claiming(), machine, may_train=False)
    assert not machine.runs.exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ticket - reinit", "ticket - renit", r"claiming\.yaml:7:\d+: claims\.0\.that: unknown name 'renit'; did you"),
        ("ticket - reinit", "max(ticket)", r"claims\.0\.that: 'max\(ticket\)' is not an expression"),
        (
            "density: 0.643",
            "density: 0.7",
            r"claims\.0\.at: no such level; there are 0 \(1\), 1 \(0\.802\), 2 \(0\.6434",
        ),
        ("{level: 1}", "{level: 3}", r"claims\.1\.at: no such level"),
        ("pruning.after=finetune", "pruning.after=fine", r"claims\.2\.others\.tuned: .*'fine' is not one of"),
    ],
)
def test_claims_that_cannot_be_measured_are_told_with_their_place(claiming, machine, old, new, message):
    with pytest.raises(RecipeError, match=message):
        judged(claiming(RECIPE.replace(old, new)), machine)
    assert not machine.runs.exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("at_least: -1, ", "", r"claims\.0: say at_least, at_most, or expected with tolerance"),
        ("at_least: -1", "at_least: -1, expected: 1, tolerance: 1", "say at_least, at_most, or expected"),
        ("at_least: -1", "expected: 1", "expected and tolerance belong together"),
        ("at_least: -1", "at_least: 1, at_most: 0", "at_least is larger than at_most"),
        ("{density: 0.643}", "{density: 0.643, level: 2}", "say density or level, one of them"),
        ("at_least: -1", "at_lest: -1", r"claims\.0\.at_lest: unknown key; did you mean 'at_least'"),
        ("seeds: 2}", "seeds: 1}", r"claims\.0\.seeds: .*greater than or equal to 2"),
    ],
)
def test_claims_that_say_nothing_are_refused(claiming, old, new, message):
    with pytest.raises(RecipeError, match=message):
        claiming(RECIPE.replace(old, new, 1))


def test_a_recipe_without_claims_has_nothing_to_verify(tiny, machine):
    with pytest.raises(RecipeError, match="claims nothing"):
        judged(tiny(), machine)


def test_what_a_claim_expects_is_told_by_its_fields(claiming):
    assert [expectation(section) for section in claiming().recipe.claims] == [
        {"at_least": -1.0}, {"at_most": 0.0}, {"expected": 0.0, "tolerance": 1.0}
    ]  # fmt: skip


def test_the_level_of_a_density_is_the_nearest_within_two_per_cent(claiming, places):
    from ticketlab.workflows.inputs import load_data
    from ticketlab.workflows.make_plan import make_plan

    file = claiming()
    assert [claim.level for claim in find_claims(file, lambda each: make_plan(*load_data(each, places)))] == [2, 1, 1]


def test_untrained_networks_can_be_claimed(claiming, machine):
    text = (
        RECIPE.partition("claims:")[0]
        + """claims:
  - claim: signs under a mask
    source: here
    that: supermask.large_final_same_sign.signed_constant - supermask.no_mask.init
    at: {level: 0}
    at_least: -1
    seeds: 2
"""
    )
    (found,) = judged(claiming(text), machine)["claims"]
    (path,) = machine.runs.iterdir()
    masks = [path / f"supermask/one_shot/replicate_{number}" for number in (1, 2)]
    read = [json.loads((folder / "by_large_final_same_sign.json").read_text()) for folder in masks]
    bare = [json.loads((folder / "no_mask.json").read_text()) for folder in masks]
    differences = [
        one["signed_constant"]["test_accuracy"] - other["init"]["test_accuracy"]
        for one, other in zip(read, bare, strict=True)
    ]
    assert found["measured"]["mean"] == pytest.approx(sum(differences) / 2)
    assert found["measured"]["n"] == 2 and found["verdict"] == "holds"


@pytest.mark.parametrize(
    ("that", "metric", "message"),
    [
        ("supermask.magnitud.init", "test_accuracy", r"unknown name '.*'; did you mean 'supermask.magnitude.init'"),
        ("supermask.magnitude.init", "early_stop_step", "'supermask.magnitude.init' has no early_stop_step"),
    ],
)
def test_supermasks_that_are_not_measured_are_told(claiming, machine, that, metric, message):
    text = RECIPE.replace("that: ticket - reinit", f"that: {that}, metric: {metric}")
    with pytest.raises(RecipeError, match=message):
        judged(claiming(text), machine)


def test_barriers_can_be_claimed_of_tickets_and_of_other_recipes(claiming, machine):
    text = (
        RECIPE.partition("claims:")[0]
        + """claims:
  - {claim: stable, source: here, that: ticket, metric: barrier, at: {level: 1}, at_most: 1, seeds: 2}
  - claim: later is no worse
    source: here
    that: later - dense
    metric: barrier
    at: {level: 1}
    at_most: 1
    seeds: 2
    others: {later: [pruning.rewind=10it]}
"""
    )
    first, second = judged(claiming(text), machine)["claims"]
    (run,) = machine.runs.glob("claiming-*/claims.json")
    own = json.loads((run.parent / "stability/level_1/stability.json").read_text())["rows"][0]
    assert first["measured"]["mean"] == pytest.approx(own["barrier"]["validation"]["mean"])
    assert first["measured"]["n"] == second["measured"]["n"] == 2
    (later,) = [path for path in machine.runs.iterdir() if path != run.parent]
    row = json.loads((later / "stability/level_1/stability.json").read_text())["rows"][0]
    dense = json.loads((run.parent / "stability/level_0/stability.json").read_text())["rows"][0]
    assert (row["step"], dense["step"]) == (10, 0)
    difference = row["barrier"]["validation"]["mean"] - dense["barrier"]["validation"]["mean"]
    assert second["measured"]["mean"] == pytest.approx(difference, abs=1e-12)
    with pytest.raises(RecipeError, match="'reinit' has no barrier"):
        judged(claiming(RECIPE.replace("that: ticket - reinit", "that: ticket - reinit, metric: barrier")), machine)


def test_a_claim_that_is_no_number_leaves_the_others_their_verdicts(claiming, machine):
    text = RECIPE.replace("that: ticket - reinit", "that: ticket / (dense - dense)").replace("seeds: 3", "seeds: 2")
    first, second, _ = judged(claiming(text), machine)["claims"]
    assert (first["measured"], first["verdict"]) == (None, "not enough seeds")
    assert first["problem"] == "with seed 0 something is divided by zero"
    assert second["measured"] is not None and second["problem"] is None


def test_runs_of_other_recipes_are_not_taken_for_the_run_in_question(claiming, machine):
    record = judged(claiming(RECIPE.replace("seeds: 3", "seeds: 2")), machine)
    (other,) = [run for run in list_runs(machine.runs) if str(run.path) != record["run"]]
    assert other.read_manifest()["derived_from"] == Path(record["run"]).name
    for name in (None, "claiming", "clai"):
        assert str(find_run(machine.runs, name).path) == record["run"]
    assert find_run(machine.runs, other.name).path == other.path
    # once it is asked for by itself it is a run like any
    list(prune_run(claiming(RECIPE.partition("claims:")[0], "pruning.after=finetune"), machine))
    with pytest.raises(RunError, match="'claiming' fits several runs"):
        find_run(machine.runs, "claiming")
    judged(claiming(RECIPE.replace("seeds: 3", "seeds: 2")), machine)
    assert other.read_manifest()["derived_from"] is None


def test_what_a_run_with_a_stand_in_is_asked_says_so_each_time(claiming, machine):
    text = RECIPE.replace("name: digits", "name: mnist, offline: digits").replace("seeds: 3", "seeds: 2")
    record = judged(claiming(text), machine)
    again = judged(run_file(RunStore(Path(record["run"]))), machine)
    assert again == record and record["stand_in_for"] == "mnist"
    assert {run.read_manifest()["stand_in_for"] for run in list_runs(machine.runs)} == {"mnist"}


def test_others_are_measured_at_their_own_level_of_the_density(claiming, places):
    from ticketlab.workflows.inputs import load_data
    from ticketlab.workflows.make_plan import make_plan

    def planned(file):
        return make_plan(*load_data(file, places))

    claim = "{claim: c, source: s, that: other - ticket, at: {density: 0.643}, at_least: 0, others: {other: [%s]}}"
    head = RECIPE.partition("claims:")[0] + "claims: [" + claim + "]"
    # a rate of 1 − √0.8 (output: 1 − √0.9) needs four levels to where a rate of 0.2 needs two
    found = find_claims(claiming(head % "pruning.rate=0.1056, pruning.output_rate=0.0513, pruning.levels=6"), planned)
    assert (found[0].level, dict(found[0].levels)) == (2, {"other": 4})
    with pytest.raises(RecipeError, match=r"claims\.0\.others\.other: has no such level; there are 0 \(1\), 1 \(0\.1"):
        find_claims(claiming(head % "pruning.rate=0.9"), planned)
    with pytest.raises(RecipeError, match="is the very run that the claim is about"):
        find_claims(claiming(head % "pruning.levels=1"), planned)


def test_what_is_no_network_of_the_run_is_told_before_anything_starts(claiming, machine):
    tuned = "that: tuned - ticket, metric: barrier, others: {tuned: [pruning.after=finetune]}"
    for old, new, message in (
        ("at: {density: 0.643}", "at: {level: 0}", "level 0 is the dense network, which has no reinit"),
        ("levels: 2,", "levels: 2, after: finetune,", "restart after 'finetune'"),
        ("that: ticket - reinit", tuned, r"others\.tuned: .*restart after 'finetune'"),
        (
            "that: ticket - reinit",
            "that: ticket, others: {x: [seed=5]}",
            r"others\.x: is not in the claim's expression",
        ),
        ("others: {tuned:", "others: {reinit: [], tuned:", r"others\.reinit: is what something else is called"),
        ("that: ticket - reinit", "that: supermask.flipout.init", "needs sign flips, which it does not count"),
        ("data: {", "method: gradual\ndata: {", "no ticket restarts"),
    ):
        with pytest.raises(RecipeError, match=message):
            judged(claiming(RECIPE.replace(old, new)), machine)
    assert not machine.runs.exists()
