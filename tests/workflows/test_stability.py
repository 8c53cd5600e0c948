"""Instability analysis: what copies share, what differs between them, and the error on the line."""

import itertools
import math
import statistics
from dataclasses import replace

import pytest
import torch
from support import equal, untimed
from torch import nn

from ticketlab.data.batches import Examples, shuffled_batches
from ticketlab.errors import Interrupted, TicketlabError
from ticketlab.pruning.connectivity import barrier, interpolate, positions
from ticketlab.pruning.masks import masked
from ticketlab.report import Estimate, estimate
from ticketlab.runs.store import Level, RunStore
from ticketlab.seeds import derive_seed
from ticketlab.steps import Duration
from ticketlab.workflows.progress import Notice
from ticketlab.workflows.run import Machine
from ticketlab.workflows.stability import Interpolation, copy_task, errors_of, is_clear, verdict
from ticketlab.workflows.stability_search import Analysis, RunAnalysis, stability_of, stability_run
from ticketlab.workflows.train_level import Settings, train_level
from ticketlab.workflows.trunk import Branch, run_plan, train_sample

FEW = Interpolation(copies=2, points=3)
EARLY_BIRD = ("method=early_bird", "pruning={rate: 0.2}", "early_bird={densities: [0.5], every: 4it, window: 2}")


def look(store, machine, should_stop=lambda: False, **question):
    *_, record = stability_run(store, Analysis(**{"interpolation": FEW, **question}), machine, should_stop)
    return record


def at(store, level, step):
    return store.part(f"stability/level_{level}/at_{step}")


def line(store, level, step, replicate=1, pair="1_2", points=3):
    return at(store, level, step).read_result(f"replicate_{replicate}/line_{pair}_of_{points}.json")


# --- the error on a line that is known by hand


class TwoUnits(nn.Module):
    """Answers class 1 where v · relu(w · x) > 0.6."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))
        self.v = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        found = torch.relu(x.flatten(1) * self.w) @ self.v
        return torch.stack([torch.full_like(found, 0.6), found], dim=1)


def test_two_copies_that_differ_by_the_order_of_their_units_alone_have_the_barrier_worked_out_by_hand():
    one = {"w": torch.tensor([1.0, 0.0]), "v": torch.tensor([1.0, 0.0])}
    other = {"w": torch.tensor([0.0, 1.0]), "v": torch.tensor([0.0, 1.0])}
    unit = torch.ones(1, 1, 1)
    # both compute x; between them ((1 − α)² + α²) x: at a quarter 0.625 x, in the middle 0.5 x
    images = torch.tensor([1.0, 1.1, 1.25, 2.0]).view(4, 1, 1, 1)
    examples = Examples(images, torch.ones(4, dtype=torch.long), unit, 0 * unit)
    errors = [
        errors_of(TwoUnits(), interpolate(one, other, alpha), {"train": examples})["train"] for alpha in positions(5)
    ]
    # in the middle 0.5 and 0.55 are below 0.6, 0.625 and 1 above
    assert errors == [0, 0, 0.5, 0, 0]
    assert barrier(errors) == 0.5


# --- what copies start from


def test_copies_start_equal_and_see_other_data_in_another_order_and_augmentation(pruned):
    store, machine = pruned("pruning.rewind=10it", "replicates=2")
    plan = run_plan(store, machine.places)
    tasks = [
        copy_task(plan, store, Branch(f"stability/level_2/at_10/copy_{number}", replicate, 2))
        for replicate, number in ((1, 1), (1, 2), (2, 1))
    ]
    assert equal([tasks[0].weights, tasks[0].mask], [tasks[1].weights, tasks[1].mask])
    assert equal([tasks[0].weights], [masked(store.read_rewind(1), store.read_ticket(1, 2).mask)])
    assert [(task.start, task.stop, task.optimizer) for task in tasks] == [(10, 30, None)] * 3
    seeds = [task.seed for task in tasks]
    assert len({*seeds, 0, 1}) == 5, "no copy repeats the noise of another, or of the run"
    first = [
        next(shuffled_batches(plan.splits.train, 32, derive_seed(seed, "order"), 10, augment))[0]
        for seed, augment in itertools.product(seeds[:2], (False, True))
    ]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(first, 2))


@pytest.mark.parametrize(
    "more", [(), ("train={steps: 30it, batch_size: 32, optimizer: sgd, lr: 0.1, momentum: 0.9, gradient_noise: 0.5}",)]
)
def test_the_dense_network_trained_again_has_the_runs_weights_bit_for_bit(pruned, more):
    store, machine = pruned("pruning.levels=1", *more)
    look(store, machine, levels=(0,), at=(Duration(13, "it"),))
    rewound, _ = pruned("pruning.levels=1", "pruning.rewind=13it", *more, folder="rewound")
    trunk = at(store, 0, 13).part("trunk").read_weights(1, 0, "final")
    assert equal([trunk], [rewound.read_rewind(1)])
    assert not (at(store, 0, 13).part("copy_1").path / "replicate_1/rewind.safetensors").exists()


def test_a_copy_goes_on_with_what_the_optimizer_remembered(pruned, tmp_path):
    store, machine = pruned("pruning.levels=1")
    look(store, machine, levels=(0,), at=(Duration(13, "it"),))
    plan = run_plan(store, machine.places)
    task = copy_task(plan, store, Branch("stability/level_0/at_13/copy_1", 1, 0))
    assert {name.rpartition("/")[2] for name in task.optimizer} == {"step", "exp_avg", "exp_avg_sq"}
    # with the run's own noise it is the run's own network in the end
    scratch = RunStore(tmp_path / "scratch")
    list(train_level(plan, scratch, replace(task, seed=0), Settings()))
    assert equal([scratch.read_weights(1, 0, "final")], [store.read_weights(1, 0, "final")])
    list(train_level(plan, RunStore(tmp_path / "empty"), replace(task, seed=0, optimizer=None), Settings()))
    forgetful = RunStore(tmp_path / "empty").read_weights(1, 0, "final")
    assert not equal([forgetful], [store.read_weights(1, 0, "final")])


def test_copies_of_one_number_have_the_same_noise_at_every_level(pruned):
    store, machine = pruned()
    look(store, machine)
    assert at(store, 0, 0).part("copy_2").read_level(1, 0).seed == at(store, 2, 0).part("copy_2").read_level(1, 2).seed


# --- the record


def test_every_level_is_looked_at_where_the_run_rewinds_to(pruned):
    store, machine = pruned("pruning.rewind=10it", "replicates=2")
    record = look(store, machine)
    assert [(row["level"], row["step"], row["run"]) for row in record["rows"]] == [
        (level, 10, store.name) for level in range(3)
    ]
    for row in record["rows"]:
        level = row["level"]
        assert row["density"] == store.read_level(1, level).density
        lines = [line(store, level, 10, number) for number in (1, 2)]
        for split in ("validation", "train"):
            rises = [max(one[split]) - (one[split][0] + one[split][2]) / 2 for one in lines]
            assert row["barrier"][split]["mean"] == pytest.approx(sum(rises) / 2, abs=1e-12)
            assert row["barrier"][split]["n"] == 2
            assert row["barrier"][split]["high"] == estimate(rises).high
            assert row["curves"][split]["mean"][1] == pytest.approx((lines[0][split][1] + lines[1][split][1]) / 2)
            assert row["curves"][split]["low"][1] == min(one[split][1] for one in lines)
            assert row["curves"][split]["high"][1] == max(one[split][1] for one in lines)
        ends = [at(store, level, 10).part(f"copy_{n}").read_level(r, level) for r in (1, 2) for n in (1, 2)]
        assert row["error"]["test"]["mean"] == pytest.approx(
            1 - statistics.fmean(end.final_test_accuracy for end in ends)
        )
        # LeNet has no batch norm: the ends of the line are the networks as they were trained
        assert [lines[0]["validation"][0], lines[0]["validation"][2]] == pytest.approx(
            [1 - end.final_val_accuracy for end in ends[:2]]
        )
    assert (record["data"], record["stand_in_for"]) == ("digits", None)
    assert store.read_result("stability/stability.json") == record
    for name in ("line.png", "line.svg", "barrier.png", "barrier.svg"):
        assert (store.path / "stability" / name).stat().st_size > 1000


def test_errors_on_training_data_are_of_one_fixed_sample(pruned, monkeypatch):
    monkeypatch.setattr("ticketlab.workflows.trunk.TRAIN_SAMPLE", 100)
    store, machine = pruned()
    plan = run_plan(store, machine.places)
    one, other = train_sample(plan), train_sample(run_plan(store, machine.places, ["seed=5"]))
    assert torch.equal(one.images, other.images) and len(one) == 100
    record = look(store, machine, levels=(1,))
    found = line(store, 1, 0)["train"]
    assert all(abs(100 * error - round(100 * error)) < 1e-9 for error in found)
    assert record["examples"]["validation"] == 200


def test_removed_weights_are_zero_on_the_whole_line(pruned):
    store, machine = pruned()
    look(store, machine, levels=(2,))
    mask = store.read_ticket(1, 2).mask
    one, other = (at(store, 2, 0).part(f"copy_{n}").read_weights(1, 2, "final") for n in (1, 2))
    for alpha in positions(30):
        between = interpolate(one, other, alpha)
        assert all(not between[name][~kept].any() for name, kept in mask.items())
        assert all(between[name][kept].count_nonzero() > 0 for name, kept in mask.items())


def test_the_distance_is_that_of_the_trained_parameters(pruned):
    store, machine = pruned()
    record = look(store, machine, levels=(1,))
    one, other = (at(store, 1, 0).part(f"copy_{n}").read_weights(1, 1, "final") for n in (1, 2))
    by_hand = math.sqrt(sum(float(((one[name] - other[name]).double() ** 2).sum()) for name in one))
    assert record["rows"][0]["distance"]["mean"] == pytest.approx(by_hand, rel=1e-5)
    assert by_hand > 0


def test_three_copies_make_three_lines_and_one_figure_for_each_replicate(pruned):
    store, machine = pruned()
    row = look(store, machine, levels=(1,), interpolation=Interpolation(3, 3))["rows"][0]
    rises = [barrier(line(store, 1, 0, pair=pair)["validation"]) for pair in ("1_2", "1_3", "2_3")]
    assert row["barrier"]["validation"] == {"mean": pytest.approx(sum(rises) / 3), "low": None, "high": None, "n": 1}
    assert row["is_clear"] is None


def test_a_network_is_stable_below_two_points_of_its_mean_barrier():
    assert [verdict(Estimate(mean, None, None, 1)) for mean in (0.0199, 0.02, 0.3)] == ["stable"] + ["unstable"] * 2
    assert is_clear(Estimate(0.01, 0.005, 0.015, 3))
    assert is_clear(Estimate(0.05, 0.02, 0.08, 3))
    assert is_clear(Estimate(0.019, 0.01, 0.028, 3)) is False


# --- interruptions


def plain(record):
    """A record without the folder it stands in."""
    return {**record, "run": "", "folder": ""}


@pytest.mark.parametrize("asks", [5, 30, 60])
def test_an_interrupted_analysis_goes_on_to_the_same_record(pruned, asks):
    store, machine = pruned("pruning.levels=1")
    whole, _ = pruned("pruning.levels=1", folder="whole")
    question = {"levels": (0,), "at": (Duration(10, "it"),), "interpolation": Interpolation(2, 30)}
    left = itertools.count(asks, -1)
    with pytest.raises(Interrupted):  # in the trunk's 10 steps, in the copies' 2 × 20, on the line
        look(store, machine, lambda: next(left) <= 0, **question)
    record = look(store, machine, **question)
    assert plain(record) == plain(look(whole, machine, **question))


def test_what_is_finished_is_never_done_again(pruned):
    store, machine = pruned("pruning.levels=1")
    first = look(store, machine)
    kept = {path: path.stat().st_mtime_ns for path in store.path.rglob("metrics.json")}
    seen = list(stability_run(store, Analysis(interpolation=FEW), machine))
    assert seen == [first], "nothing was trained and no line was walked"
    finer = list(stability_run(store, Analysis(interpolation=Interpolation(2, 5)), machine))
    assert not [e for e in finer[:-1] if isinstance(e.seen, Level)], "more points need no training"
    assert finer[-1]["rows"][0]["curves"]["train"]["mean"][::2] == first["rows"][0]["curves"]["train"]["mean"]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


# --- other steps


def test_a_ticket_at_another_step_is_that_of_a_run_which_rewinds_there(pruned):
    store, machine = pruned("pruning.levels=2")
    *events, record = stability_run(
        store, Analysis((1,), (Duration(10, "it"), Duration(0, "it")), interpolation=FEW), machine
    )
    assert isinstance(events[0], Notice) and "a run that rewinds to step 10" in events[0].text
    own, other = record["rows"]
    assert (own["run"], own["step"], other["step"]) == (store.name, 0, 10)
    expected, _ = pruned("pruning.levels=1", "pruning.rewind=10it", folder="expected")
    assert other["run"] == expected.name
    made = RunStore(machine.runs / expected.name)
    assert len(made.levels(1)) == 2, "no deeper than asked for"
    assert untimed(made.read_level(1, 1)) == untimed(expected.read_level(1, 1))
    again = list(
        stability_run(store, Analysis((1,), (Duration(10, "it"), Duration(0, "it")), interpolation=FEW), machine)
    )
    assert again == [record]


def test_a_run_that_rewinds_there_already_is_taken_as_it_is(pruned):
    store, machine = pruned("pruning.levels=1")
    deeper, _ = pruned("pruning.levels=2", "pruning.rewind=10it")
    events = list(stability_run(store, Analysis((1,), (Duration(10, "it"),), interpolation=FEW), machine))
    assert not [e for e in events if isinstance(e, Notice)]
    assert events[-1]["rows"][0]["run"] == deeper.name
    asked = RunAnalysis(store, run_plan(store, machine.places), Analysis((1,)), machine, lambda: False)
    assert asked.rewound(1, 10).recipe.pruning.levels == 2, "more levels than asked for stay in its recipe"


def test_steps_are_compared_with_the_replicates_of_the_run_in_question_alone(pruned):
    other, _ = pruned("pruning.levels=1", "pruning.rewind=10it", "replicates=2")
    store, machine = pruned("pruning.levels=1")
    record = look(store, machine, levels=(1,), at=(Duration(0, "it"), Duration(10, "it")))
    assert [(row["run"], row["replicates"]) for row in record["rows"]] == [(store.name, [1]), (other.name, [1])]
    assert [row["barrier"]["validation"]["n"] for row in record["rows"]] == [1, 1]
    assert at(other, 1, 10).part("copy_1").replicates() == [1], "no copy that is not compared is trained"


def test_a_run_that_is_made_for_another_step_has_the_replicates_of_the_run_in_question(pruned):
    pruned("pruning.levels=1", "replicates=2")
    store, machine = pruned("pruning.levels=1")  # its recipe now asks for one; the second is still there
    record = look(store, machine, levels=(1,), at=(Duration(10, "it"),))
    assert record["rows"][0]["replicates"] == [1, 2]


def test_a_search_starts_at_zero_and_is_over_when_that_is_stable(pruned, monkeypatch):
    store, machine = pruned("pruning.levels=1")
    monkeypatch.setattr("ticketlab.workflows.stability.STABLE_BELOW", 1.1)
    record = look(store, machine, levels=(0,), is_search=True)
    assert record["search"] == {"stable": 0, "unstable": None, "resolution": 1, "probes": [0]}


def test_a_search_tries_every_step_of_its_grid_where_none_is_stable(pruned, monkeypatch):
    store, machine = pruned("pruning.levels=1")
    monkeypatch.setattr("ticketlab.workflows.stability.STABLE_BELOW", -1)
    record = look(store, machine, levels=(0,), is_search=True, resolution=Duration(10, "it"))
    assert record["search"] == {"stable": None, "unstable": 20, "resolution": 10, "probes": [0, 10, 20]}
    assert [(row["step"], row["verdict"]) for row in record["rows"]] == [(step, "unstable") for step in (0, 10, 20)]
    assert store.read_result("stability/level_0/search/stability.json") == record


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ({"levels": (3,)}, "has levels 0 to 1, not 3"),
        ({"levels": (0,), "at": (Duration(30, "it"),)}, "30it is step 30: not before the end of training at step 30"),
        ({"is_search": True}, "--bisect is of one level"),
        ({"levels": (0,), "is_search": True, "at": (Duration(1, "it"),)}, "leave --at out"),
        ({"levels": (0,), "resolution": Duration(1, "it")}, "belongs to a search"),
        ({"levels": (0,), "is_search": True, "resolution": Duration(30, "it")}, "give 1 to 29"),
    ],
)
def test_what_cannot_be_asked_is_said_before_anything_starts(pruned, question, said):
    store, machine = pruned("pruning.levels=1")
    with pytest.raises(TicketlabError, match=said) as caught:
        look(store, machine, **question)
    assert caught.value.exit_code == 2
    assert not (store.path / "stability").exists()


@pytest.mark.parametrize(
    ("overrides", "question", "said"),
    [
        ((), {"levels": (3,)}, "has levels 0 to 2, not 3"),
        ((), {"levels": (0,), "at": (Duration(30, "it"),)}, "30it is step 30: not before the end of training"),
        ((), {"is_search": True}, "--bisect is of one level"),
        (("pruning.after=finetune",), {}, "its tickets restart after 'finetune'"),
        (EARLY_BIRD, {"levels": (1,), "at": (Duration(20, "it"),)}, "method early_bird have .* leave --at out"),
        (EARLY_BIRD, {"levels": (1,), "is_search": True}, "method early_bird have .* give --bisect --level 0"),
        (("train.sparsify={kind: l0}",), {}, "the gates of level 0 are not kept, .* name other --level"),
        (EARLY_BIRD, {"at": (Duration(20, "it"),)}, "tickets of method early_bird have their own step only"),
    ],
)
def test_what_cannot_be_asked_of_a_recipe_is_said_before_it_is_run(tiny, places, tmp_path, overrides, question, said):
    machine = Machine(tmp_path / "runs", places, "cpu", workers=1)
    with pytest.raises(TicketlabError, match=said) as caught:
        list(stability_of(tiny(*overrides), Analysis(**question), machine))
    assert caught.value.exit_code == 2
    assert not machine.runs.exists()


def test_a_run_whose_tickets_do_not_rewind_is_refused(pruned):
    store, machine = pruned("pruning.levels=1", "pruning.after=finetune")
    with pytest.raises(TicketlabError, match="its tickets restart after 'finetune'"):
        look(store, machine)


# --- batch norm


NORMED = """
from torch import nn

def normed(inputs, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, classes))
"""


def test_a_network_with_batch_norm_is_given_the_statistics_of_its_place_on_the_line(pruned, tmp_path):
    (tmp_path / "normed.py").write_text(NORMED)
    store, machine = pruned("pruning.levels=1", "model={name: normed, file: normed.py}")
    look(store, machine, levels=(1,))
    plan = run_plan(store, machine.places)
    one, other = (at(store, 1, 0).part(f"copy_{n}").read_weights(1, 1, "final") for n in (1, 2))
    splits = {"validation": plan.splits.validation, "train": train_sample(plan)}
    network = plan.build(0)
    for point, alpha in enumerate((0.0, 0.5)):
        weights = interpolate(one, other, alpha)
        assert errors_of(network, weights, splits) == {split: line(store, 1, 0)[split][point] for split in splits}
        # the norm sees what the first layer makes of the sample, whatever statistics stood there before
        inputs = splits["train"].images.float() * splits["train"].scale + splits["train"].shift
        seen = inputs[: len(inputs) // 250 * 250].flatten(1) @ weights["1.weight"].T + weights["1.bias"]
        torch.testing.assert_close(network[2].running_mean, seen.mean(dim=0), atol=1e-5, rtol=1e-4)
        assert not torch.allclose(network[2].running_mean, weights["2.running_mean"], atol=1e-3)
