"""Controls are trained as the ticket was, paired with it, and taken up where they stopped."""

import pytest
import torch
from support import equal, untimed

from ticketlab.errors import Interrupted, RunError, TicketlabError
from ticketlab.pruning.controls import controls
from ticketlab.pruning.masks import masked
from ticketlab.recipe_file import read_recipe
from ticketlab.report import estimate
from ticketlab.runs.store import Level, RunStore
from ticketlab.workflows.controls import control_run, control_start, controls_of, winning_level
from ticketlab.workflows.progress import Notice
from ticketlab.workflows.run import Machine, prune_run
from ticketlab.workflows.trunk import Branch, run_plan

ONE = Branch("controls/level_2/-", 1, 2)


def finish(store, machine, *names, level=2, should_stop=lambda: False):
    *_, record = control_run(store, [level], names, machine, should_stop)
    return record


def part(store, name, level=2):
    return store.part(f"controls/level_{level}/{name}")


def test_all_controls_stand_beside_the_ticket_paired_by_seed(pruned):
    store, machine = pruned("replicates=2")
    record = finish(store, machine)
    assert [row["control"] for row in record["controls"]] == list(controls)
    own = [store.read_level(number, 2).test_accuracy for number in (1, 2)]
    for row in record["controls"]:
        found = [part(store, row["control"]).read_level(number, 2) for number in (1, 2)]
        assert [level.seed for level in found] == record["seeds"] == [0, 1]
        differences = [level.test_accuracy - ticket for level, ticket in zip(found, own, strict=True)]
        assert row["minus_ticket"]["mean"] == pytest.approx(sum(differences) / 2, abs=1e-12)
        assert row["minus_ticket"]["high"] == estimate(differences).high
        assert row["test_accuracy"]["n"] == 2
    assert record["ticket"]["minus_ticket"]["mean"] == 0
    assert record["density"] == store.read_level(1, 2).density
    assert (store.path / "controls/level_2/controls.png").stat().st_size > 1000


def test_a_control_has_the_tickets_steps_and_its_own_start(pruned):
    store, machine = pruned("pruning.rewind=10it")
    finish(store, machine, "reinit", "shuffled_mask")
    plan, ticket = run_plan(store, machine.places), store.read_ticket(1, 2)
    for name in ("reinit", "shuffled_mask"):
        kept, trained = part(store, name).read_ticket(1, 2), part(store, name).read_level(1, 2)
        start = control_start(plan, store, ONE, name)
        assert equal([kept.mask, kept.weights], [start.mask, start.weights])
        assert trained.steps == store.read_level(1, 2).steps == 20
        assert [point["step"] for point in trained.curve] == [20, 30]
        final = part(store, name).read_weights(1, 2, "final")
        assert all(bool((final[layer][~alive] == 0).all()) for layer, alive in kept.mask.items())
    shuffled = part(store, "shuffled_mask").read_ticket(1, 2)
    assert not equal([shuffled.mask], [ticket.mask])
    assert equal([shuffled.weights], [masked(store.read_rewind(1), shuffled.mask)])


def test_fresh_weights_are_initial_ones_of_another_draw_for_each_replicate_and_level(pruned):
    store, machine = pruned("replicates=2")
    finish(store, machine, "reinit", level=1)
    finish(store, machine, "reinit")
    seen = []
    for number in (1, 2):
        seen += [store.read_rewind(number)["fc1.weight"]]
        seen += [part(store, "reinit", level).read_ticket(number, level).weights["fc1.weight"] for level in (1, 2)]
    both = torch.stack(seen).ne(0).all(0)  # kept in every one of them
    drawn = [weights[both] for weights in seen]
    assert len(drawn[0]) > 1000
    for index, one in enumerate(drawn):
        assert not any(bool((one == other).any()) for other in drawn[:index])
    initial = [float(store.read_rewind(number)["fc1.weight"].std()) for number in (1, 2)]
    assert [float(one.std()) for one in (*drawn[1:3], *drawn[4:])] == pytest.approx([initial[0]] * 4, rel=0.05)


def test_controls_of_a_level_share_their_draws(pruned):
    store, machine = pruned()
    plan = run_plan(store, machine.places)
    start = {name: control_start(plan, store, ONE, name) for name in controls}
    signed, fresh = start["reinit_same_sign"].weights, start["reinit"].weights
    assert all(torch.equal(signed[name].abs(), fresh[name].abs()) for name in start["reinit"].mask)
    assert equal([start["shuffled_mask"].mask], [start["random_mask"].mask])


def test_training_the_tickets_own_start_as_a_control_gives_the_ticket(pruned, monkeypatch):
    store, machine = pruned()
    monkeypatch.setitem(controls._functions, "reinit", lambda s: type(controls.find("frozen")(s))(
        s.mask, masked(s.initial, s.mask)))  # fmt: skip
    finish(store, machine, "reinit")
    same, ticket = part(store, "reinit").read_level(1, 2), store.read_level(1, 2)
    assert untimed(same) == untimed(ticket)
    assert equal([part(store, "reinit").read_weights(1, 2, "final")], [store.read_weights(1, 2, "final")])


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_frozen_weights_never_move_and_act_on_the_network(pruned, optimizer):
    decay = ("train.weight_decay=0.1", f"train.optimizer={optimizer}", "train.lr=0.01")
    store, machine = pruned(*decay)
    finish(store, machine, "frozen")
    level, weights = part(store, "frozen").read_level(1, 2), part(store, "frozen").read_weights(1, 2, "early_stop")
    start = control_start(run_plan(store, machine.places), store, ONE, "frozen")
    # an independent forward pass in which the frozen weights stand in the layers themselves
    plan = run_plan(store, machine.places)
    model = plan.build(0)
    model.load_state_dict({name: value + start.frozen.get(name, 0) for name, value in weights.items()})
    test = plan.splits.test
    shift, scale = torch.tensor(plan.data.dataset.mean), torch.tensor(plan.data.dataset.std)
    pixels = (test.images.float() / 255 - shift.view(-1, 1, 1)) / scale.view(-1, 1, 1)
    with torch.inference_mode():
        right = (model.eval()(pixels).argmax(1) == test.labels).float().mean()
    assert level.test_accuracy == pytest.approx(float(right), abs=1e-6)
    assert level.effective_density is None and level.flops is None


def test_what_is_finished_is_not_trained_again_and_interruptions_change_nothing(pruned):
    store, machine = pruned()
    whole = finish(store, machine, "reinit", "frozen")
    stamp = (part(store, "reinit").path / "replicate_1/level_2/metrics.json").stat().st_mtime_ns
    other, same = pruned(folder="other")
    steps = iter(range(1000))
    stopping = Machine(same.runs, same.places, "cpu", workers=1, checkpoint_seconds=0)
    with pytest.raises(Interrupted):
        finish(other, stopping, "reinit", "frozen", should_stop=lambda: next(steps) == 40)
    assert part(other, "reinit").has_level(1, 2) and not part(other, "frozen").has_level(1, 2)
    resumed = finish(other, machine, "frozen")
    assert [row["control"] for row in resumed["controls"]] == ["reinit", "frozen"]
    assert resumed["controls"] == whole["controls"]
    assert finish(store, machine, "reinit", "frozen") == whole
    assert (part(store, "reinit").path / "replicate_1/level_2/metrics.json").stat().st_mtime_ns == stamp


def test_controls_that_later_replicates_lack_stay_in_the_record_with_their_own_seeds(pruned, tiny):
    store, machine = pruned()
    before = finish(store, machine, "reinit", "frozen")
    list(prune_run(tiny("replicates=2"), machine))
    reinit, frozen = finish(store, machine, "reinit")["controls"]
    assert (reinit["control"], reinit["test_accuracy"]["n"]) == ("reinit", 2)
    assert frozen == before["controls"][1] and frozen["minus_ticket"]["n"] == 1


def test_processes_give_what_one_process_gives(pruned, tmp_path):
    store, machine = pruned("replicates=2")
    alone = finish(store, machine, "reinit", "signed_constant")
    other, _ = pruned("replicates=2", folder="other")
    together = finish(other, Machine(tmp_path / "other", machine.places, "cpu", workers=2), "reinit", "signed_constant")
    assert together["controls"] == alone["controls"]


def level_of(number, accuracy):
    fields = dict.fromkeys(Level.__dataclass_fields__, 0.0)
    return Level(
        **{**fields, "replicate": 1, "level": number, "val_accuracy": accuracy, "layers": {}, "curve": ({"step": 30},)}
    )


@pytest.mark.parametrize(
    ("accuracies", "winner"),
    [([0.9, 0.91, 0.9, 0.89], 2), ([0.9, 0.91, 0.89, 0.92, 0.5], 3), ([0.9, 0.8, 0.85, 0.7], 2), ([0.9], 0)],
)
def test_the_winning_ticket_is_the_sparsest_that_is_no_worse_on_validation_data(tmp_path, accuracies, winner):
    store = RunStore(tmp_path)
    for number, accuracy in enumerate(accuracies):
        store.write_level(level_of(number, accuracy), {}, {})
    assert winning_level(store, 30) == winner
    if len(accuracies) > 1:
        # a dense network that was stopped early is no measure: the best ticket is taken
        assert winning_level(store, 60) == accuracies.index(max(accuracies[1:]))


def test_the_level_is_told_where_none_is_named(pruned):
    store, machine = pruned()
    notices = [e.text for e in control_run(store, None, ["reinit"], machine) if isinstance(e, Notice)]
    assert any("the sparsest ticket as good as the dense network" in text for text in notices)


@pytest.mark.parametrize(
    ("overrides", "level", "message"),
    [
        ((), 7, "has levels 0 to 2, not 7"),
        ((), 0, "is the dense network, which has no controls"),
        (("pruning.after=finetune",), 1, "restart after 'finetune', not from rewound weights"),
        (("method=gradual", "train.steps=60it"), 1, "no ticket restarts"),
        (("pruning.levels=0",), 1, "has no ticket; run its recipe with -s pruning.levels=1 or more"),
    ],
)
def test_runs_that_have_no_controls_are_refused(pruned, overrides, level, message):
    store, machine = pruned(*overrides)
    with pytest.raises(RunError, match=message):
        finish(store, machine, level=level)
    assert not (store.path / "controls").exists()


def test_unknown_controls_are_refused_with_a_suggestion(pruned):
    store, machine = pruned()
    with pytest.raises(TicketlabError, match="unknown control 'renit'; did you mean 'reinit'"):
        finish(store, machine, "renit")


def test_all_levels_stand_in_one_figure_and_one_record(pruned):
    store, machine = pruned("replicates=2")
    *_, record = control_run(store, [], ["reinit"], machine)
    assert [one["level"] for one in record["levels"]] == [1, 2]
    assert record["levels"][1] == finish(store, machine, "reinit")
    assert (store.path / "controls/controls.svg").stat().st_size > 1000


def test_a_recipe_is_run_first(tiny, places, tmp_path):
    machine = Machine(tmp_path / "runs", places, "cpu", workers=1)
    *_, record = controls_of(tiny(), [1], ["reinit"], machine)
    (store,) = [RunStore(path) for path in machine.runs.iterdir()]
    assert record == finish(store, machine, "reinit", level=1)
    # what is finished is neither run nor told again
    assert list(controls_of(tiny(), [1], ["reinit"], machine)) == [record]


def test_what_cannot_be_is_told_before_a_recipe_is_run(tiny, places, tmp_path):
    machine = Machine(tmp_path / "runs", places, "cpu", workers=1)
    for recipe, levels, names, message in (
        (tiny(), [1], ["renit"], "did you mean 'reinit'"),
        (tiny(), [3], [], "has levels 1 to 2, not 3"),
        (tiny("pruning.after=finetune"), [1], [], "restart after 'finetune'"),
        (tiny("pruning.levels=0"), None, [], "has the dense level 0 alone, not 1"),
    ):
        with pytest.raises(TicketlabError, match=message):
            list(controls_of(recipe, levels, names, machine))
    assert not machine.runs.exists()


EARLY = """
method: early_bird
model: {name: lenet_300_100}
data: {name: digits, validation: 200}
train: {steps: 30it, batch_size: 32, evaluate_every: 10it}
early_bird: {densities: [0.6], every: 2it, patience: 12it}
"""


def test_a_search_that_ended_early_is_no_dense_network_to_compare_with(write_recipe, places, tmp_path):
    machine = Machine(tmp_path / "runs", places, "cpu", workers=1)
    *_, record = controls_of(read_recipe(write_recipe(EARLY)), [1], ["reinit"], machine)
    (store,) = [RunStore(path) for path in machine.runs.iterdir()]
    assert store.read_level(1, 0).curve[-1]["step"] < 30
    assert record["dense"] is None and record["controls"][0]["control"] == "reinit"
    assert (store.path / "controls/level_1/controls.png").exists()
