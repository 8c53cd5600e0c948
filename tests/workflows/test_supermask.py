"""Supermasks of tiny runs on real digits: what is measured, chosen, kept and refused."""

import json
import math

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from ticketlab.cli.app import app
from ticketlab.errors import Interrupted, RunError, TicketlabError
from ticketlab.runs.store import RunStore
from ticketlab.seeds import derive_seed
from ticketlab.training.loop import evaluate
from ticketlab.workflows.inputs import load_data
from ticketlab.workflows.learn_mask import ask_learning, initial_weights
from ticketlab.workflows.make_plan import make_plan
from ticketlab.workflows.run import Machine, Started, prune_run
from ticketlab.workflows.supermask import DENSITIES, ONE_SHOT, supermask_run

NOTHING = (None, None, None, False, None, None)


@pytest.fixture
def machine(tmp_path, places):
    return Machine(runs=tmp_path / "runs", places=places, device="cpu", workers=1)


@pytest.fixture
def run(tiny, machine):
    """Plan and store of a finished run."""

    def make(*overrides):
        file = tiny("pruning.levels=1", *overrides)
        events = list(prune_run(file, machine))
        plan = make_plan(*load_data(file, machine.places))
        return plan, next(event.store for event in events if isinstance(event, Started))

    return make


def supermask(store, machine, *names, learn=NOTHING):
    return list(supermask_run(store, names, ask_learning(*learn), machine))[-1]


def rows(record, weights):
    return {row["criterion"]: row for row in record["one_shot"] if row["weights"] == weights}


def files(store):
    return {path.relative_to(store.path): path.read_bytes() for path in store.path.rglob("*") if path.is_file()}


def test_same_sign_masks_are_laid_over_the_weights_of_before_training(run, machine):
    """Redone without any of the code under test: ranks, masks, constants, the choice on validation data."""
    plan, store = run("train.steps=200it", "train.evaluate_every=100it", "pruning.rewind=20it")
    record = supermask(store, machine, "large_final_same_sign", "random")
    model = plan.build(derive_seed(0, "init"))
    start = {name: value.clone() for name, value in model.state_dict().items()}
    final = store.read_weights(1, 0, "final")
    # layers lose 20 % a level, the output layer 10 %
    times = [math.log(at) / math.log(0.8) for at in DENSITIES]
    for kind in ("init", "signed_constant"):
        found = []
        for at, power in zip(DENSITIES, times, strict=True):
            state = dict(start)
            for name in ("fc1.weight", "fc2.weight", "output.weight"):
                share = 0.9**power if name.startswith("output") else at
                score = (final[name] * start[name].sign()).flatten()
                kept = torch.zeros_like(score)
                kept[score.argsort(descending=True)[: math.floor(share * len(score) + 0.5)]] = 1
                values = start[name] if kind == "init" else start[name].sign() * start[name].std(correction=0)
                state[name] = values * kept.view_as(start[name])
            model.load_state_dict(state)
            found.append((evaluate(model, plan.splits.validation)[1], evaluate(model, plan.splits.test)[1]))
        row = rows(record, kind)["large_final_same_sign"]
        assert [point["val_accuracy"]["mean"] for point in row["curve"]] == [accuracy for accuracy, _ in found]
        best = max(range(len(found)), key=lambda index: found[index][0])
        assert row["test_accuracy"] == {"mean": found[best][1], "low": None, "high": None, "n": 1}
        assert row["densities"] == [row["curve"][best]["density"]]
        assert row["test_accuracy"]["mean"] > rows(record, kind)["random"]["test_accuracy"]["mean"] + 0.2
    model.load_state_dict(start)
    assert record["no_mask"][0]["test_accuracy"]["mean"] == evaluate(model, plan.splits.test)[1]
    assert (record["data"], record["stand_in_for"]) == ("digits", None)
    assert record["trained"]["mean"] == store.read_level(1, 0).final_test_accuracy


NORMED = """
from torch import nn

def normed(inputs, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, classes))
"""


def test_batch_norms_of_untrained_networks_have_the_statistics_of_training_examples(run, machine, tmp_path):
    """Redone with the norm written out: means of each batch's mean and variance."""
    (tmp_path / "normed.py").write_text(NORMED)
    plan, store = run("model={name: normed, file: normed.py}", "train.steps=5it", "train.evaluate_every=5it")
    record = supermask(store, machine, "random")
    weights = initial_weights(plan, store, 1)

    def pixels(examples):
        return (examples.images.float() * examples.scale + examples.shift).flatten(1)

    def hidden(examples):
        return pixels(examples) @ weights["1.weight"].T + weights["1.bias"]

    train, test = plan.splits.train, plan.splits.test
    batches = hidden(train)[: len(train) // 250 * 250].view(-1, 250, 20)
    mean, variance = batches.mean(dim=1).mean(dim=0), batches.var(dim=1).mean(dim=0)
    seen = ((hidden(test) - mean) / (variance + 1e-5).sqrt()).relu()
    answers = (seen @ weights["4.weight"].T + weights["4.bias"]).argmax(dim=1)
    by_hand = (answers == test.labels).float().mean().item()
    assert record["no_mask"][0]["test_accuracy"]["mean"] == pytest.approx(by_hand, abs=1e-6)
    model = plan.build(0)
    model.load_state_dict(weights)
    assert evaluate(model, test)[1] != pytest.approx(by_hand, abs=1e-6), "statistics 0 and 1 give another network"


def test_all_criteria_leave_a_table_a_figure_and_scalars_and_are_not_repeated(run, machine):
    _, store = run("replicates=2")
    record = supermask(store, machine)
    assert sorted(rows(record, "init")) == sorted(rows(record, "signed_constant")) == sorted(ONE_SHOT)
    assert all(row["test_accuracy"]["n"] == 2 and len(row["curve"]) == 28 for row in record["one_shot"])
    folder = store.path / "supermask"
    assert {path.suffix for path in folder.glob("supermask.*")} == {".json", ".png", ".svg"}
    assert json.loads((folder / "supermask.json").read_text()) == record
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    assert events.Tags()["images"] == ["supermasks"]
    points = events.Scalars("supermask_init/movement")
    curve = rows(record, "init")["movement"]["curve"]
    assert {point.step: pytest.approx(point.value) for point in points} == {
        round(1000 * point["density"]): point["val_accuracy"]["mean"] for point in curve
    }
    judged = {name: content for name, content in files(store).items() if "one_shot" in name.parts}
    assert supermask(store, machine, "movement") == record
    assert judged == {name: content for name, content in files(store).items() if "one_shot" in name.parts}


def test_judging_goes_on_where_it_was_stopped(run, machine):
    _, store = run()
    left = [40]

    def should_stop():
        left[0] -= 1
        return left[0] < 0

    with pytest.raises(Interrupted, match="large_init"):
        list(supermask_run(store, ["large_init", "magnitude"], None, machine, should_stop))
    assert not store.has_result("supermask/one_shot/replicate_1/by_large_init.json")
    left[0] = 70
    with pytest.raises(Interrupted, match="magnitude"):
        list(supermask_run(store, ["large_init", "magnitude"], None, machine, should_stop))
    assert store.has_result("supermask/one_shot/replicate_1/by_large_init.json")
    stopped = supermask(store, machine, "large_init", "magnitude")
    for name in ("large_init", "magnitude"):
        store.forget(f"supermask/one_shot/replicate_1/by_{name}.json")
    assert supermask(store, machine, "large_init", "magnitude") == stopped


LEARN = {
    "edge_popup": ("edge_popup", "signed_constant", 0.3, False, "40it", None),
    "bernoulli": ("bernoulli", None, None, True, "40it", None),
}


@pytest.mark.parametrize("method", list(LEARN))
def test_a_learned_mask_stopped_anywhere_resumes_bit_for_bit(run, machine, method, tmp_path):
    _, store = run()
    whole = supermask(store, machine, learn=LEARN[method])
    learning = ask_learning(*LEARN[method])
    part = store.part(learning.folder)
    kept = {name: content for name, content in files(part).items() if name.suffix == ".safetensors"}
    assert {name.name for name in kept} == {"ticket.safetensors", "scores.safetensors"}
    for steps in (0, 32):
        for name in files(part):
            part.forget(str(name))
        left = [steps]

        def should_stop(left=left):
            left[0] -= 1
            return left[0] < 0

        with pytest.raises(Interrupted, match="the state is saved"):
            list(supermask_run(store, [], learning, machine, should_stop))
        assert part.read_checkpoint(1, 0)[1]["step"] == steps + 1
        again = supermask(store, machine, learn=LEARN[method])
        for record in (whole, again):
            record["learned"][0]["seconds"] = None
        assert again == whole
        assert kept == {name: content for name, content in files(part).items() if name.suffix == ".safetensors"}


@pytest.mark.parametrize("method", list(LEARN))
def test_the_ticket_of_a_learned_mask_is_the_network_that_was_judged(run, machine, method):
    plan, store = run()
    record = supermask(store, machine, learn=LEARN[method])["learned"][0]
    assert record["method"] == method and record["steps"] == "40it"
    ticket = store.part(f"supermask/{record['folder']}").read_ticket(1, 0)
    model = plan.build(0)
    model.load_state_dict(ticket.weights)
    _, accuracy = evaluate(model, plan.splits.test)
    initial = initial_weights(plan, store, 1)
    for name, kept in ticket.mask.items():
        if method == "bernoulli":  # rescaled initial weights
            expected = torch.where(kept, initial[name] * (kept.numel() / kept.sum()), 0.0)
            torch.testing.assert_close(ticket.weights[name], expected)
        else:
            constant = initial[name].sign() * initial[name].std(correction=0)
            assert torch.equal(ticket.weights[name], torch.where(kept, constant, 0.0))
            assert int(kept.sum()) == math.floor(0.3 * kept.numel() + 0.5)
    if method == "bernoulli":
        assert accuracy == record["threshold_test_accuracy"]["mean"]
        assert record["test_accuracy"]["mean"] != accuracy
    else:
        assert accuracy == record["test_accuracy"]["mean"]
        assert record["threshold_test_accuracy"] is None


def test_learning_a_mask_beats_the_untrained_network_by_far(run, machine):
    _, store = run()
    record = supermask(store, machine, learn=("edge_popup", None, None, False, "150it", None))
    assert record["learned"][0]["test_accuracy"]["mean"] > record["no_mask"][0]["test_accuracy"]["mean"] + 0.5


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((None, "init", 0.3, True, "5ep", 1.0), "--weights, --density, --rescale, --steps, --lr: only with --learn"),
        (("edge_pop", None, None, False, None, None), "did you mean 'edge_popup'"),
        (("edge_popup", "inits", None, False, None, None), "did you mean 'init'"),
        (("edge_popup", None, 1.5, False, None, None), "--density 1.5: a fraction between 0 and 1"),
        (("edge_popup", None, None, False, "5", None), "--steps 5: write a time as '12ep'"),
        (("edge_popup", None, None, False, "0ep", None), "needs at least 1it"),
        (("edge_popup", None, None, False, None, -1.0), "--lr -1: a number above 0"),
        (("bernoulli", None, 0.5, False, None, None), "bernoulli finds its own density"),
    ],
)
def test_what_cannot_be_learned_is_refused(asked, message):
    with pytest.raises(TicketlabError, match=message):
        ask_learning(*asked)


@pytest.mark.parametrize(
    ("overrides", "names", "message"),
    [
        ((), ["large_finl"], "unknown criterion 'large_finl'"),
        ((), ["flipout"], "'flipout' needs sign flips, which it does not count"),
        (("method=gradual",), [], "method gradual need not train the dense network to its end"),
    ],
)
def test_what_a_run_has_no_supermasks_of_is_refused(run, machine, overrides, names, message):
    _, store = run(*overrides)
    with pytest.raises(TicketlabError, match=message):
        supermask(store, machine, *names)
    assert not (store.path / "supermask").exists()


def test_a_run_without_a_finished_level_is_refused(tiny, machine):
    plan = make_plan(*load_data(tiny(), machine.places))
    store = RunStore(machine.runs / "empty")
    store.write_manifest({"recipe": "tiny"})
    store.write_recipe(plan.file.path.read_text())
    with pytest.raises(RunError, match="has no finished level yet, not 0"):
        supermask(store, machine)


def test_the_command_prints_one_table_or_one_json_object(run, machine):
    _, store = run()
    common = ["supermask", store.path, "--runs", machine.runs, "--workers", "1", "--quiet"]

    def invoke(*more):
        return CliRunner().invoke(app, [str(argument) for argument in (*common, *more)])

    ran = invoke("--criterion", "magnitude,random", "--json")
    assert ran.exit_code == 0 and [row["criterion"] for row in json.loads(ran.stdout)["one_shot"]] == [
        "magnitude", "magnitude", "random", "random",
    ]  # fmt: skip
    ran = invoke("--learn", "bernoulli", "--steps", "3it", "--lr", "1")
    assert ran.exit_code == 0 and "bernoulli, 3it, lr 1" in ran.stdout and "no mask" in ran.stdout
    ran = invoke("--density", "0.5")
    assert ran.exit_code == 2 and ran.stderr.startswith("error: --density: only with --learn")
