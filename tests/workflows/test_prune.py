"""The invariants of iterative pruning with rewinding, on real digits."""

import itertools
import re

import pytest
import torch
from support import equal, states, untimed

from ticketlab.errors import FailedRun, Interrupted
from ticketlab.pruning.criteria import criteria
from ticketlab.pruning.masks import masked, remaining
from ticketlab.runs.store import Level, RunStore
from ticketlab.seeds import derive_seed
from ticketlab.workflows.inputs import load_data
from ticketlab.workflows.make_plan import make_plan
from ticketlab.workflows.prune import prune_replicate
from ticketlab.workflows.tickets import ticket_weights
from ticketlab.workflows.train_level import Settings


@pytest.fixture
def run(tiny, places, tmp_path):
    """Run the tiny recipe with overrides; returns plan, store and levels."""

    def go(*overrides, folder="run", settings=None):
        plan = make_plan(*load_data(tiny(*overrides), places))
        store = RunStore(tmp_path / folder)
        levels = [e for e in prune_replicate(plan, store, 1, settings or Settings()) if isinstance(e, Level)]
        return plan, store, levels

    return go


def test_each_level_keeps_exactly_the_ladders_count_and_nests(run):
    _plan, store, levels = run("pruning.levels=4")
    # by hand: 19200 15360 12288 9830 7864, 30000 24000 19200 15360 12288, 1000 900 810 729 656
    assert [level.remaining for level in levels] == [50200, 40260, 32298, 25919, 20808]
    masks = [store.read_ticket(1, index).mask for index in range(5)]
    for before, after in itertools.pairwise(masks):
        assert all(not (after[name] & ~before[name]).any() for name in after)
    assert [remaining(mask) for mask in masks] == [level.remaining for level in levels]
    assert [level.density for level in levels] == [level.remaining / 50200 for level in levels]


@pytest.mark.parametrize("rewind", [0, 7, 20])
def test_rewound_weights_equal_those_at_the_rewind_step_under_the_mask(run, rewind):
    plan, store, _ = run(f"pruning.rewind={rewind}it")
    # an independent dense training, stopped at the rewind step, is where the weights must come from
    _, dense, _ = run("pruning.levels=1", f"train.steps={max(rewind, 1)}it", "train.evaluate_every=1it", folder="dense")
    expected = plan.build(derive_seed(0, "init")).state_dict() if rewind == 0 else dense.read_weights(1, 0, "final")
    assert equal([store.read_rewind(1)], [expected])
    for level in (1, 2):
        ticket = store.read_ticket(1, level)
        assert equal([ticket_weights(plan, ticket)], [masked(expected, ticket.mask)])
        assert (ticket.weights is None) == (rewind == 0)


def test_a_criterion_that_works_in_place_harms_no_weight(run):
    @criteria.register("test_only_in_place")
    def in_place(weight, evidence):
        return weight.abs_()

    _, store, _ = run("pruning.levels=1")
    _, other, _ = run("pruning.levels=1", "pruning.criterion=test_only_in_place", folder="other")
    assert equal(states(other, 2), states(store, 2))


@pytest.mark.parametrize("method", ["imp", "oneshot"])
def test_the_mask_removes_the_smallest_trained_weights_of_each_layer(run, method):
    _, store, _ = run(f"method={method}")
    for level in (1, 2):
        source = level - 1 if method == "imp" else 0
        trained = store.read_weights(1, source, "final")
        before, after = store.read_ticket(1, source).mask, store.read_ticket(1, level).mask
        for name, kept in after.items():
            removed = before[name] & ~kept
            assert trained[name][removed].abs().max() <= trained[name][kept].abs().min()


def test_oneshot_reaches_the_same_densities_at_once(run):
    _, _, iterative = run("pruning.levels=3")
    _, _, oneshot = run("pruning.levels=3", "method=oneshot", folder="oneshot")
    assert [level.remaining for level in oneshot] == [level.remaining for level in iterative]
    assert untimed(oneshot[1]) == untimed(iterative[1])
    assert untimed(oneshot[2]) != untimed(iterative[2])


@pytest.mark.parametrize("after", ["rewind", "lr_rewind", "finetune", "reinit"])
def test_what_a_ticket_restarts_from(run, after):
    plan, store, levels = run(f"pruning.after={after}", "pruning.rewind=10it", "train.milestones=[20it]")
    ticket = store.read_ticket(1, 1)
    start = ticket_weights(plan, ticket)
    if after == "rewind":
        expected = store.read_rewind(1)
    elif after == "reinit":
        expected = plan.build(derive_seed(0, "reinit", 1)).state_dict()
        assert not torch.equal(expected["fc1.weight"], plan.build(derive_seed(0, "init")).state_dict()["fc1.weight"])
    else:
        expected = store.read_weights(1, 0, "final")
    assert equal([start], [masked(expected, ticket.mask)])
    assert levels[1].steps == (30 if after == "reinit" else 20)
    rates = [point["lr"] for point in levels[1].curve]
    high, low = 1.2e-3, pytest.approx(1.2e-4)
    assert rates == {"finetune": [low, low], "reinit": [high, high, low]}.get(after, [high, low])


def test_the_early_stop_step_is_the_minimum_of_validation_loss_and_its_weights_are_kept(run):
    _, store, levels = run("train.steps=60it", "train.lr=0.02")
    for level in levels:
        losses = {point["step"]: point["val_loss"] for point in level.curve}
        assert list(losses) == [10, 20, 30, 40, 50, 60]
        assert losses[level.early_stop_step] == min(losses.values()) == level.val_loss
    stopped = [level for level in levels if level.early_stop_step != 60]
    assert stopped, "the high learning rate should overshoot at some level"
    for level in stopped:
        assert not equal(
            [store.read_weights(1, level.level, "early_stop")], [store.read_weights(1, level.level, "final")]
        )


def test_the_same_seed_gives_the_same_result_and_another_seed_another(run):
    _, first, levels = run()
    _, second, again = run(folder="second")
    _, other, different = run("seed=1", folder="other")
    assert [untimed(level) for level in levels] == [untimed(level) for level in again]
    assert equal(states(first, 3), states(second, 3))
    assert not equal(states(first, 3), states(other, 3))
    assert different[0].seed == 1


class StopAt:
    """Asks to stop after a number of steps."""

    def __init__(self, steps):
        self.left = steps

    def __call__(self):
        self.left -= 1
        return self.left == 0


DROPOUT = """
from torch import nn

def build(inputs, classes):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 50), nn.BatchNorm1d(50), nn.ReLU(), nn.Dropout(0.3), nn.Linear(50, classes)
    )
"""
OWN = "model={file: net.py, name: build}"


@pytest.mark.parametrize(
    "overrides",
    [
        ("pruning.rewind=5it",),
        ("train.optimizer=sgd", "train.momentum=0.9", "train.weight_decay=1e-3", "train.warmup=12it"),
        (OWN, "pruning.scope=global", "pruning.output_rate=null"),
        ("pruning.after=lr_rewind", "data.augment=true", "train.lr=0.02"),
        ("pruning.rate=0.9", "pruning.criterion=random"),
    ],
    ids=str,
)
def test_a_run_stopped_anywhere_resumes_bit_for_bit(run, tmp_path, overrides):
    (tmp_path / "net.py").write_text(DROPOUT)
    _, whole, levels = run(*overrides, folder="whole")
    for steps in (1, 4, 5, 17, 30, 33, 41, 78):
        settings = Settings(should_stop=StopAt(steps), checkpoint_seconds=3600)
        with pytest.raises(Interrupted):
            run(*overrides, folder=f"stopped_{steps}", settings=settings)
        _, store, resumed = run(*overrides, folder=f"stopped_{steps}")
        assert [untimed(level) for level in resumed] == [untimed(level) for level in levels]
        assert equal(states(store, 3), states(whole, 3))


@pytest.mark.parametrize(
    ("overrides", "looks"),
    [
        (("method=at_init", "pruning={criterion: snip, densities: [0.3, 0.1], rounds: 3, examples: 150}"), 6),
        (("method=at_init", "pruning={criterion: synflow, scope: global, densities: [0.3], rounds: 3}"), 3),
        (("method=oneshot", "pruning={criterion: obs, compensate: true, densities: [0.3], after: lr_rewind}"), 20),
    ],
    ids=str,
)
def test_a_run_can_be_stopped_while_a_criterion_looks_at_examples(run, tmp_path, overrides, looks):
    _, whole, levels = run(*overrides, folder="whole")
    for look in (1, 2, looks):
        # level 0 asks after each of its 30 steps; at_init looks before each round, in batches of 100; the surgeon at
        # 1,000 examples for the mask, and again for what remains
        with pytest.raises(Interrupted, match="while the network was looked at"):
            run(*overrides, folder=f"stopped_{look}", settings=Settings(should_stop=StopAt(30 + look)))
        assert RunStore(tmp_path / f"stopped_{look}").read_ticket(1, 1) is None
        _, store, resumed = run(*overrides, folder=f"stopped_{look}")
        assert [untimed(level) for level in resumed] == [untimed(level) for level in levels]
        assert equal(states(store, 2), states(whole, 2))
    with pytest.raises(Interrupted, match="in level 1 at step 1"):
        run(*overrides, folder="later", settings=Settings(should_stop=StopAt(30 + looks + 1)))


def test_a_run_stopped_after_every_step_arrives_all_the_same(run):
    _, whole, levels = run("train.steps=6it", "pruning.levels=1", "train.evaluate_every=4it", folder="whole")
    for _ in range(12):
        with pytest.raises(Interrupted):
            run(
                "train.steps=6it", "pruning.levels=1", "train.evaluate_every=4it",
                folder="stopped", settings=Settings(should_stop=lambda: True),
            )  # fmt: skip
    _, store, resumed = run("train.steps=6it", "pruning.levels=1", "train.evaluate_every=4it", folder="stopped")
    assert [untimed(level) for level in resumed] == [untimed(level) for level in levels]
    assert equal(states(store, 2), states(whole, 2))


def test_levels_can_be_added_later_also_to_the_dense_network_alone(run):
    _, whole, levels = run("pruning.levels=3", folder="whole")
    _, _, (dense,) = run("pruning.levels=0", folder="extended")
    assert untimed(dense) == untimed(levels[0])
    run("pruning.levels=1", folder="extended")
    _, store, extended = run("pruning.levels=3", folder="extended")
    assert [untimed(level) for level in extended] == [untimed(level) for level in levels]
    assert equal(states(store, 4), states(whole, 4))


def test_batch_norm_statistics_are_rewound_too(run, tmp_path):
    (tmp_path / "net.py").write_text(DROPOUT)
    plan, store, _ = run(OWN, "pruning.rewind=6it")
    start = ticket_weights(plan, store.read_ticket(1, 2))
    assert torch.equal(start["2.running_mean"], store.read_rewind(1)["2.running_mean"])
    assert start["2.num_batches_tracked"] == 6
    assert store.read_weights(1, 2, "final")["2.num_batches_tracked"] == 30


def test_dead_weights_of_finished_levels_are_zero_and_sparse_layers_store_them_too(run):
    _, store, _ = run("pruning.rate=0.8", "train.optimizer=adamw", "train.weight_decay=0.1")
    for level in range(3):
        mask = store.read_ticket(1, level).mask
        for which in ("early_stop", "final"):
            weights = store.read_weights(1, level, which)
            assert weights["fc2.weight"].shape == (100, 300)
            assert all(not weights[name][~kept].any() for name, kept in mask.items())


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("weight * float('nan')", "criterion 'test_broken_0' at level 1: saliency of fc1.weight is not finite"),
        ("1 / 0", "criterion 'test_broken_2' at level 1, fc1.weight: ZeroDivisionError"),
        ("None", "criterion 'test_broken_3' gave NoneType for fc1.weight"),
        ("weight[:1]", r"criterion 'test_broken_1' gave shape \(1, 64\) for fc1.weight"),
    ],
)
def test_a_criterion_of_ones_own_that_is_wrong_is_named(run, tmp_path, returned, message):
    name = re.findall(r"test_broken_\d", message)[0]
    (tmp_path / "own.py").write_text(
        "from ticketlab.pruning.criteria import criteria\n"
        f"@criteria.register('{name}')\n"
        f"def broken(weight, evidence):\n    return {returned}\n"
    )
    with pytest.raises(FailedRun, match=message):
        run("plugins=[own.py]", f"pruning.criterion={name}")


def test_training_that_diverges_says_so(run):
    with pytest.raises(FailedRun, match=r"training diverged before step \d+ .*lower train\.lr"):
        run("train.optimizer=sgd", "train.lr=1e30")
