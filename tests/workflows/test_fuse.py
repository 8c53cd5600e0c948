"""Fusion end to end on real digits: sources, budgets, what is written, what a second call does."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ticketlab.cost import size
from ticketlab.data.files import Places
from ticketlab.errors import FusionError, Interrupted, RunError
from ticketlab.fusion.groups import permutation_error
from ticketlab.models.compact import layer_widths
from ticketlab.runs.files import read_tensors
from ticketlab.runs.store import Level
from ticketlab.training.loop import evaluate
from ticketlab.workflows.fuse import Fusion, fuse_run
from ticketlab.workflows.fuse_request import Request
from ticketlab.workflows.progress import Progress
from ticketlab.workflows.run import Machine, Notice, prune_run
from ticketlab.workflows.source import Elsewhere, from_run, from_weights, load_network


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path / "runs", Places(None, tmp_path / "cache", may_download=False), "cpu", 1)


@pytest.fixture
def ticket(tiny, machine):
    """A source: level 2 of a tiny run."""
    events = list(prune_run(tiny("train.steps=120it"), machine))
    return from_run(events[0].store, machine.places, None, 1, ())


def done(events):
    return next(event for event in events if isinstance(event, Fusion))


def fused(source, machine, **request):
    return done(list(fuse_run(source, Request(**request), machine)))


def test_a_ticket_becomes_a_smaller_dense_network_that_loads_without_the_run(ticket, machine):
    found = fused(ticket, machine, widths={"fc1": 40, "fc2": 20})
    record = found.record
    model = load_network(found.store.path / "fused.safetensors")
    assert layer_widths(model) == record["widths"] == {"fc1": 40, "fc2": 20, "output": 10}
    assert size(model, (1, 8, 8)).params == record["after"]["params"] == 40 * 65 + 20 * 41 + 10 * 21
    assert evaluate(model, ticket.plan.splits.test)[1] == record["after"]["test_accuracy"]
    assert record["sparse"]["nonzeros"] < record["before"]["nonzeros"] == record["before"]["params"]
    assert record["after"]["test_accuracy"] > record["sparse"]["test_accuracy"] - 0.05
    assert record["permutation_error"] < 1e-9
    assert set(record["latency_us"]) == {"dense", "masked", "fused"}
    json.dumps(record)


def test_the_map_tells_which_old_units_the_new_ones_stand_for(ticket, machine):
    found = fused(ticket, machine, select="l1", combine="drop", widths={"fc1": 30})
    tensors, _ = read_tensors(found.store.path / "map.safetensors")
    units = tensors["fc1/units"]
    small = load_network(found.store.path / "fused.safetensors")
    assert torch.equal(small.fc1.weight, ticket.model.fc1.weight[units])


def test_exact_changes_no_answer(ticket, machine):
    ticket.model.fc1.weight.data[:7] = 0
    found = fused(ticket, machine, exact=True)
    assert found.record["exact"]["dead_inputs"] == 7
    assert found.record["after"]["test_accuracy"] == found.record["sparse"]["test_accuracy"]
    assert found.record["method"] == "exact"


def test_budgets_are_met(ticket, machine):
    assert fused(ticket, machine, params=3000).record["after"]["params"] <= 3000
    assert fused(ticket, machine, macs=2000).record["after"]["macs"] <= 2000
    rounded = fused(ticket, machine, params=9000, round_to=8).record["groups"]
    assert all(width % 8 == 0 for width in rounded.values())
    even = fused(ticket, machine, params=9000, allocation="uniform").record
    assert even["after"]["params"] <= 9000
    shares = [even["groups"]["fc1"] / 300, even["groups"]["fc2"] / 100]
    assert abs(shares[0] - shares[1]) < 0.02


def test_without_a_budget_half_a_point_of_validation_may_go(ticket, machine):
    events = list(fuse_run(ticket, Request(images=500), machine))
    record = done(events).record
    assert record["after"]["val_accuracy"] >= record["sparse"]["val_accuracy"] - 0.005
    assert record["after"]["params"] < 0.5 * record["sparse"]["params"]
    assert sum("parameters, widths" in event.text for event in events if isinstance(event, Notice)) == 8


def test_a_latency_is_met_or_told(ticket, machine):
    everything = fused(ticket, machine, latency=1e6).record
    assert everything["widths"]["fc1"] == 300 - everything["exact"].get("dead_outputs", 0)
    with pytest.raises(FusionError, match="--latency"):
        fused(ticket, machine, latency=1e-3)


def test_the_same_command_again_reads_the_result(ticket, machine):
    first = fused(ticket, machine, share=0.3)
    events = list(fuse_run(ticket, Request(share=0.3), machine))
    assert any(isinstance(e, Notice) and "finished already" in e.text for e in events)
    assert done(events).record == json.loads(json.dumps(first.record))
    assert fused(ticket, machine, share=0.4).store.path != first.store.path


def test_two_fusions_of_the_same_network_are_equal(ticket, machine, tmp_path):
    other = replace(machine, runs=tmp_path / "others")
    one, two = (fused(ticket, m, share=0.2, distil="30it") for m in (machine, other))
    a, b = (load_network(f.store.path / "fused.safetensors").state_dict() for f in (one, two))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_distillation_and_retraining_are_stages_with_a_control(ticket, machine):
    found = fused(ticket, machine, share=0.2, distil="40it", retrain="60it")
    stages = {stage["stage"]: stage for stage in found.record["stages"]}
    assert list(stages) == ["fused", "distilled", "retrained", "scratch"]
    assert stages["retrained"]["steps"] == 60
    # as many images as the source, retraining and distillation (40 batches of 256, in batches of 32) saw
    assert stages["scratch"]["steps"] == 120 + 60 + 40 * 256 // 32
    assert found.record["after"]["test_accuracy"] == stages["retrained"]["test_accuracy"]
    model = load_network(found.store.path / "fused.safetensors")
    assert evaluate(model, ticket.plan.splits.test)[1] == stages["retrained"]["test_accuracy"]


def test_no_control_without_it(ticket, machine):
    record = fused(ticket, machine, share=0.2, retrain="20it", control=False).record
    assert [stage["stage"] for stage in record["stages"]] == ["fused", "retrained"]


def test_a_fusion_stopped_in_training_goes_on_to_the_same_network(ticket, machine, tmp_path):
    request = Request(share=0.2, distil="20it", retrain="60it")
    whole = done(list(fuse_run(ticket, request, machine)))
    other = replace(machine, runs=tmp_path / "others", checkpoint_seconds=0.0)
    asked = []
    with pytest.raises(Interrupted):
        for event in fuse_run(ticket, request, other, lambda: len(asked) > 0):
            if isinstance(event, Progress) and event.step >= 20:
                asked.append(event)
    resumed = done(list(fuse_run(ticket, request, other)))
    a, b = (load_network(f.store.path / "fused.safetensors").state_dict() for f in (whole, resumed))
    assert all(torch.equal(a[name], b[name]) for name in a)
    untimed = [{k: v for k, v in stage.items() if k != "seconds"} for stage in whole.record["stages"]]
    assert untimed == [{k: v for k, v in stage.items() if k != "seconds"} for stage in resumed.record["stages"]]


def test_scratch_starts_from_the_builder_s_own_distribution(ticket, machine):
    levels = [e for e in fuse_run(ticket, Request(share=0.2, retrain="1it"), machine) if isinstance(e, Level)]
    assert len(levels) == 2
    from ticketlab.workflows.tickets import fresh_weights

    small = load_network(fused(ticket, machine, share=0.2).store.path / "fused.safetensors")
    fresh = fresh_weights(ticket.plan, small, 0)
    wanted = (2 / (64 + 60)) ** 0.5  # Glorot, of the small layer
    assert float(fresh["fc1.weight"].std()) == pytest.approx(wanted, rel=0.05)
    assert not fresh["fc1.bias"].any()


def test_a_model_that_the_run_s_weights_do_not_fit_is_told(tiny, machine):
    store = next(iter(list(prune_run(tiny(), machine)))).store
    with pytest.raises(RunError, match="weights do not fit the model"):
        from_run(store, machine.places, None, 1, ["model.options.widths={fc1: 7}"])
    with pytest.raises(RunError, match="levels 0 to 2, not 3"):
        from_run(store, machine.places, 3, 1, ())
    with pytest.raises(RunError, match="replicate 2 has no finished level"):
        from_run(store, machine.places, None, 2, ())


# --- weights from elsewhere


def weights(tmp_path, rename=lambda name: name, seed=0):
    torch.manual_seed(seed)
    from ticketlab.models import models

    state = models.find("lenet_300_100")((1, 8, 8), 10).state_dict()
    save_file({rename(name): value for name, value in state.items()}, tmp_path / "w.safetensors")
    return state


def test_weights_with_other_names_are_taken_by_shape_and_said_so(tmp_path, machine):
    names = {"fc1": "ip1", "fc2": "ip2", "output": "ip3"}
    state = weights(tmp_path, lambda name: names[name.split(".")[0]] + "." + name.split(".")[1])
    source = from_weights(Elsewhere(tmp_path / "w.safetensors", "lenet_300_100", "digits"), machine.places, ())
    assert all(torch.equal(value, state[name]) for name, value in source.model.state_dict().items())
    assert source.notices[0].startswith("pixels are normalised with mean 0.")
    assert "ip1 → fc1, ip2 → fc2, ip3 → output" in source.notices[1]


def test_the_normalisation_of_weights_from_elsewhere_is_the_given_one(tmp_path, machine):
    weights(tmp_path)
    given = Elsewhere(tmp_path / "w.safetensors", "lenet_300_100", "digits", (0.5,), (0.25,))
    examples = from_weights(given, machine.places, ()).plan.splits.test
    assert float(examples.scale) == pytest.approx(1 / (255 * 0.25))
    assert float(examples.shift) == pytest.approx(-2.0)
    with pytest.raises(RunError, match="1 channels"):
        from_weights(replace(given, mean=(0.5, 0.5)), machine.places, ())


def test_weights_that_do_not_fit_are_told_with_both_shapes(tmp_path, machine):
    save_file({"a.weight": torch.zeros(3, 4)}, tmp_path / "w.safetensors")
    with pytest.raises(RunError, match=r"The file has a\.weight 3×4; the model wants fc1\.weight 300×64"):
        from_weights(Elsewhere(tmp_path / "w.safetensors", "lenet_300_100", "digits"), machine.places, ())


def test_a_model_file_of_one_s_own_is_fused_and_rebuilt(tmp_path, machine):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def build(hidden=12):\n"
        "    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(),\n"
        "                         nn.Linear(216, hidden), nn.Tanh(), nn.Linear(hidden, 10))\n"
    )
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 12), nn.Tanh(), nn.Linear(12, 10)
    )
    torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
    source = from_weights(Elsewhere(tmp_path / "w.pth", f"{tmp_path}/net.py:build", "digits"), machine.places, ())
    found = fused(source, machine, widths={"0": 3, "4": 5}, fold_norms=True, retrain="5it")
    small = load_network(found.store.path / "fused.safetensors")
    assert layer_widths(small) == {"0": 3, "4": 5, "6": 10}
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in small.modules())


def test_named_groups_are_used_instead_of_tracing(ticket, machine):
    groups = [{"producers": ["fc2"], "consumers": ["output"]}]
    record = fused(ticket, machine, groups=groups, share=0.1).record
    assert record["widths"] == {"fc1": 300, "fc2": 10, "output": 10}
    assert permutation_error(ticket.model, [], torch.zeros(2, 1, 8, 8)) == 0


# --- what cannot be


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"params": 1, "macs": 1}, "choose one of --params, --macs"),
        ({"exact": True, "params": 9}, "has no meaning with it"),
        ({"select": "greedier"}, "did you mean 'greedy'"),
        ({"combine": "folds"}, "did you mean 'fold'"),
        ({"combine": "neuron_merging", "options": {"treshold": 1.0}}, "did you mean 'threshold'"),
        ({"distil": "5"}, "'5s' (seconds)"),
        ({"distil": "infs"}, "'5s' (seconds)"),
        ({"retrain": "3"}, "write a time as"),
        ({"retrain": "0ep"}, "at least 1it"),
        ({"share": 1.5}, "above 0 and at most 1"),
        ({"allocation": "fair"}, "curves or uniform"),
        ({"params": 10}, "narrowest network's cost"),
        ({"widths": {"#0": 5}}, "1 numbers for 2 groups"),
        ({"widths": {"fc3": 5}}, "no group 'fc3'"),
        ({"widths": {"fc1": 0}}, "keep 1 to 300"),
        ({"widths": {"fc1": 301}}, "keep 1 to 300"),
        ({"keep_accuracy": float("nan")}, "finite number"),
    ],
)
def test_requests_that_make_no_sense_are_refused_before_anything_is_written(ticket, machine, request_, message):
    before = sorted(machine.runs.iterdir())
    with pytest.raises(Exception, match=message.replace("(", r"\(").replace(")", r"\)")) as caught:
        fused(ticket, machine, **request_)
    assert caught.value.exit_code == 2
    assert sorted(machine.runs.iterdir()) == before


def test_networks_saved_without_batch_counters_are_taken_by_name(tmp_path, machine):
    """By shape and order, norms of equal size would be swapped."""
    from ticketlab.models import models

    torch.manual_seed(0)
    state = models.find("lenet_5")((1, 28, 28), 10, batch_norm=True).state_dict()
    del state["norm1.num_batches_tracked"], state["norm2.num_batches_tracked"]
    save_file(state, tmp_path / "w.safetensors")
    given = Elsewhere(tmp_path / "w.safetensors", "lenet_5", "mnist_5k")
    source = from_weights(given, machine.places, ["model.options.batch_norm=true"])
    assert len(source.notices) == 1  # the normalisation
    assert all(torch.equal(source.model.state_dict()[name], value) for name, value in state.items())


def test_a_torch_file_keeps_its_own_order(tmp_path, machine):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    sizes = [(64, 8), (8, 8), (8, 8), (8, 10)]\n"
        "    layers = [layer for size in sizes for layer in (nn.Linear(*size), nn.ReLU())]\n"
        "    return nn.Sequential(nn.Flatten(), *layers[:-1])\n"
    )
    names = ("zero", "second", "a_third", "last")  # not in the alphabet's order
    shapes = ((8, 64), (8, 8), (8, 8), (10, 8))
    state = {}
    for name, shape in zip(names, shapes, strict=True):
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(shape), torch.randn(shape[0])
    torch.save(state, tmp_path / "w.pt")
    source = from_weights(Elsewhere(tmp_path / "w.pt", f"{tmp_path}/net.py:build", "digits"), machine.places, ())
    assert torch.equal(source.model[3].weight, state["second.weight"])
    assert "second → 3, a_third → 5" in source.notices[1]


def test_weights_that_are_no_numbers_are_refused(tmp_path, machine):
    state = weights(tmp_path)
    save_file({**state, "fc1.bias": torch.full((300,), torch.nan)}, tmp_path / "w.safetensors")
    with pytest.raises(RunError, match=r"fc1\.bias not all finite numbers"):
        from_weights(Elsewhere(tmp_path / "w.safetensors", "lenet_300_100", "digits"), machine.places, ())
