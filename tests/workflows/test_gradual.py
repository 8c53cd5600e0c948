"""Pruning in one training: sign_flip and gradual, on real digits; against a plain loop that knows none of this."""

import itertools

import pytest
import torch
from support import equal, states, untimed
from torch.nn import functional

from ticketlab.data.batches import shuffled_batches
from ticketlab.errors import Interrupted, RecipeError
from ticketlab.pruning.masks import remaining
from ticketlab.runs.store import Level, RunStore
from ticketlab.seeds import derive_seed
from ticketlab.training.loop import revived
from ticketlab.workflows.early_bird import early_bird_replicate
from ticketlab.workflows.inputs import load_data
from ticketlab.workflows.make_plan import make_plan
from ticketlab.workflows.progress import Notice
from ticketlab.workflows.prune import prune_replicate
from ticketlab.workflows.train_level import Settings

SGD = ("train.optimizer=sgd", "train.lr=0.05", "train.momentum=0.9", "train.weight_decay=1e-3")
GLOBAL = ("pruning.scope=global", "pruning.rate=0.5", "pruning.output_rate=null")
GRADUAL = ("method=gradual", *SGD, *GLOBAL)
FLIPOUT = ("method=sign_flip", "pruning.criterion=flipout", *SGD, *GLOBAL)
FIRST_FLIP = ("method=sign_flip", "sign_flips.at_once=1", "schedule.first=6it", *SGD, *GLOBAL)


@pytest.fixture
def run(tiny, places, tmp_path):
    """Run the tiny recipe with overrides; returns plan, store and everything that was told."""

    def go(*overrides, folder="run", settings=None):
        plan = make_plan(*load_data(tiny(*overrides), places))
        store = RunStore(tmp_path / folder)
        return plan, store, list(prune_replicate(plan, store, 1, settings or Settings()))

    return go


def levels_of(told):
    return [event for event in told if isinstance(event, Level)]


def test_the_levels_of_one_training_follow_each_other_and_keep_exact_counts(run):
    plan, store, told = run(*GRADUAL, "pruning.levels=4")
    levels = levels_of(told)
    # four prunings in 30 steps; half of what remains goes each time, halves rounded up
    assert [plan.start(index) for index in range(5)] == [0, 6, 12, 18, 24]
    assert [level.steps for level in levels] == [6] * 5
    assert [level.remaining for level in levels] == [50200, 25100, 12550, 6275, 3137]
    masks = [store.read_ticket(1, index).mask for index in range(5)]
    assert all(not (after[n] & ~before[n]).any() for before, after in itertools.pairwise(masks) for n in after)
    assert [point["step"] for level in levels for point in level.curve] == [6, 12, 18, 24, 30]


def plain_training(plan, saliency, starts, keeps):
    """The whole training by hand; returns final weights, flips before the first pruning, and the mask."""
    model = plan.build(derive_seed(0, "init"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    batches = shuffled_batches(plan.splits.train, 32, derive_seed(0, "order"), 0)
    weights = {name: p for name, p in model.named_parameters() if name.endswith("weight")}
    mask = {name: torch.ones_like(p, dtype=torch.bool) for name, p in weights.items()}
    flips = {name: torch.zeros_like(p) for name, p in weights.items()}
    early = {}
    for step in range(30):
        if step in starts:
            early = early or {name: count.clone() for name, count in flips.items()}
            flat = torch.cat([saliency(p.detach(), flips[n])[mask[n]].flatten() for n, p in weights.items()])
            limit = flat.sort().values[len(flat) - keeps[starts.index(step)]]
            for name, p in weights.items():
                mask[name] &= saliency(p.detach(), flips[name]) >= limit
                p.data.mul_(mask[name])
                optimizer.state[p]["momentum_buffer"].mul_(mask[name])
        before = {name: p.detach() < 0 for name, p in weights.items()}
        images, labels = next(batches)
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        for name, p in weights.items():
            p.grad.mul_(mask[name])
        optimizer.step()
        for name, p in weights.items():
            flips[name] += (p.detach() < 0) != before[name]
    return dict(model.state_dict()), early, mask


@pytest.mark.parametrize(("overrides", "saliency"), [
    (GRADUAL, lambda w, _: w.abs()),
    (FLIPOUT, lambda w, flips: w.double().abs() ** 2 / (flips + 1)),
    ((*FLIPOUT, "pruning.options={p: 0.5}"), lambda w, flips: w.double().abs() ** 0.5 / (flips + 1)),
], ids=["magnitude", "flipout", "flipout p=0.5"])  # fmt: skip
def test_the_run_equals_a_plain_loop(run, overrides, saliency):
    plan, store, _ = run(*overrides, "pruning.levels=4", "train.lr=0.05")
    weights, flips, mask = plain_training(plan, saliency, [6, 12, 18, 24], [25100, 12550, 6275, 3137])
    final = store.read_weights(1, 4, "final")
    ours = store.read_ticket(1, 4).mask
    assert remaining(ours) == 3137
    # layers that became sparse add up in another order, so that a few borderline weights may change places
    agree = sum(int((ours[name] & mask[name]).sum()) for name in mask)
    assert agree >= 3130
    for name, value in weights.items():
        both = ours[name] & mask[name] if name in mask else torch.ones_like(value, dtype=torch.bool)
        torch.testing.assert_close(final[name][both], value[both], rtol=2e-2, atol=2e-3)
    if "method=sign_flip" in overrides:
        counted = store.read_flips(1, 0)
        assert all(torch.equal(counted[f"counts/{name}"], flips[name].short()) for name in mask)
        assert sum(int(count.sum()) for name, count in flips.items()) > 100


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("optimizer", [(), ("train.optimizer=adam", "train.momentum=0", "train.lr=0.02")], ids=str)
def test_counts_go_on_from_level_to_level_unless_they_are_reset(run, reset, optimizer, monkeypatch):
    from ticketlab.pruning.sign_flips import SignFlips

    happened = []
    update = SignFlips.update_

    def noted(self):
        flipped = update(self)
        happened.append({n: part.clone() for n, part in zip(self.weights, flipped.split(self._sizes), strict=True)})
        return flipped

    monkeypatch.setattr(SignFlips, "update_", noted)
    rates = ("pruning.rate=0.1", "pruning.levels=3", "train.gradient_noise=3.0", f"sign_flips.reset={reset}".lower())
    _, store, _ = run(*FLIPOUT, *optimizer, *rates)
    mask, counted = store.read_ticket(1, 3).mask, store.read_flips(1, 3)
    first = 21 if reset else 0  # 30 steps in four levels of 7, the last one of 9
    total = 0
    for name, kept in mask.items():
        expected = sum(flips[name].int() for flips in happened[first:]).view(kept.shape)
        assert torch.equal(counted[f"counts/{name}"].int()[kept], expected[kept])
        total += int(expected[kept].sum())
    assert total > 50 and len(happened) == 30


def test_a_half_life_goes_on_from_level_to_level(run):
    _, store, _ = run(*FLIPOUT, "pruning.levels=2", "pruning.rate=0.1", "sign_flips.half_life=3it",
                      "train.gradient_noise=3.0")  # fmt: skip
    for name, kept in store.read_ticket(1, 2).mask.items():
        recent, counts = (store.read_flips(1, 2)[f"{kind}/{name}"][kept] for kind in ("recent", "counts"))
        before = store.read_flips(1, 1)[f"recent/{name}"][kept]
        quiet = counts == store.read_flips(1, 1)[f"counts/{name}"][kept]
        # ten steps without a flip leave 2^(−10/3) of what was there
        torch.testing.assert_close(recent[quiet], before[quiet] * 2 ** (-10 / 3))
        assert quiet.any() and before[quiet].any()


def test_a_cubic_schedule_removes_most_early_and_ends_at_the_same_count(run):
    _, _, told = run(*GRADUAL, "pruning.levels=4", "schedule.shape=cubic")
    # 3137 + 47063 · (1 − n/4)³ by hand: 22991.7 9019.9 3872.4 3137
    assert [level.remaining for level in levels_of(told)] == [50200, 22992, 9020, 3872, 3137]


def test_removed_weights_stay_zero_and_the_last_one_of_a_layer_stays(run):
    _, store, told = run(*FLIPOUT, "pruning.rate=0.97", "pruning.levels=3", "train.gradient_noise=1.0")
    mask, final = store.read_ticket(1, 3).mask, store.read_weights(1, 3, "final")
    assert all(not final[name][~kept].any() for name, kept in mask.items())
    assert all(kept.any() for kept in mask.values())
    notices = [event.text for event in told if isinstance(event, Notice)]
    alone = [name for name, kept in mask.items() if int(kept.sum()) == 1]
    assert all(any(name in text and "last weight" in text for text in notices) for name in alone)


@pytest.mark.parametrize("overrides", [
    (*FLIPOUT, "train.gradient_noise=1.0"),
    (*FLIPOUT, "pruning.criterion=hybrid", "sign_flips.half_life=5it", "pruning.reclaim=dead_paths"),
    (*FLIPOUT, "sign_flips.reset=true", "train.optimizer=adam", "train.momentum=0", "watch=[sign_flips]"),
    (*FIRST_FLIP, "train.gradient_noise=0.5"),
    (*FIRST_FLIP, "sign_flips.at_once=2", "train.lr=0.2"),
    (*GRADUAL, "pruning.criterion=random", "pruning.rate=0.8"),
], ids=str)  # fmt: skip
def test_a_run_stopped_anywhere_resumes_bit_for_bit(run, overrides):
    _, whole, told = run(*overrides, "pruning.levels=3", folder="whole")
    for steps in (1, 6, 7, 9, 15, 16, 22, 29):
        settings = Settings(should_stop=iter([False] * (steps - 1) + [True] + [False] * 99).__next__)
        with pytest.raises(Interrupted):
            run(*overrides, "pruning.levels=3", folder=f"stopped_{steps}", settings=settings)
        _, store, resumed = run(*overrides, "pruning.levels=3", folder=f"stopped_{steps}")
        assert [untimed(level) for level in levels_of(resumed)] == [untimed(level) for level in levels_of(told)]
        assert equal(states(store, 4), states(whole, 4))
        assert equal([store.read_flips(1, 3)], [whole.read_flips(1, 3)])


def test_noise_changes_the_training_and_is_the_same_for_the_same_seed(run):
    _, plain, _ = run(*GRADUAL, folder="plain")
    _, noisy, _ = run(*GRADUAL, "train.gradient_noise=1.0", folder="noisy")
    _, again, _ = run(*GRADUAL, "train.gradient_noise=1.0", folder="again")
    assert not equal(states(plain, 3), states(noisy, 3))
    assert equal(states(again, 3), states(noisy, 3))


def test_first_flip_removes_only_what_flipped_until_the_count_is_reached(run):
    # 24 of 30 steps in one level, of which the first 12 lose weights; a rate so small that flips alone suffice
    plan, store, told = run(*FIRST_FLIP, "pruning.levels=1", "pruning.rate=0.01", "watch=[sign_flips]")
    level = levels_of(told)[1]
    assert level.remaining == 50200 - 502
    mask, start = store.read_ticket(1, 1).mask, store.read_weights(1, 0, "final")
    final, counts = store.read_weights(1, 1, "final"), store.read_flips(1, 1)
    densities = [point["density/remaining"] for point in level.curve]
    assert densities[0] == densities[-1] == level.density, "all gone within the first steps"
    for name, kept in mask.items():
        # a weight that went had flipped once since the grace period, at once
        assert (counts[f"counts/{name}"][~kept] == 1).all()
        assert not final[name][~kept].any() and start[name][~kept].all()
    assert plan.schedule.completed(1) == 18


def test_of_a_level_that_loses_weights_only_points_at_its_density_count(run):
    rates = ("pruning.levels=1", "pruning.rate=0.998", "train.evaluate_every=1it")
    _, store, told = run(*FIRST_FLIP, *rates)
    level = levels_of(told)[1]
    assert level.early_stop_step >= 18
    early = store.read_weights(1, 1, "early_stop")
    assert sum(int((early[name] != 0).sum()) for name in store.read_ticket(1, 1).mask) <= level.remaining == 100


def test_what_has_not_flipped_by_the_middle_of_the_level_goes_by_the_criterion(run):
    _, store, told = run(*FIRST_FLIP, "pruning.levels=1", "pruning.rate=0.9", "train.evaluate_every=1it")
    level = levels_of(told)[1]
    densities = {point["step"]: point["density/remaining"] for point in level.curve}
    steps = sorted(densities)
    assert all(densities[a] >= densities[b] for a, b in itertools.pairwise(steps))
    assert densities[17] > densities[18] == densities[30] == level.density
    assert level.remaining == 5020
    assert remaining(store.read_ticket(1, 1).mask) == 5020


def test_live_paths_only_where_dead_ones_are_reclaimed(run):
    rates = ("pruning.rate=0.9", "pruning.levels=3")
    _, _, plain = run(*GRADUAL, *rates, folder="plain")
    _, _, live = run(*GRADUAL, *rates, "pruning.reclaim=dead_paths", folder="live")
    # 50200 → 5020 → 502 → 50
    assert [level.remaining for level in levels_of(live)] == [50200, 5020, 502, 50]
    assert levels_of(plain)[3].effective_density < levels_of(plain)[3].density
    assert [level.effective_density for level in levels_of(live)] == [level.density for level in levels_of(live)]


def test_iterative_pruning_can_judge_by_flips_too(run):
    _, store, told = run("pruning.criterion=flipout", "pruning.output_rate=null", "train.lr=0.01")
    first, trained = store.read_ticket(1, 1).mask, store.read_weights(1, 0, "final")
    flips = store.read_flips(1, 0)
    for name, kept in first.items():
        saliency = trained[name].double().abs() ** 2 / (flips[f"counts/{name}"] + 1)
        assert saliency[kept].min() >= saliency[~kept].max()
    assert all(level.sign_flips is not None for level in levels_of(told))


def test_watched_flips_are_in_the_record_the_curve_and_the_files(run):
    _, store, told = run("watch=[sign_flips]", "pruning.levels=1", "train.lr=0.01")
    for level in levels_of(told):
        counts = store.read_flips(1, level.level)
        mask = store.read_ticket(1, level.level).mask
        for name, kept in mask.items():
            of_kept = counts[f"counts/{name}"][kept].double()
            assert level.sign_flips[name] == {
                "per_weight": pytest.approx(of_kept.mean().item()),
                "never": pytest.approx((of_kept == 0).double().mean().item()),
            }
            # rates are per weight and step, over stretches of ten steps
            rates = [point[f"sign_flip_rate/{name}"] for point in level.curve]
            assert sum(rates) * 10 == pytest.approx(level.sign_flips[name]["per_weight"])
        folder = store.level_dir(1, level.level)
        assert (folder / "sign_flips.png").exists() and (folder / "sign_flips.svg").exists()


def test_watching_changes_no_weight(run):
    _, plain, _ = run(folder="plain")
    _, watched, _ = run("watch=[sign_flips]", folder="watched")
    assert equal(states(plain, 3), states(watched, 3))


@pytest.mark.parametrize(("overrides", "message"), [
    (("method=sign_flip",), "pruning.criterion: 'magnitude' sees no sign flips"),
    (("method=gradual", "pruning.criterion=flipout"), "use method: sign_flip"),
    (("method=gradual", "pruning.after=reinit"), "pruning.after: gradual goes on"),
    (("method=gradual", "pruning.rewind=5it"), "pruning.rewind: gradual goes on"),
    (("schedule.every=5it",), "schedule: belongs to methods sign_flip and gradual"),
    (("sign_flips.half_life=5it",), "sign_flips: nothing counts sign flips"),
    (("pruning.criterion=flipout", "sign_flips.reset=true"), "sign_flips.reset: imp counts anew"),
    (("sign_flips.at_once=1",), "sign_flips.at_once: belongs to method: sign_flip"),
    (("method=gradual", "schedule.every=20it"), "schedule.every: the last of 2 prunings, at step 40, leaves no time"),
    (("method=gradual", "schedule.first=30it"), "pruning.levels: 2 prunings do not fit before step 30"),
    (("method=gradual", "pruning.levels=0"), "pruning.levels: method gradual prunes at least once"),
    (("method=gradual", "pruning.levels=40"), "pruning.levels: 40 prunings do not fit before step 30"),
    (("method=gradual", *GLOBAL, "pruning.rate=0.99", "pruning.levels=9"), "nothing is left to remove from level 4 on"),
    (("method=gradual", "schedule.until=1it"), "schedule.until: 2 prunings do not fit before step 1"),
    (("method=gradual", "schedule.first=0it"), "schedule.first: must be at least 1it"),
    (("pruning.criterion=flipout", "pruning.options={p: -1}"), "p is a number from 0"),
    (("pruning.criterion=flipout", "pruning.options={p: a}"), "options of 'flipout' are numbers"),
    (("method=gradual", "schedule.first=20it", "schedule.until=10it"), "schedule.until: step 10 does not come after"),
    (("method=gradual", "schedule.until=30it"), "schedule.until: step 30 does not come before the end"),
    (("method=gradual", "schedule={until: 20it, every: 5it}"), "schedule.until: say every or until"),
    ((*FIRST_FLIP, "schedule.every=1it"), "sign_flips.at_once: needs at least 2 steps"),
    ((*FIRST_FLIP, "pruning.reclaim=dead_paths"), "pruning.reclaim: what flips goes at once"),
])  # fmt: skip
def test_what_cannot_be_done_is_refused_before_training(run, overrides, message):
    with pytest.raises(RecipeError) as error:
        run(*overrides)
    assert message in str(error.value)


def test_the_number_of_levels_is_part_of_a_schedule_and_so_of_the_run_s_name(tiny, places):
    def name(*overrides):
        return make_plan(*load_data(tiny(*overrides), places)).name

    assert name("pruning.levels=3") == name("pruning.levels=4")
    assert name("method=gradual", "pruning.levels=3") != name("method=gradual", "pruning.levels=4")


def test_no_weight_that_trains_on_is_revived_by_any_optimizer(run):
    for optimizer in (("train.optimizer=adam", "train.momentum=0"), ("train.optimizer=adamw", "train.momentum=0"), ()):
        plan, store, _ = run(*FLIPOUT, *optimizer, "train.gradient_noise=1.0", folder=f"run{len(optimizer)}{optimizer}")
        model = plan.build(0)
        model.load_state_dict(store.read_weights(1, 2, "final"))
        assert revived(model, store.read_ticket(1, 2).mask) == []


def test_an_early_bird_search_can_judge_by_flips_and_resumes_bit_for_bit(tiny, places, tmp_path):
    plan = make_plan(*load_data(tiny(
        "method=early_bird", "pruning.criterion=hybrid", "pruning.levels=10", "pruning.output_rate=null",
        "pruning.scope=global", "pruning.reclaim=dead_paths",
        "early_bird={densities: [0.3], every: 5it, window: 3, epsilon: 1e-9}",
        "watch=[sign_flips]", "train.lr=0.01",
    ), places))  # fmt: skip

    def go(folder, settings):
        store = RunStore(tmp_path / folder)
        return store, levels_of(early_bird_replicate(plan, store, 1, settings))

    whole, levels = go("whole", Settings())
    assert levels[1].remaining == 15060 and levels[1].effective_density == levels[1].density
    assert all(level.sign_flips is not None for level in levels)
    # nothing settles so closely: the draw is at the end, and the counts that it saw are those of the end
    assert whole.read_result("replicate_1/search.json")["draws"][0]["step"] == 30
    flips, mask, final = whole.read_flips(1, 0), whole.read_ticket(1, 1).mask, whole.read_weights(1, 0, "final")
    kept = torch.cat([kept.flatten() for kept in mask.values()])
    steady = -torch.cat([flips[f"counts/{name}"].flatten() for name in mask]).double()
    sizes = torch.cat([final[name].abs().flatten() for name in mask])
    assert steady[kept].mean() > steady[~kept].mean() and sizes[kept].mean() > sizes[~kept].mean()
    for steps in (4, 12, 21):
        settings = Settings(should_stop=iter([False] * (steps - 1) + [True] + [False] * 99).__next__)
        with pytest.raises(Interrupted):
            go(f"stopped_{steps}", settings)
        store, resumed = go(f"stopped_{steps}", Settings())
        assert [untimed(level) for level in resumed] == [untimed(level) for level in levels]
        assert equal(states(store, 2), states(whole, 2))
