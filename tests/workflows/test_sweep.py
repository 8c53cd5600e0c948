"""Sweeps: which points lists make, and that each is the run that it would be alone."""

import json
from contextlib import ExitStack

import pytest
from support import equal, states, untimed

from ticketlab.comparison import compare
from ticketlab.errors import FailedRun, Interrupted, RecipeError, RunError
from ticketlab.recipe_file import read_recipe, read_variants
from ticketlab.report import run_levels
from ticketlab.runs.store import Level, RunStore
from ticketlab.trained_networks import run_networks
from ticketlab.workflows.inputs import check_recipe, run_hash
from ticketlab.workflows.run import Machine, Started, prune_run
from ticketlab.workflows.sweep import Begun, Pointed, sweep_run
from ticketlab.workflows.sweep_points import check_points, points_of


@pytest.fixture
def machine(tmp_path, places):
    return Machine(runs=tmp_path / "runs", places=places, device="cpu", workers=1)


def sweep(recipe, machine, *overrides, should_stop=lambda: False):
    """Run a sweep; returns the stores and all events."""
    events = list(sweep_run(recipe, points_of(overrides), machine, should_stop))
    (begun,) = [event for event in events if isinstance(event, Begun)]
    return [one.store for one in begun.points], events


def swept(*overrides):
    return [point.overrides for point in points_of(overrides)]


def test_lists_multiply_and_the_last_one_turns_fastest():
    assert swept("seed=0,1", "train.lr=0.1", "pruning.after=rewind,finetune") == [
        ("seed=0", "train.lr=0.1", "pruning.after=rewind"),
        ("seed=0", "train.lr=0.1", "pruning.after=finetune"),
        ("seed=1", "train.lr=0.1", "pruning.after=rewind"),
        ("seed=1", "train.lr=0.1", "pruning.after=finetune"),
    ]
    assert points_of(["seed=0,1", "pruning.after=rewind"])[1].settings() == {"seed": 1}


@pytest.mark.parametrize(
    "single",
    ["early_bird.densities=[0.5,0.2]", "data={name: mnist, offline: digits}", "data.name='a,b'", "watch=[]", "seed=0"],
)
def test_commas_in_brackets_and_quotes_make_no_sweep(single):
    assert swept(single) == [(single,)]


def test_lists_and_sections_are_swept_as_wholes():
    assert swept("early_bird.densities=[0.5,0.3],[0.2]") == [
        ("early_bird.densities=[0.5,0.3]",), ("early_bird.densities=[0.2]",)
    ]  # fmt: skip
    assert swept("pruning.options={p: 1},{p: 2}") == [("pruning.options={p: 1}",), ("pruning.options={p: 2}",)]
    assert points_of(["pruning.options={p: 1},{p: 2}"])[1].settings() == {"pruning.options": {"p": 2}}


def test_what_is_no_sweep_is_refused_all_at_once_with_the_way_out():
    with pytest.raises(RecipeError) as caught:
        points_of(["seed=0,", "train.lr=1,1", "watch=sign_flips,[]", "early_bird.densities=0.5,0.2", "seed=3"])
    assert str(caught.value).splitlines() == [
        "--set seed=0,: a value between two commas is missing (a text with a comma stands in quotes)",
        "--set train.lr=1,1: a value is there twice",
        "--set watch=sign_flips,[]: watch is a list; write watch=[sign_flips],[] for a sweep over lists",
        "--set early_bird.densities=0.5,0.2: early_bird.densities is a list; write early_bird.densities=[0.5,0.2] for "
        "one list, or early_bird.densities=[0.5],[0.2] for a sweep over lists",
        "--set seed: is set more than once",
    ]
    with pytest.raises(RecipeError, match="these lists make 2,500 points; 1,000 at most"):
        points_of([f"{field}={','.join(map(str, range(50)))}" for field in ("seed", "data.split_seed")])


def test_all_points_are_checked_before_the_first_starts(write_recipe, machine):
    points = points_of(["pruning.rate=0.2,1.5", "pruning.rewind=0it,40it"])
    with pytest.raises(RecipeError) as caught:
        list(sweep_run(write_recipe(), points, machine))
    told = str(caught.value)
    assert "--set pruning.rate=1.5: pruning.rate: Input should be less than 1" in told
    assert "step 40 is not before the end of training at step 30" in told
    assert "(with pruning.rate=0.2, pruning.rewind=40it)" in told
    assert not machine.runs.exists()


def test_points_that_are_the_same_run_are_refused(write_recipe, machine):
    with pytest.raises(RecipeError, match=r"pruning\.levels=1 and pruning\.levels=2 are one and the same run"):
        check_points(write_recipe(), points_of(["pruning.levels=1,2"]), machine, lambda plan: plan.name)
    schedule = ["method=gradual", "pruning.levels=1,2"]
    names = check_points(write_recipe(), points_of(schedule), machine, lambda plan: plan.name)
    assert len(set(names)) == 2  # there, the number of levels decides the schedule


def test_each_point_is_the_very_run_that_it_is_alone(write_recipe, tiny, machine, tmp_path):
    stores, events = sweep(write_recipe(), machine, "seed=0,1", "pruning.after=rewind,finetune", "replicates=2")
    alone = Machine(tmp_path / "alone", machine.places, "cpu", workers=1)
    for store, overrides in zip(stores, swept("seed=0,1", "pruning.after=rewind,finetune"), strict=True):
        (started,) = [e for e in prune_run(tiny(*overrides, "replicates=2"), alone) if isinstance(e, Started)]
        assert started.store.name == store.name
        assert [untimed(one) for one in run_levels(store)] == [untimed(one) for one in run_levels(started.store)]
        assert equal(states(store, 3), states(started.store, 3))
        manifest = store.read_manifest()
        assert manifest["state"] == "finished" and set(manifest) == set(started.store.read_manifest())
        assert len(list(store.path.glob("events.out.tfevents.*"))) == 1
    seen = [
        (e.point, e.replicate, e.seen.level) for e in events if isinstance(e, Pointed) and isinstance(e.seen, Level)
    ]
    assert seen == [(point, number, level) for point in range(4) for number in (1, 2) for level in range(3)]


def test_a_sweep_in_processes_equals_one_in_this_process(write_recipe, machine, tmp_path):
    here, _ = sweep(write_recipe(), machine, "seed=0,7")
    there, _ = sweep(write_recipe(), Machine(tmp_path / "there", machine.places, "cpu", workers=2), "seed=0,7")
    for one, other in zip(here, there, strict=True):
        assert equal(states(one, 3), states(other, 3))


def test_an_interrupted_sweep_says_so_and_goes_on_where_it_was(write_recipe, machine):
    calls = iter(range(10**6))
    with pytest.raises(Interrupted):
        sweep(write_recipe(), machine, "seed=0,1,2", should_stop=lambda: next(calls) > 130)
    found = {json.loads(path.read_text())["seeds"][0]: path for path in machine.runs.glob("*/manifest.json")}
    told = {seed: json.loads(path.read_text())["state"] for seed, path in found.items()}
    assert told == {0: "finished", 1: "interrupted", 2: "interrupted"}
    first = RunStore(found[0].parent).level_dir(1, 2) / "metrics.json"
    before = first.stat().st_mtime_ns
    stores, _ = sweep(write_recipe(), machine, "seed=0,1,2")
    assert [store.read_manifest()["state"] for store in stores] == ["finished"] * 3
    assert first.stat().st_mtime_ns == before


def test_a_point_that_diverges_keeps_no_other_from_being_finished(write_recipe, machine):
    seen = []
    with pytest.raises(FailedRun, match=r"^train\.lr=1e30: replicate 1: training diverged before step"):
        for event in sweep_run(write_recipe(), points_of(["train.optimizer=sgd", "train.lr=1e30,0.01"]), machine):
            seen.append(event)
    stores = [one.store for one in seen[0].points]
    assert [store.read_manifest()["state"] for store in stores] == ["failed", "finished"]
    assert [len(run_levels(store)) for store in stores] == [0, 3]


def test_a_replicate_that_somebody_holds_keeps_no_other_from_being_finished(write_recipe, machine, monkeypatch):
    monkeypatch.setattr("ticketlab.runs.store.ORPHAN_PATIENCE", 0.1)
    with ExitStack() as held, pytest.raises(FailedRun, match=r"^seed=0: replicate 1: .* another process is writing"):
        for event in sweep_run(write_recipe(), points_of(["seed=0,1"]), machine):
            if isinstance(event, Begun):
                stores = [one.store for one in event.points]
                held.enter_context(stores[0].lock_replicate(1))
    assert [store.read_manifest()["state"] for store in stores] == ["failed", "finished"]


def test_a_run_that_cannot_be_taken_up_stops_a_sweep_before_it_starts(write_recipe, tiny, machine, places):
    list(prune_run(tiny("seed=1"), Machine(machine.runs, places, "cpu", threads=2, workers=1)))
    with pytest.raises(RunError, match="another number of threads"):
        sweep(write_recipe(), machine, "seed=0,1")
    assert len(list(machine.runs.iterdir())) == 1


VARIANTS = """
model: {name: lenet_300_100}
data: {name: digits, validation: 200}
train: {steps: 20it, batch_size: 32, evaluate_every: 10it}
pruning: {densities: [0.3]}
variants:
  tickets: []
  random: [method=at_init, pruning.criterion=random]
  gradual: [method=gradual, pruning.levels=2, "pruning.densities=[0.3],[0.1]"]
"""


def test_variants_are_runs_of_their_own_and_methods_of_a_comparison(write_recipe, machine):
    recipe = write_recipe(VARIANTS, "rivals.yaml")
    points = points_of((), read_variants(recipe))
    assert [point.name for point in points] == [
        "variant=tickets", "variant=random", "variant=gradual, pruning.densities=[0.3]",
        "variant=gradual, pruning.densities=[0.1]",
    ]  # fmt: skip
    list(sweep_run(recipe, points, machine))
    stores = list(map(RunStore, sorted(machine.runs.iterdir())))
    assert [store.name.rsplit("-", 1)[0] for store in stores] == [
        "rivals-gradual", "rivals-gradual", "rivals-random", "rivals-tickets",
    ]  # fmt: skip
    (comparison,) = compare([network for store in stores for network in run_networks(store)])
    assert {point.method for point in comparison.points} == {"tickets", "random", "gradual"}
    assert len({point.density for point in comparison.points if point.method == "gradual"}) == 2


def test_a_variant_is_the_run_that_its_fields_would_be_alone(write_recipe, machine):
    recipe = write_recipe(VARIANTS, "rivals.yaml")
    (point,) = points_of(["variant=random", "seed=3"], read_variants(recipe))
    assert point.overrides == ("variant=random", "method=at_init", "pruning.criterion=random", "seed=3")
    file = read_recipe(recipe, point.overrides)
    assert (file.recipe.variant, file.recipe.variants, file.recipe.method) == ("random", {}, "at_init")
    alone = read_recipe(recipe, ["method=at_init", "pruning.criterion=random", "seed=3"])
    assert run_hash(file) == run_hash(alone)
    assert read_recipe(recipe, ["variant=random", "pruning.criterion=snip"]).recipe.pruning.criterion == "snip"


def test_what_is_set_takes_the_place_of_a_variants_list(write_recipe):
    variants = read_variants(write_recipe(VARIANTS))
    names = [point.name for point in points_of(["variant=gradual,tickets", "pruning.densities=[0.5]"], variants)]
    assert names == ["variant=gradual", "variant=tickets"]
    with pytest.raises(RecipeError, match=r"no such variant; did you mean 'gradual'"):
        points_of(["variant=gradul"], variants)


def test_variants_of_a_wrong_form_are_told_with_the_recipe(write_recipe):
    recipe = write_recipe(VARIANTS.replace("tickets: []", "tickets: 3"))
    assert read_variants(recipe) == {}
    with pytest.raises(RecipeError, match=r"variants\.tickets"):
        read_recipe(recipe)


def test_a_command_that_takes_one_recipe_asks_for_the_variant(write_recipe, places):
    recipe = write_recipe(VARIANTS)
    with pytest.raises(RecipeError, match="choose with --set variant=NAME of tickets, random, gradual"):
        check_recipe(read_recipe(recipe))
    named = write_recipe(VARIANTS + "variant: random\n", "named.yaml")
    assert read_recipe(named).recipe.method == "at_init"
