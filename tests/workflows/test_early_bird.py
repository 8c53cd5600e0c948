"""Early-bird tickets: a search worked out by hand, and real ones on real digits."""

import json

import pytest
import torch
from support import equal, states, untimed
from torch import nn

from ticketlab.data.dataset import Dataset
from ticketlab.data.sources import datasets
from ticketlab.draws import SEARCH, draw_rows, draws
from ticketlab.errors import FailedRun, Interrupted, RecipeError, RunError
from ticketlab.models.compact import rebuild
from ticketlab.pruning.masks import masked
from ticketlab.recipe_file import read_recipe
from ticketlab.report import run_levels
from ticketlab.runs.store import Level, RunStore
from ticketlab.runs.tensorboard import LevelEvents
from ticketlab.seeds import derive_seed
from ticketlab.workflows.draw import ticket_network
from ticketlab.workflows.early_bird import early_bird_replicate
from ticketlab.workflows.estimate import forecast
from ticketlab.workflows.inputs import load_data
from ticketlab.workflows.make_plan import make_plan
from ticketlab.workflows.progress import Drawn, Notice
from ticketlab.workflows.search import Search
from ticketlab.workflows.source import from_run
from ticketlab.workflows.tickets import ticket_weights
from ticketlab.workflows.train_level import Settings

DRIFT = """
import torch
from torch import nn

def drift():
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, 1.5, 2.5, 3.5], [10.0, 9.0, 8.0, 7.0]]))
        layer.bias.copy_(torch.tensor([-1000.0, 0.0]))
    return nn.Sequential(nn.Flatten(), layer)
"""
"""The second class is certain and wrong, so that the gradient is -1 in the first row and +1 in the second.

At learning rate 1 the rows are 0.5 + t … 3.5 + t and 10 - t … 7 - t after t steps. The four largest magnitudes are
the second row at t = 1; from t = 2 to 5 one weight of the first row takes over at each step (5.5 > 5, 6.5 > 6, …);
then all of the first row stays.
"""


@datasets.register("test_only_ones")
def ones(_):
    """White images of the first class."""
    images, labels = torch.full((12, 1, 2, 2), 255, dtype=torch.uint8), torch.zeros(12, dtype=torch.int64)
    return Dataset("test_only_ones", images, labels, images, labels, (0.0,), (1.0,), 2, "here")


DRIFT_RECIPE = """
method: early_bird
model: {name: drift, file: drift.py}
data: {name: test_only_ones, validation: 4}
train: {steps: 20it, batch_size: 4, optimizer: sgd, lr: 1.0, evaluate_every: 5it}
early_bird: {densities: [0.5], every: 1it, epsilon: 0.1, window: 3}
"""

DIGITS = """
method: early_bird
model: {name: lenet_300_100}
data: {name: digits, validation: 200}
train: {steps: 40it, batch_size: 32, evaluate_every: 10it}
pruning: {output_rate: 0.1}
early_bird: {densities: [0.5, 0.2], every: 4it, epsilon: 0.35, window: 3}
"""

NORMED = """
from torch import nn

def normed(inputs, classes):
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, classes),
    )
    for layer in (model[1], model[4]):
        nn.init.constant_(layer.weight, 0.5)
    return model
"""

CHANNELS = """
method: early_bird
model: {name: normed, file: normed.py}
data: {name: digits, validation: 200}
train: {steps: 24it, batch_size: 32, optimizer: sgd, lr: 0.1, momentum: 0.9, slimming: 1e-3, evaluate_every: 8it}
pruning: {scope: global, after: continue}
early_bird: {granularity: channels, densities: [0.5], every: 2it, window: 3, epsilon: 2.0, also_at: [16it, 24it]}
"""


@pytest.fixture
def plan_of(tmp_path, places):
    def make(text, *overrides):
        (tmp_path / "drift.py").write_text(DRIFT)
        (tmp_path / "normed.py").write_text(NORMED)
        (tmp_path / "early.yaml").write_text(text)
        return make_plan(*load_data(read_recipe(tmp_path / "early.yaml", overrides), places))

    return make


@pytest.fixture
def search(plan_of, tmp_path):
    """Run a recipe; returns plan, store and events."""

    def go(text, *overrides, folder="run", settings=None):
        plan, store = plan_of(text, *overrides), RunStore(tmp_path / folder)
        return plan, store, list(early_bird_replicate(plan, store, 1, settings or Settings()))

    return go


def drawn(events):
    return [event.step for event in events if isinstance(event, Drawn)]


@pytest.mark.parametrize(
    "overrides, step",
    [
        # equal masks fill the window for the first time at 5, 6, 7
        ((), 7),
        (("early_bird.window=2",), 6),
        (("early_bird.window=5",), 9),
        # one swap is 2 of 8 positions: ¼, or ½ in units of chance; at step 6 the window holds 4, 5 and 6
        (("early_bird.epsilon=0.51",), 6),
        (("early_bird.epsilon=0.5",), 7),
        (("early_bird.distance=hamming", "early_bird.epsilon=0.26"), 6),
        (("early_bird.distance=hamming", "early_bird.epsilon=0.25"), 7),
        # two swaps fit at step 3, the first full window
        (("early_bird.distance=hamming", "early_bird.epsilon=0.51"), 3),
        # masks at 2, 4, 6, 8, 10: equal from the third on
        (("early_bird.every=2it",), 10),
    ],
)
def test_the_draw_comes_at_the_step_worked_out_by_hand(search, overrides, step):
    _, store, events = search(DRIFT_RECIPE, *overrides)
    assert drawn(events) == [step]
    record = store.read_result(f"replicate_1/{SEARCH}")
    assert record["draws"][0]["settled"] and record["draws"][0]["step"] == step
    assert store.read_level(1, 0).steps == step  # the search ends with the draw


@pytest.mark.parametrize(
    "after, weights, start",
    [
        ("continue", [7.5, 8.5, 9.5, 10.5], 7),
        ("lr_rewind", [7.5, 8.5, 9.5, 10.5], 2),
        ("rewind", [2.5, 3.5, 4.5, 5.5], 2),
        ("reinit", [0.5, 1.5, 2.5, 3.5], 0),  # the builder has no randomness
    ],
)
def test_what_a_ticket_restarts_from(search, after, weights, start):
    plan, store, events = search(DRIFT_RECIPE, f"pruning.after={after}", "pruning.rewind=2it")
    ticket = store.read_ticket(1, 1)
    assert ticket.mask["1.weight"].tolist() == [[True] * 4, [False] * 4]
    assert ticket_weights(plan, ticket)["1.weight"].tolist() == [weights, [0.0] * 4]
    assert (ticket.facts["rewind_step"], ticket.facts["draw_step"]) == (start, 7)
    trained = next(e for e in events if isinstance(e, Level) and e.level == 1)
    assert trained.steps == 20 - start
    # -1 a step for every kept weight, exactly 0 for every removed one
    assert store.read_weights(1, 1, "final")["1.weight"].tolist() == [[w + 20 - start for w in weights], [0.0] * 4]


def test_patience_and_the_end_draw_what_has_not_settled(search):
    _, store, events = search(DRIFT_RECIPE, "early_bird.epsilon=1e-9", "early_bird.patience=4it")
    assert drawn(events) == [4]
    draw = store.read_result(f"replicate_1/{SEARCH}")["draws"][0]
    assert (draw["settled"], draw["chosen"], draw["distance"]) == (False, True, 1.0)  # masks of 2 and 4: two swaps
    # window 20 is never full before the end
    _, _, events = search(DRIFT_RECIPE, "early_bird.window=20", "early_bird.epsilon=1e-9", folder="end")
    assert drawn(events) == [20]


def test_fixed_steps_are_drawn_beside_the_chosen_one(search):
    _, store, events = search(DRIFT_RECIPE, "early_bird.also_at=[3it,20it]")
    assert drawn(events) == [3, 7, 20]
    found = draws(store, run_levels(store))
    assert [(draw.level, draw.step, draw.chosen) for draw in found] == [(1, 7, True), (2, 3, False), (3, 20, False)]
    # at step 3: 7, 6.5, 6, 5.5 are the largest
    assert store.read_ticket(1, 2).mask["1.weight"].tolist() == [[False, False, True, True], [True, True, False, False]]


def test_costs_are_those_worked_out_by_hand(search):
    """4 inputs × 2 outputs read the images: 8 products, twice, at 2 operations: 32 an example, 128 a step of four.

    Iterative pruning at 20 % gets to ½ in 4 levels: 8, 6.4, 5.12, 4.096 and 4 weights, rounded to 8, 6, 5, 4, 4.
    """
    _, store, _ = search(DRIFT_RECIPE, "early_bird.also_at=[20it]")
    early, end = draws(store, run_levels(store))
    assert (early.executed.dense, early.executed.ticket) == (7 * 128, 20 * 128)
    assert (early.executed.one_shot, early.executed.imp) == (40 * 128, 5 * 20 * 128)
    assert (early.remaining.dense, early.remaining.ticket) == (7 * 128, 20 * 64)
    assert early.remaining.one_shot == 20 * 128 + 20 * 64
    assert early.remaining.imp == 20 * 16 * (8 + 6 + 5 + 4 + 4)
    assert end.executed.total == end.executed.one_shot == early.executed.one_shot
    assert (end.minus_end, early.minus_end) == (0.0, early.test_accuracy - end.test_accuracy)
    assert end.seconds.total == pytest.approx(end.seconds.one_shot) and early.is_measured
    found = {d["level"]: d for d in store.read_result(f"replicate_1/{SEARCH}")["draws"]}
    # a search pays for its masks, one-shot pruning does not
    assert early.seconds.dense == found[1]["seconds"]
    assert end.seconds.dense == found[2]["seconds"] - found[2]["mask_seconds"] < found[2]["seconds"]
    rows = draw_rows([early, end])
    assert [(row.step, row.share, row.settled, row.chosen) for row in rows] == [
        (7, 0.35, 1, True),
        (20, 1.0, 0, False),
    ]


def test_counts_are_exact_for_every_density(search):
    """Fifths of 19,200 and 30,000; the output at half the rate: 1000 · 0.9^(log 0.2 / log 0.8) = 467.7."""
    _, store, events = search(DIGITS)
    levels = {event.level: event for event in events if isinstance(event, Level)}
    assert levels[2].remaining == 3840 + 6000 + 468
    assert levels[1].remaining == 9600 + 15_000 + 721  # 0.9^3.106 = 0.7209
    assert all(draw.settled for draw in draws(store, list(levels.values())))
    full = levels[0]
    assert full.steps == max(drawn(events)) < 40


def test_rewound_weights_equal_those_at_the_rewind_step_under_the_mask(search):
    plan, store, _ = search(DIGITS, "pruning.rewind=4it")
    rewound = store.read_rewind(1)
    for level in (1, 2):
        ticket = store.read_ticket(1, level)
        assert equal([ticket_weights(plan, ticket)], [masked(rewound, ticket.mask)])


def test_removed_weights_are_the_smallest_at_the_draw(search):
    _, store, _ = search(DIGITS, "pruning.after=continue")
    for level in (1, 2):
        ticket = store.read_ticket(1, level)
        for name, kept in ticket.mask.items():
            assert (ticket.weights[name][~kept] == 0).all() and (ticket.weights[name][kept] != 0).all()


@pytest.mark.parametrize(
    "change, epsilon",
    [
        # 0.2 for a window over a tenth of the training: here 2 masks 4 steps apart, a fifth of 40 steps: times √2
        ((), 0.2 * 2**0.5),
        (("early_bird.window=2",), 0.2),
        (("early_bird.every=1it", "early_bird.window=2"), 0.1),
        (("pruning.criterion=extrapolated",), 0.32 * 2**0.5),
        (("early_bird.epsilon=0.5",), 0.5 * 2**0.5),
        (("early_bird.distance=hamming",), 0.1),
        (("early_bird.distance=hamming", "early_bird.epsilon=0.3"), 0.3),
    ],
)
def test_epsilon_grows_with_the_root_of_the_windows_span(plan_of, change, epsilon):
    plan = plan_of(DIGITS.replace("epsilon: 0.35, ", ""), *change)
    assert plan.early_bird.epsilon == pytest.approx(epsilon)


def test_channels_have_an_epsilon_of_their_own(plan_of):
    """Three masks 2 steps apart, a sixth of 24 steps."""
    plan = plan_of(CHANNELS.replace(", epsilon: 2.0", ""))
    assert plan.early_bird.epsilon == pytest.approx(0.45 * (1 / 6 / 0.1) ** 0.5)


def test_an_extrapolated_mask_is_that_of_the_way_so_far(search):
    """At step 20 of 40 the way counts √2 times: worked out from the weights saved at that step."""
    only = ("early_bird.densities=[0.2]", "early_bird.epsilon=1e-9")
    way = ("pruning.criterion=extrapolated", "pruning.after=continue", "early_bird.also_at=[20it]")
    _, store, _ = search(DIGITS, *only, *way)
    dense, early, _ = search(DIGITS, "early_bird.epsilon=1e-9", "train.evaluate_every=1it", "train.steps=20it",
                             "early_bird.every=2it", folder="half")  # fmt: skip
    start, half = dense.build(derive_seed(0, "init")).state_dict(), early.read_weights(1, 0, "final")
    for name, kept in store.read_ticket(1, 2).mask.items():
        heading = (start[name] + 2**0.5 * (half[name] - start[name])).abs()
        assert heading[~kept].max() <= heading[kept].min() * (1 + 1e-6)
        assert half[name].abs()[~kept].max() > half[name].abs()[kept].min()  # magnitude would choose others


@pytest.mark.parametrize(
    ("criterion", "rewind"),
    [("magnitude", 4), ("magnitude", 12), ("extrapolated", 8), ("extrapolated", 12), ("magnitude_increase", 8)],
)
def test_a_ticket_may_rewind_to_any_step_up_to_its_draw(search, criterion, rewind):
    """The first window is full at step 12; a criterion that compares with the rewind step waits for it."""
    also = "early_bird.also_at=[12it]"
    plan, store, events = search(DIGITS, f"pruning.criterion={criterion}", f"pruning.rewind={rewind}it", also)
    assert min(drawn(events)) == 12
    ticket = store.read_ticket(1, 3)
    assert equal([ticket_weights(plan, ticket)], [masked(store.read_rewind(1), ticket.mask)])


@pytest.mark.parametrize("after", ["rewind", "lr_rewind", "reinit", "continue"])
def test_the_ticket_of_the_end_costs_what_one_shot_pruning_costs(search, after):
    _, store, _ = search(DRIFT_RECIPE, f"pruning.after={after}", "pruning.rewind=2it", "early_bird.also_at=[20it]")
    end = draws(store, run_levels(store))[1]
    assert end.executed.total == end.executed.one_shot and end.remaining.total == end.remaining.one_shot
    assert end.steps == 20 + (20 if after == "reinit" else 18)


def test_sparse_layers_execute_their_remaining_weights_only(search):
    """fc2 at a fifth trains sparse; fc1 (19,200 weights) and the output are too small for that: multiplied whole."""
    _, store, _ = search(DIGITS, "early_bird.densities=[0.2]")
    draw = draws(store, run_levels(store))[0]
    steps, batch = 40, 32
    assert draw.executed.ticket == steps * batch * (4 * 19_200 + 6 * 6000 + 6 * 1000)
    assert draw.remaining.ticket == steps * batch * (4 * 3840 + 6 * 6000 + 6 * 468)


def test_alarms_are_not_told_again_after_a_resume(search):
    change = ("pruning.output_rate=0.9", "early_bird.densities=[0.2]", "early_bird.epsilon=1e-9")
    asked = iter(range(1000))
    settings = Settings(checkpoint_seconds=0, should_stop=lambda: next(asked) == 20)
    with pytest.raises(Interrupted):
        search(DIGITS, *change, settings=settings)
    _, _, events = search(DIGITS, *change)
    assert not [event for event in events if isinstance(event, Notice)]


@pytest.mark.parametrize("text", [DIGITS, CHANNELS])
@pytest.mark.parametrize("stop_after", [1, 5, 9, 13, 30])
def test_a_run_stopped_anywhere_goes_on_to_the_same_tickets(search, text, stop_after):
    _, whole, events = search(text, folder="whole")
    asked = iter(range(1000))
    settings = Settings(checkpoint_seconds=0, should_stop=lambda: next(asked) == stop_after)
    with pytest.raises(Interrupted):
        search(text, folder="parts", settings=settings)
    _, parts, _ = search(text, folder="parts")
    count = len([event for event in events if isinstance(event, Level)])
    assert equal(states(parts, count), states(whole, count))
    assert [untimed(level) for level in run_levels(parts)] == [untimed(level) for level in run_levels(whole)]
    assert timeless(parts) == timeless(whole)


def timeless(store):
    """The search's record without what the clock says."""
    record = store.read_result(f"replicate_1/{SEARCH}")
    untimed = {"mask_seconds": 0, "aside_seconds": 0}
    return {**record, **untimed, "draws": [{**draw, "seconds": 0, "mask_seconds": 0} for draw in record["draws"]]}


def test_the_same_seed_draws_at_the_same_step(search):
    _, first, _ = search(DIGITS, folder="first")
    _, second, _ = search(DIGITS, folder="second")
    assert timeless(first) == timeless(second)
    _, other, _ = search(DIGITS, "seed=1", folder="other")
    assert timeless(other) != timeless(first)


def test_a_killed_search_between_its_last_step_and_its_record_does_not_train_on(search, tmp_path):
    """The checkpoint of the last step is there, the level is not finished: nothing is trained again."""
    _, whole, _ = search(DRIFT_RECIPE, folder="whole")
    asked = iter(range(1000))
    with pytest.raises(Interrupted):
        search(DRIFT_RECIPE, folder="parts", settings=Settings(should_stop=lambda: next(asked) == 6))
    _, parts, _ = search(DRIFT_RECIPE, folder="parts")
    assert parts.read_level(1, 0).steps == whole.read_level(1, 0).steps == 7
    assert equal(states(parts, 2), states(whole, 2))


# --- channels


def test_equal_scales_of_a_fresh_network_give_no_mask(search, plan_of, tmp_path):
    plan = plan_of(CHANNELS)
    watch = Search(plan, RunStore(tmp_path / "fresh"), 1, torch.device("cpu"))
    with LevelEvents(tmp_path / "events", 0) as events:
        assert list(watch.after_step(2, plan.build(0), 0.0, events)) == []
        assert watch.steps == []
        uneven = plan.build(0)
        uneven[1].weight.data[0] += 0.01
        list(watch.after_step(4, uneven, 0.0, events))
        assert watch.steps == [4]
    with pytest.raises(
        FailedRun, match="no ticket can be drawn at step 1: all that criterion 'magnitude' judges is still eq"
    ):
        search(CHANNELS, "train.lr=1e-30", "early_bird.also_at=[1it]", folder="equal")


def test_a_channel_ticket_is_a_smaller_network_that_computes_what_the_masked_one_does(search):
    """In the dense network a removed channel's scale and shift are set to 0, an independent way to remove it."""
    plan, store, _events = search(CHANNELS)
    dense = rebuild(plan.build(0), store.read_weights(1, 0, "final")).eval()  # the search went on to step 24
    ticket = store.read_ticket(1, 3)
    assert ticket.facts["draw_step"] == 24
    for norm, conv in (("1", "0"), ("4", "3")):
        layer = dense.get_submodule(norm)
        layer.weight.data[~ticket.mask[conv]] = 0
        layer.bias.data[~ticket.mask[conv]] = 0
    small = rebuild(plan.build(0), ticket.weights).eval()
    images = torch.randn(5, 1, 8, 8)
    assert torch.allclose(small(images), dense(images), atol=1e-5)
    kept = {name: int(mask.sum()) for name, mask in ticket.mask.items()}
    assert sum(kept.values()) == 7  # half of 14
    assert (small[0].out_channels, small[3].out_channels) == (kept["0"], kept["3"])
    level = store.read_level(1, 3)
    assert level.remaining == 9 * kept["0"] + 9 * kept["0"] * kept["3"] + 4 * kept["3"] * 10
    assert level.total == 54 + 432 + 320 and level.density == level.remaining / 806


def test_channels_of_the_smallest_scales_go(search):
    _plan, store, _ = search(CHANNELS)
    scales = {n: store.read_weights(1, 0, "final")[f"{m}.weight"].abs() for n, m in (("0", "1"), ("3", "4"))}
    mask = store.read_ticket(1, 3).mask
    removed = torch.cat([scales[name][~mask[name]] for name in mask])
    kept = torch.cat([scales[name][mask[name]] for name in mask])
    assert removed.max() <= kept.min()


@pytest.mark.parametrize("after, starts", [("continue", [6, 16, 0]), ("rewind", [4, 4, 4]), ("reinit", [0, 0, 0])])
def test_channel_tickets_restart_as_the_recipe_says(search, after, starts):
    plan, store, _ = search(CHANNELS, f"pruning.after={after}", "pruning.rewind=4it" if after == "rewind" else "seed=0")
    tickets = [store.read_ticket(1, level) for level in (1, 2, 3)]
    assert [ticket.facts["rewind_step"] for ticket in tickets] == starts
    assert [store.read_level(1, level).steps for level in (1, 2, 3)] == [24 - start for start in starts]
    if after == "rewind":
        for ticket in tickets:
            small = ticket_network(plan, ticket.mask, store.read_rewind(1))
            assert equal([ticket.weights], [small.state_dict()])
    if after == "reinit":
        dense = plan.build(derive_seed(0, "init")).state_dict()
        assert not torch.isin(tickets[0].weights["3.weight"], dense["3.weight"]).any()


def test_a_channel_ticket_is_loaded_at_its_own_size(search, places):
    plan, store, _ = search(CHANNELS)
    store.write_manifest({"recipe": "early", "folder": str(plan.file.path.parent)})
    store.write_recipe(plan.file.path.read_text())
    source = from_run(store, places, None, 1, ())
    assert source.facts["level"] == 1  # the one that the search chose, not those of also_at
    assert sum(p.numel() for p in source.model.parameters()) < sum(p.numel() for p in source.dense.parameters())
    assert isinstance(source.model[0], nn.Conv2d) and source.model[0].out_channels < 6


def test_a_search_that_ended_early_is_no_dense_network_to_compare_with(search, places):
    plan, store, _ = search(DIGITS)
    store.write_manifest({"recipe": "early", "folder": str(plan.file.path.parent)})
    store.write_recipe(plan.file.path.read_text())
    source = from_run(store, places, None, 1, ())
    assert source.facts["level"] == 2 and source.dense is None


def test_channels_need_batch_norms(plan_of):
    with pytest.raises(RecipeError, match=r"no channels with a batch norm of their own; use early_bird\.granularity"):
        plan_of(DIGITS.replace("{densities", "{granularity: channels, densities").replace("{output_rate: 0.1}", "{}"))


@pytest.mark.parametrize("norm", ["BatchNorm2d(8, affine=False)", "GroupNorm(2, 8)", "Identity()"])
def test_channels_without_scales_are_left_alone(plan_of, monkeypatch, norm):
    monkeypatch.setitem(globals(), "NORMED", NORMED.replace("BatchNorm2d(8)", norm).replace(", model[4]", ","))
    assert [group.name for group in plan_of(CHANNELS).early_bird.groups] == ["0"]


# --- what a user sees


def test_alarms_are_told_once(search):
    """Three weights of 30 in one layer and one in another: the output layer keeps a single weight of ten classes."""
    _, _, events = search(DIGITS, "pruning.output_rate=0.9", "early_bird.densities=[0.2]")
    texts = [event.text for event in events if isinstance(event, Notice)]
    assert (
        len(texts) == 1 and "layer 'output.weight' is about to be empty at density 0.2: it keeps 1 of 1000" in texts[0]
    )


def test_the_search_leaves_pictures_and_curves(search):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, store, _ = search(DIGITS)
    folder = store.replicate_dir(1)
    assert (folder / "mask_distance.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (folder / "mask_distance.svg").read_text()
    events = EventAccumulator(str(folder / "level_0"))
    events.Reload()
    assert {"mask_distance/keep_0.5", "mask_distance/keep_0.2"} <= set(events.Tags()["scalars"])
    assert "mask_distance_keep_0.5/fc1.weight" in events.Tags()["scalars"]
    assert events.Tags()["images"] == ["mask_distance"]
    record = json.loads((folder / SEARCH).read_text())
    logged = [point.value for point in events.Scalars("mask_distance/keep_0.5")]
    layers = [point.value for point in events.Scalars("mask_distance_keep_0.5/fc1.weight")]
    assert layers == pytest.approx([found["fc1.weight"] for found in record["tracks"][0]["layers"][1:]])
    assert 0 < min(layers) < max(layers) < 1
    rows = record["tracks"][0]["distances"]
    assert logged == pytest.approx([max(row[-2:]) for row in rows if len(row) >= 2])


def test_a_forecast_counts_tickets(plan_of):
    expected = forecast(plan_of(DIGITS))
    assert [level.remaining for level in expected.levels] == [50_200, 25_321, 10_308]
    narrow = forecast(plan_of(CHANNELS))  # 3 of 6 and 4 of 8 channels
    assert [level.remaining for level in narrow.levels] == [806, *[27 + 108 + 160] * 3]


@pytest.mark.parametrize(
    "change, message",
    [
        ("method=imp", "early_bird: belongs to method: early_bird, not to imp"),
        ("pruning.after=finetune", "pruning.after: early_bird has no last learning rate"),
        ("pruning.levels=3", "pruning.levels: early_bird draws one ticket for each of early_bird.densities"),
        ("early_bird.densities=[0.5,0.5]", "early_bird.densities: each density once"),
        ("early_bird.densities=[1.5]", "early_bird.densities.0: Input should be less than 1"),
        ("early_bird.densities=[]", "early_bird.densities: give at least one"),
        ("early_bird.every=0it", "early_bird.every: must be at least 1it"),
        ("early_bird.densities=0.5", "early_bird.densities: write a list, such as [0.5]"),
        ("early_bird.densities=[0.5,0.50000001]", "densities 0.50000001 and 0.5 keep exactly the same here"),
        ("early_bird={distance: hamming, epsilon: 1.0}", "early_bird.epsilon: no two masks are that far apart"),
        ("early_bird.window=1", "early_bird.window: Input should be greater than or equal to 2"),
        ("early_bird.every=20it", "3 masks 20 steps apart need more than the 40 steps of training"),
        ("early_bird.patience=5it", "must lie between the first full window (step 12) and the end (step 40)"),
        ("early_bird.also_at=[41it]", "early_bird.also_at.0: must lie between step 1 and the end (step 40)"),
        ("early_bird.also_at=[4it,4it]", "early_bird.also_at: each time once"),
        ("pruning.rewind=13it", "step 13 comes after step 12, at which a ticket may be drawn"),
        ("early_bird.epsilon=0", "early_bird.epsilon: Input should be greater than 0"),
        ("train.steps=0it", "train.steps: training needs at least 1it"),
        ("train.slimming=1e-3", "train.slimming: the model has no batch norm"),
        ("early_bird.windw=5", "unknown key; did you mean 'window'?"),
    ],
)
def test_what_cannot_be_searched_for_is_refused_before_anything_starts(plan_of, change, message):
    with pytest.raises(RecipeError) as caught:
        plan_of(DIGITS, change)
    assert message in str(caught.value)


def test_a_record_of_another_version_is_told(search):
    _, store, _ = search(DRIFT_RECIPE)
    record = store.read_result(f"replicate_1/{SEARCH}")
    store.write_result(f"replicate_1/{SEARCH}", {**record, "version": 0})
    with pytest.raises(RunError, match="written by another version of ticketlab"):
        draws(store, run_levels(store))


def test_a_missing_ticket_is_told(search, tmp_path):
    _, store, _ = search(DRIFT_RECIPE)
    (store.level_dir(1, 1) / "ticket.safetensors").unlink()
    (store.level_dir(1, 1) / "metrics.json").unlink()
    with pytest.raises(RunError, match="the ticket is missing"):
        search(DRIFT_RECIPE)
