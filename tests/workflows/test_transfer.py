"""Tickets of one run on another's data or optimizer."""

import json
from dataclasses import replace

import pytest
import torch
from support import TINY, equal, states, untimed
from typer.testing import CliRunner

from ticketlab.cli.app import app
from ticketlab.comparison import compare
from ticketlab.errors import Interrupted, MissingRun, RecipeError, RunError
from ticketlab.pruning.masks import masked
from ticketlab.recipe_file import read_recipe
from ticketlab.report import run_levels
from ticketlab.runs.find import list_runs
from ticketlab.seeds import derive_seed
from ticketlab.steps import Duration
from ticketlab.trained_networks import run_networks
from ticketlab.workflows.check import check_all
from ticketlab.workflows.controls import control_run
from ticketlab.workflows.run import Machine, Started, plan_on, prune_run
from ticketlab.workflows.stability_search import Analysis, stability_run
from ticketlab.workflows.trunk import run_plan

TRANSFER = """
method: transfer
ticket: tiny@2
model: {name: lenet_300_100}
data: {name: digits, validation: 200}
train: {steps: 20it, batch_size: 32, evaluate_every: 10it, optimizer: sgd, lr: 0.1}
"""


@pytest.fixture
def machine(tmp_path, places):
    return Machine(runs=tmp_path / "runs", places=places, device="cpu", workers=1)


@pytest.fixture
def transfer(write_recipe):
    """The transfer recipe with `--set` overrides."""

    def read(*overrides):
        return read_recipe(write_recipe(TRANSFER, "moved.yaml"), overrides)

    return read


def finish(file, machine):
    (store,) = [event.store for event in prune_run(file, machine) if isinstance(event, Started)]
    return store


@pytest.fixture
def source(tiny, machine):
    """A finished run with rewinding to step 4."""
    return finish(tiny("pruning.rewind=4it"), machine)


def test_level_0_is_the_sources_dense_network_and_level_1_its_ticket(source, transfer, machine):
    store = finish(transfer(), machine)
    ticket, rewound = source.read_ticket(1, 2), source.read_rewind(1)
    dense, moved = store.read_ticket(1, 0), store.read_ticket(1, 1)
    assert equal([dense.weights, moved.weights], [rewound, masked(rewound, ticket.mask)])
    assert equal([moved.mask], [ticket.mask]) and all(kept.all() for kept in dense.mask.values())
    assert equal([store.read_rewind(1)], [rewound])
    levels = store.levels(1)
    assert [level.steps for level in levels] == [20, 20]
    assert [level.remaining for level in levels] == [source.levels(1)[0].remaining, source.levels(1)[2].remaining]
    final = store.read_weights(1, 1, "final")
    assert all(not final[name][~kept].any() for name, kept in ticket.mask.items())
    assert any(not torch.equal(final[name], moved.weights[name]) for name in ticket.mask)


def test_ticket_and_manifest_say_where_it_was_found(source, transfer, machine):
    store = finish(transfer(), machine)
    told = store.read_ticket(1, 1).facts["source"]
    assert (told["run"], told["level"], told["replicate"], told["data"]) == (source.name, 2, 1, "digits")
    assert told["search"]["flops"] == sum(level.flops for level in source.levels(1)[:2])
    manifest = store.read_manifest()
    assert manifest["source"]["path"] == str(source.path.resolve())
    assert manifest["ticket_digest"] == told["digest"] and len(told["digest"]) == 64
    assert run_plan(store, machine.places).recipe.ticket == f"{source.name}@2"


def test_prefix_name_and_path_are_one_run_and_levels_are_not(source, transfer, machine):
    plans = [plan_on(transfer(f"ticket={run}@2"), machine) for run in ("tiny", source.name, source.path)]
    assert len({plan.hash for plan in plans}) == 1
    assert plan_on(transfer("ticket=tiny@1"), machine).hash != plans[0].hash
    assert sum(plans[0].keeps(1)) == source.levels(1)[2].remaining


def test_replicate_takes_the_sources_replicate_of_its_number(tiny, transfer, machine):
    source = finish(tiny("replicates=2"), machine)
    store = finish(transfer("replicates=2", "seed=5"), machine)
    for number in (1, 2):
        assert equal([store.read_ticket(number, 1).mask], [source.read_ticket(number, 2).mask])
        assert equal([store.read_rewind(number)], [source.read_rewind(number)])
    assert [level.seed for level in run_levels(store)] == [5, 5, 6, 6]


def test_an_interrupted_transfer_goes_on_as_if_nothing_had_been(source, transfer, machine, tmp_path):
    whole = finish(transfer(), machine)
    elsewhere = replace(machine, runs=tmp_path / "elsewhere")
    file = transfer(f"ticket={source.path}@2")
    for steps in (7, 15):
        asked = iter([False] * steps + [True] * 100)
        with pytest.raises(Interrupted):
            list(prune_run(file, elsewhere, lambda asked=asked: next(asked)))
    resumed = finish(file, elsewhere)
    assert resumed.name == whole.name
    assert [untimed(level) for level in run_levels(resumed)] == [untimed(level) for level in run_levels(whole)]
    assert equal(states(resumed, 2), states(whole, 2))


def test_another_number_of_classes_gives_a_new_dense_classifier(source, transfer, machine, tmp_path):
    (tmp_path / "few.py").write_text(
        "from dataclasses import replace\n"
        "from ticketlab.data.sources import datasets, load_dataset\n\n\n"
        "@datasets.register('few_digits')\n"
        "def few_digits(places):\n"
        "    whole = load_dataset('digits', places)\n"
        "    here, there = whole.train_labels < 7, whole.test_labels < 7\n"
        "    return replace(whole, name='few_digits', classes=7, train_images=whole.train_images[here],\n"
        "        train_labels=whole.train_labels[here], test_images=whole.test_images[there],\n"
        "        test_labels=whole.test_labels[there])\n"
    )
    store = finish(transfer("plugins=[few.py]", "data.name=few_digits"), machine)
    moved, ticket = store.read_ticket(1, 1), source.read_ticket(1, 2)
    assert moved.mask["output.weight"].shape == (7, 100) and moved.mask["output.weight"].all()
    assert torch.equal(moved.mask["fc1.weight"], ticket.mask["fc1.weight"])
    plan = run_plan(store, machine.places)
    fresh = plan.build(derive_seed(0, "init")).state_dict()
    assert torch.equal(store.read_rewind(1)["output.weight"], fresh["output.weight"])


def test_controls_of_a_transferred_ticket_start_from_its_dense_weights(source, transfer, machine):
    store = finish(transfer(), machine)
    names = ["signed_constant", "shuffled_weights"]
    record = list(control_run(store, [1], names, machine))[-1]
    assert [row["control"] for row in record["controls"]] == names
    started = store.part("controls/level_1/signed_constant").read_ticket(1, 1).weights["fc1.weight"]
    kept, initial = source.read_ticket(1, 2).mask["fc1.weight"], source.read_rewind(1)["fc1.weight"]
    assert torch.equal(started[kept], initial[kept].sign() * initial.std(unbiased=False))


def test_a_comparison_counts_the_search_in_the_source_run(source, transfer, machine):
    store = finish(transfer(), machine)
    ours = {round(n.density, 3): n for n in run_networks(store)}
    found, moved = source.levels(1), store.levels(1)
    assert ours[1.0].flops == moved[0].flops
    ticket = ours[round(found[2].density, 3)]
    assert ticket.flops == found[0].flops + found[1].flops + moved[1].flops
    making = found[2].looking_seconds  # of the mask, which is part of the search
    assert 0 < making < found[2].seconds
    assert ticket.seconds == pytest.approx(found[0].seconds + found[1].seconds + making + moved[1].seconds)
    (comparison,) = compare([*run_networks(source), *run_networks(store)])
    assert comparison.baseline.startswith("imp magnitude")
    assert f"ticket={source.name}@2" in comparison.methods()[1]


# --- what cannot be asked for


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ticket=null"], "method: transfer needs a ticket of another run: add ticket: RUN@level"),
        (["ticket=tiny"], r"ticket: write it as RUN@level with a level from 1 on, such as \S+ \(got 'tiny'\)"),
        (["ticket=tiny@0"], "with a level from 1 on"),
        (["method=imp"], "ticket: belongs to method: transfer, not to imp"),
        (["pruning.rate=0.5"], "pruning: the source run has found the ticket; leave this section out"),
        (["ticket=tiny@3"], "has no finished level 3; its deepest finished one is 2"),
        (["replicates=3"], "1 of the 3 replicates asked for have a finished level 2; add more there with --set repl"),
        (["ticket=mine@2"], r"no run 'mine' in .*; ticketlab runs ls names those that are there"),
        (["data.name=mnist_5k"], r"on mnist_5k \(1×28×28\): fc1\.weight is 300×64 there and 300×784 here"),
    ],
)  # fmt: skip
def test_what_cannot_be_transferred_is_told_before_anything_starts(source, transfer, machine, overrides, message):
    with pytest.raises(RecipeError, match=message):
        finish(transfer(*overrides), machine)
    assert [run.name for run in list_runs(machine.runs)] == [source.name]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=gradual", "pruning.levels=2"], "method gradual goes on with its weights"),
        (["pruning.after=lr_rewind"], "restart after 'lr_rewind', not from rewound weights"),
    ],
)
def test_runs_whose_tickets_do_not_restart_give_none(tiny, transfer, machine, overrides, message):
    finish(tiny(*overrides), machine)
    with pytest.raises(RecipeError, match=message):
        plan_on(transfer(), machine)


def test_a_transfer_of_a_transfer_names_the_first_source(source, transfer, machine):
    finish(transfer(), machine)
    with pytest.raises(RecipeError, match=f"found by another run; name that one: {source.name}@2"):
        plan_on(transfer("ticket=moved@1"), machine)


def test_a_source_that_is_made_anew_with_other_weights_is_refused(source, transfer, machine):
    store = finish(transfer(), machine)
    store.write_manifest({**store.read_manifest(), "ticket_digest": "0"})
    with pytest.raises(RunError, match="starts from another ticket"):
        finish(transfer("replicates=1"), machine)


def test_a_missing_source_names_the_command_that_makes_it(transfer, machine, write_recipe):
    with pytest.raises(MissingRun, match=r"no run 'tiny' in .*; ticketlab runs ls"):
        finish(transfer(), machine)
    recipe = write_recipe(TINY)
    with pytest.raises(MissingRun, match=f"make it with: ticketlab prune {recipe}"):
        finish(transfer(), machine)
    with pytest.raises(MissingRun, match=f"make it with: ticketlab prune {recipe}"):
        finish(transfer("ticket=tiny-123abc@2"), machine)
    assert not machine.runs.exists()


def test_a_check_without_the_source_checks_the_rest(transfer, machine, source):
    assert check_all(transfer(), machine) == []
    absent = replace(machine, runs=machine.runs / "none")
    (note,) = check_all(transfer(), absent)
    assert note.startswith("ticket not checked: ") and "no run 'tiny'" in note
    notes = check_all(transfer("data.name=mnist"), absent)
    assert [text.partition(":")[0] for text in notes] == ["ticket not checked", "shapes and times not checked"]
    with pytest.raises(RecipeError, match="has no finished level 9"):
        check_all(transfer("ticket=tiny@9"), machine)


def test_the_command_line_runs_plans_and_checks_a_transfer(source, transfer, machine, tmp_path):
    transfer()
    recipe, runs = str(tmp_path / "moved.yaml"), ["--runs", str(machine.runs)]
    planned = CliRunner().invoke(app, ["prune", recipe, *runs, "--dry-run", "--json"])
    assert [level["remaining"] for level in json.loads(planned.stdout)["levels"]] == [
        source.levels(1)[0].remaining, source.levels(1)[2].remaining
    ]  # fmt: skip
    done = CliRunner().invoke(app, ["prune", recipe, *runs, "--json", "--device", "cpu"])
    assert done.exit_code == 0 and json.loads(done.stdout)["method"] == "transfer"
    checked = CliRunner().invoke(app, ["recipes", "check", recipe, "--runs", str(tmp_path / "none")])
    assert checked.exit_code == 0 and "ticket not checked" in checked.stdout
    missing = CliRunner().invoke(app, ["prune", recipe, "--runs", str(tmp_path / "none")])
    assert missing.exit_code == 2


def test_its_ticket_has_no_other_step_to_begin_copies_at(source, transfer, machine):
    store = finish(transfer(), machine)
    with pytest.raises(RunError, match="tickets of method transfer have their own step only; leave --at out"):
        list(stability_run(store, Analysis((1,), (Duration(5, "it"),)), machine))
    assert not (store.path / "stability").exists()
