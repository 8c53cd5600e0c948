"""Weights that are replaced while a level trains: exact counts, zeros, resumed runs, the gradients that decide."""

import pytest
import torch
from support import equal, states, stopped_at, untimed
from torch.nn import functional

from ticketlab.data.batches import shuffled_batches
from ticketlab.errors import RecipeError, RunError
from ticketlab.pruning.masks import masked
from ticketlab.report import run_levels
from ticketlab.runs.store import RunStore
from ticketlab.seeds import derive_seed
from ticketlab.trained_networks import run_networks
from ticketlab.workflows.controls import control_run
from ticketlab.workflows.inputs import check_recipe, load_data
from ticketlab.workflows.make_plan import make_plan
from ticketlab.workflows.tickets import mask_at_init
from ticketlab.workflows.trainer import LevelTask, level_steps, make_trainer

PRUNING = "pruning={criterion: random, densities: [0.2], allocation: er}"
NAMES = ["fc1.weight", "fc2.weight", "output.weight"]
KINDS = {
    "rigl": ["dynamic={every: 5it}"],
    "set": ["dynamic={every: 5it, grow: random, decay: constant}"],
    "momentum": ["dynamic={every: 5it, grow: momentum}"],
    "rewiring": ["dynamic={every: 1it, grow: random, drop: sign}"],
    "shaken": ["dynamic={every: 1it, grow: random, drop: sign, l1: 1e-3, temperature: 1e-7}"],
}
SGD = ["train.optimizer=sgd", "train.lr=0.05"]
ADAMW = ["train.optimizer=adamw", "train.weight_decay=0.1"]


def kept(mask):
    return {name: int(mask[name].sum()) for name in NAMES}


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_weights_remain_and_removed_ones_are_zero(pruned, kind):
    optimizer = SGD if kind == "shaken" else ADAMW
    store, _ = pruned("method=dynamic", PRUNING, *KINDS[kind], *optimizer)
    static, _ = pruned("method=at_init", PRUNING, *optimizer, folder="static")
    before, after = static.read_ticket(1, 1).mask, store.read_ticket(1, 1).mask
    assert sum(kept(after).values()) == sum(kept(before).values()) == 10040
    if kind != "momentum":
        assert kept(after) == kept(before)
    assert any(not torch.equal(before[name], after[name]) for name in NAMES)
    for which in ("final", "early_stop"):
        weights = store.read_weights(1, 1, which)
        assert all(bool((weights[name][~after[name]] == 0).all()) for name in NAMES)
        assert sum(int(weights[name].count_nonzero()) for name in NAMES) > 0.95 * 10040
    ticket = store.read_ticket(1, 1)
    assert ticket.weights is None and ticket.facts["rewind_step"] == 0
    (level,) = [level for level in run_levels(store) if level.level]
    assert level.early_stop_step >= 20 and level.remaining == 10040
    assert level.curve[-1]["explored"] > level.density


def test_the_first_replacement_is_rigls(pruned, tiny, places):
    """The mask after one replacement, from formulas: smallest |w| out, largest gradient in, both of one step."""
    asked = ["method=dynamic", PRUNING, "dynamic={every: 4it, until: 8it}", *SGD]  # the second would fall on the end
    store, _ = pruned(*asked)
    static, _ = pruned("method=at_init", PRUNING, *SGD, folder="static")
    plan = make_plan(*load_data(tiny(*asked), places))
    mask = static.read_ticket(1, 1).mask
    model = plan.build(derive_seed(0, "init"))
    model.load_state_dict(masked(model.state_dict(), mask))
    batches = shuffled_batches(plan.splits.train, 32, derive_seed(0, "order"), 0, False)
    for _ in range(4):
        model.zero_grad()
        images, labels = next(batches)
        functional.cross_entropy(model(images), labels).backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.sub_(0.05 * gradients[name] * mask.get(name, torch.tensor(True)))
    for name in NAMES:
        weight, old = dict(model.named_parameters())[name].detach(), mask[name]
        count = int(0.3 / 2 * int(old.sum()))  # at half of the time a cosine has come down to a half
        alive = weight.abs().masked_fill(~old, torch.inf).flatten().sort(stable=True).indices[:count]
        left = old.flatten().clone()
        left[alive] = False
        best = gradients[name].abs().flatten().masked_fill(left, -1).sort(descending=True).indices[:count]
        left[best] = True
        assert int(left.sum()) == int(old.sum())
        assert torch.equal(store.read_ticket(1, 1).mask[name].flatten(), left)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_stopped_goes_on_bit_for_bit(pruned, tiny, places, tmp_path, kind):
    asked = ["method=dynamic", PRUNING, *KINDS[kind], *(SGD if kind == "shaken" else ADAMW)]
    whole, _ = pruned(*asked)
    plan = make_plan(*load_data(tiny(*asked), places))
    store = RunStore(tmp_path / "stopped")
    stopped_at(plan, store, (37, 44, 51))  # level 0 has 30 steps
    assert [untimed(one) for one in store.levels(1)] == [untimed(one) for one in whole.levels(1)]
    assert equal(states(store, 2), states(whole, 2))


def test_pull_and_noise_reach_a_step_of_what_may_be_removed(tiny, places):
    """Beside a plain step: less η · l1 · sign(w), less √(2 η T) ν, of remaining weights; nothing of ignored layers."""
    pruning = "pruning={criterion: random, densities: [0.2], ignore: [output]}"
    start, found = {}, {}
    for name, more in (("plain", ""), ("drawn", ", l1: 0.01"), ("shaken", ", temperature: 1e-4")):
        section = f"dynamic={{every: 1it, grow: random, drop: sign{more}}}"
        plan = make_plan(*load_data(tiny("method=dynamic", pruning, *SGD, section), places))
        start = plan.build(0).state_dict()
        mask = mask_at_init(plan, 1, 1, start)
        task = LevelTask(1, 0, 1, mask, masked(start, mask), 0, 30, may_grow=True)
        trainer = make_trainer(plan, task, torch.device("cpu"))
        torch.manual_seed(5)
        next(level_steps(plan, task, trainer, plan.splits.train, 30))
        found[name] = trainer.net.whole(trainer.model.state_dict())
    torch.manual_seed(5)
    for name in NAMES:
        moves = mask[name] if name != "output.weight" else torch.zeros_like(mask[name])
        drawn = found["plain"][name] - 0.05 * 0.01 * start[name].sign() * moves
        torch.testing.assert_close(found["drawn"][name], drawn)
        noise = torch.randn_like(start[name]) * moves if name != "output.weight" else 0
        torch.testing.assert_close(found["shaken"][name], found["plain"][name] - (2 * 0.05 * 1e-4) ** 0.5 * noise)


@pytest.mark.parametrize("kind", KINDS)
def test_ignored_layers_stay_whole(pruned, kind):
    """Sparse momentum moves weights from layer to layer, but none out of those that are never pruned."""
    pruning = "pruning={criterion: random, densities: [0.45], ignore: [fc2]}"
    store, _ = pruned("method=dynamic", pruning, *KINDS[kind], *SGD)
    mask = store.read_ticket(1, 1).mask
    assert mask["fc2.weight"].all() and sum(kept(mask).values()) == 30000 + round(0.45 * 20200)


def test_gradients_of_removed_weights_are_counted(pruned):
    levels = {}
    for kind in ("set", "rigl", "momentum"):
        store, _ = pruned("method=dynamic", PRUNING, *KINDS[kind], folder=kind)
        levels[kind] = run_levels(store)[1]
    dense = 2 * (50200 - 10040) * 32  # two operations for each removed weight, 32 examples a step
    base = levels["set"].remaining_flops
    assert levels["rigl"].remaining_flops - base == pytest.approx(4 * dense)  # at steps 5, 10, 15, 20
    by_layer = abs(levels["momentum"].remaining_flops - base - 20 * dense)
    assert by_layer < 0.3 * base, "layers share the weights otherwise, which moves operations, too"
    assert [network.flops for network in run_networks(store) if network.density < 1] == [levels["momentum"].flops]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dynamic={grow: random}"], "belongs to method: dynamic, not to imp"),
        (["method=dynamic", "dynamic={momentum: 0.5}"], "belongs to grow: momentum"),
        (["method=dynamic", "dynamic={drop: sign, fraction: 0.5}"], "leave fraction and decay out"),
        (["method=dynamic", "dynamic={l1: 1e-4}"], "belongs to drop: sign"),
        (["method=dynamic", "dynamic={temperature: 1e-4}"], "belongs to drop: sign"),
        (["method=dynamic", "dynamic={drop: sign, grow: random, temperature: 1e-4}"], "adam would scale it"),
        (["method=dynamic", "dynamic={every: 0it}"], "must be at least 1it"),
        (["method=dynamic", "pruning={criterion: flipout}"], "before training there are none"),
        (["method=dynamic", "watch=[sign_flips]"], "not counted where weights are replaced"),
        (["method=dynamic", "pruning={reclaim: dead_paths}"], "weights that are replaced come anywhere"),
        (["method=dynamic", "pruning={after: lr_rewind}"], "dynamic prunes before it trains"),
    ],
)
def test_what_dynamic_training_cannot_follow_is_told(tiny, overrides, message):
    with pytest.raises(RecipeError, match=message):
        check_recipe(tiny(*overrides))


@pytest.mark.parametrize(
    ("section", "message"),
    [("{every: 25it}", "at step 25, is not before step 22"), ("{every: 5it, until: 31it}", "comes after the end")],
)
def test_replacements_that_do_not_fit_are_told(tiny, places, section, message):
    with pytest.raises(RecipeError, match=message):
        make_plan(*load_data(tiny("method=dynamic", PRUNING, f"dynamic={section}"), places))


def test_a_dynamic_run_has_no_controls(pruned):
    store, machine = pruned("method=dynamic", PRUNING, *KINDS["rigl"])
    with pytest.raises(RunError, match="its masks moved while they were trained"):
        list(control_run(store, [1], ["reinit"], machine))
