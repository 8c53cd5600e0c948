"""Penalties and the like draw level 0 to zero, later levels train without, and a stopped run goes on bit for bit."""

import pytest
import torch
from support import equal, states, stopped_at, untimed

from ticketlab.errors import FailedRun, RecipeError
from ticketlab.runs.store import RunStore
from ticketlab.workflows.inputs import check_recipe, load_data
from ticketlab.workflows.make_plan import make_plan
from ticketlab.workflows.progress import Notice
from ticketlab.workflows.prune import prune_replicate
from ticketlab.workflows.train_level import Settings

KINDS = {
    "group_lasso": "train.sparsify={kind: group_lasso, strength: 1e-3}",
    "targeted_dropout": "train.sparsify={kind: targeted_dropout, share: 0.8}",
    "global_sparse_momentum": "train.sparsify={kind: global_sparse_momentum, share: 0.05}",
    "l0": "train.sparsify={kind: l0, strength: 1e-3, gate_lr: 0.3}",
    "variational_dropout": "train.sparsify={kind: variational_dropout, strength: 1e-3, gate_lr: 0.5}",
}
GATES = {
    "l0": "train.sparsify={kind: l0, strength: 1e-4, gate_lr: 0.1, probability: 0.3}",
    "variational_dropout": "train.sparsify={kind: variational_dropout, strength: 1e-4, gate_lr: 0.3}",
}
SGD = ["train.optimizer=sgd", "train.lr=0.05", "train.momentum=0.9", "train.weight_decay=1e-3"]


@pytest.mark.parametrize("kind", KINDS)
def test_level_0_is_another_network_and_a_stopped_run_the_same(pruned, tiny, places, tmp_path, kind):
    asked = ["method=oneshot", "pruning.levels=1", *SGD, KINDS[kind]]
    whole, _ = pruned(*asked)
    plain, _ = pruned(*asked[:-1], folder="plain")
    name = "fc1.weight"
    assert not torch.equal(whole.read_weights(1, 0, "final")[name], plain.read_weights(1, 0, "final")[name])
    assert all(value.isfinite().all() for value in whole.read_weights(1, 0, "final").values())
    plan = make_plan(*load_data(tiny(*asked), places))
    store = RunStore(tmp_path / "stopped")
    stopped_at(plan, store, (7, 15))
    assert [untimed(one) for one in store.levels(1)] == [untimed(one) for one in whole.levels(1)]
    assert equal(states(store, 2), states(whole, 2))


def test_later_levels_train_without(pruned):
    """The same mask and weights train to the same network, whatever level 0 was trained with."""
    found = []
    for folder, strength in (("one", "1e-9"), ("other", "2e-9")):  # too weak to move a mask
        setting = f"train.sparsify={{kind: l1, strength: {strength}}}"
        store, _ = pruned("pruning={levels: 1, criterion: large_init}", setting, folder=folder)
        found.append(store)
    assert equal(*([store.read_weights(1, 1, "final")] for store in found))


def test_a_strong_group_lasso_and_unit_l1_remove_whole_units(pruned):
    units = "pruning={levels: 1, rate: 0.5, criterion: unit_l1, ignore: [output]}"
    store, _ = pruned("method=oneshot", units, KINDS["group_lasso"])
    mask = store.read_ticket(1, 1).mask
    assert mask.pop("output.weight").all()
    for kept in mask.values():
        by_unit = kept.sum(1)
        cut = (by_unit > 0) & (by_unit < kept.shape[1])
        assert int(cut.sum()) <= 1, "one unit at most is cut in two, for the exact count"
        assert int(kept.sum()) == kept.numel() // 2


@pytest.mark.parametrize("method", ["at_init", "dynamic", "gradual"])
def test_a_method_that_does_not_prune_a_trained_level_0_is_refused(tiny, method):
    with pytest.raises(RecipeError, match="draws the weights of a trained level 0 to zero"):
        check_recipe(tiny(f"method={method}", KINDS["group_lasso"]))


@pytest.mark.parametrize("kind", ["l0", "variational_dropout"])
def test_a_search_sees_no_masks_under_gates(tiny, kind):
    search = ["method=early_bird", "pruning.levels=1", "early_bird={densities: [0.5]}"]
    with pytest.raises(RecipeError, match=f"{kind} has gates of its own"):
        check_recipe(tiny(*search, KINDS[kind]))


def test_gates_leave_plain_networks_behind(pruned):
    """Closed gates are stored as zeros; what levels rewind to never had gates."""
    asked = ["method=oneshot", "pruning={levels: 1, rate: 0.6, ignore: [output]}", *SGD]
    plain, _ = pruned(*asked, folder="plain")
    for kind, setting in GATES.items():
        store, _ = pruned(*asked, setting, folder=kind)
        weights = store.read_weights(1, 0, "final")
        assert weights.keys() == plain.read_weights(1, 0, "final").keys()
        closed = {name: weights[name] == 0 for name in ("fc1.weight", "fc2.weight")}
        assert all(0 < int(gone.sum()) < gone.numel() for gone in closed.values())
        assert equal([store.read_rewind(1)], [plain.read_rewind(1)])
        assert weights["output.weight"].all(), "never pruned, so without gates"
        share = store.read_level(1, 0).curve[-1]["gates_open/fc1.weight"]
        assert share == pytest.approx(1 - float(closed["fc1.weight"].double().mean()))
        mask = store.read_ticket(1, 1).mask
        assert sum(int(gone.sum()) for gone in closed.values()) < 0.6 * 50200, "or the next line cannot hold"
        assert not any(mask[name][gone].any() for name, gone in closed.items()), "closed ones go first"


def test_the_second_product_of_noisy_layers_is_counted(pruned):
    asked = ["method=oneshot", "pruning.levels=1", *SGD]
    plain, _ = pruned(*asked, folder="plain")
    noisy, _ = pruned(*asked, KINDS["variational_dropout"], folder="noisy")
    assert noisy.read_level(1, 0).flops == 2 * plain.read_level(1, 0).flops
    assert noisy.read_level(1, 1).flops == plain.read_level(1, 1).flops
    some, _ = pruned("pruning.ignore=[output]", *asked, KINDS["variational_dropout"], folder="some")
    # three products of the output layer (1,000 weights) for each of 32 examples and 30 steps, two operations each
    assert noisy.read_level(1, 0).flops - some.read_level(1, 0).flops == 3 * 2 * 1000 * 32 * 30


def test_layers_that_close_are_told_and_a_whole_network_that_does_is_an_error(tiny, places, tmp_path):
    closing = "train.sparsify={kind: l0, strength: 10, gate_lr: 0.5}"
    plan = make_plan(*load_data(tiny("method=oneshot", "pruning.levels=1", *SGD, closing), places))
    store, told = RunStore(tmp_path / "closed"), []
    for _ in range(2):  # the same command again says the same
        with pytest.raises(FailedRun, match=r"level 0 has trained all .* use a smaller train\.sparsify\.strength"):
            told.extend(prune_replicate(plan, store, 1, Settings()))
    for name in plan.sizes:
        assert any(f"all weights of layer '{name}' are zero" in one.text for one in told if isinstance(one, Notice))


def test_weights_of_closed_gates_that_stay_are_counted_aloud(tiny, places, tmp_path):
    closing = "train.sparsify={kind: l0, strength: 0.001, gate_lr: 0.3}"
    plan = make_plan(*load_data(tiny("method=oneshot", "pruning={levels: 1, rate: 0.1}", *SGD, closing), places))
    store = RunStore(tmp_path / "filled")
    told = [one.text for one in prune_replicate(plan, store, 1, Settings()) if isinstance(one, Notice)]
    weights, mask = store.read_weights(1, 0, "final"), store.read_ticket(1, 1).mask
    closed = sum(int(mask[name].sum()) - int(weights[name].count_nonzero()) for name in plan.sizes)
    assert closed > 0 and sum(int(kept.sum()) for kept in mask.values()) == 45180
    assert any(f"level 1: {closed:,} of the 45,180 weights that are kept had been trained to zero" in t for t in told)


def test_a_training_that_diverges_says_what_may_be_too_much(tiny, places, tmp_path):
    plan = make_plan(*load_data(tiny(*SGD, "train.sparsify={kind: group_lasso, strength: 1e30}"), places))
    with pytest.raises(FailedRun, match=r"try a lower train\.lr or train\.sparsify\.strength$"):
        list(prune_replicate(plan, RunStore(tmp_path / "far"), 1, Settings()))


def test_gates_and_a_rewind_step_do_not_go_together(tiny):
    with pytest.raises(RecipeError, match="from this step on they would be without"):
        check_recipe(tiny("pruning.rewind=5it", KINDS["l0"]))
    check_recipe(tiny("pruning.rewind=5it", KINDS["variational_dropout"]))


@pytest.mark.parametrize("overrides", [[], ["train.optimizer=sgd", "train.momentum=0.9"], ["train.weight_decay=1e-3"]])
def test_global_sparse_momentum_needs_momentum_and_decay(tiny, overrides):
    with pytest.raises(RecipeError, match="with momentum and weight_decay"):
        check_recipe(tiny(*overrides, KINDS["global_sparse_momentum"]))


def test_whole_classes_do_not_go(tiny, places):
    with pytest.raises(RecipeError, match=r"whole classes from the output layer: add ignore: \[output\]"):
        make_plan(*load_data(tiny("pruning={criterion: unit_l1}"), places))
