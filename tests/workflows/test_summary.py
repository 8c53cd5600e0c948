"""The summary of a run in TensorBoard."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ticketlab.runs.store import RunStore
from ticketlab.workflows.summary import Summary, common_levels, flat_settings


def points(store, tag):
    """Level → value."""
    return {event.step: event.value for event in EventAccumulator(str(store.path)).Reload().Scalars(tag)}


def test_a_level_is_added_when_its_last_replicate_is_finished_and_its_masks_are_read_once(tiny, pruned, monkeypatch):
    store, _ = pruned("replicates=2")
    recipe = tiny("replicates=2").recipe
    late = store.level_dir(2, 2) / "metrics.json"
    content = late.read_bytes()
    late.unlink()
    reads = []
    read = RunStore.read_ticket
    monkeypatch.setattr(RunStore, "read_ticket", lambda self, *where: reads.append(where) or read(self, *where))
    with Summary(store, recipe) as summary:
        assert common_levels(store, recipe) == 2 and set(points(store, "test_accuracy/mean")) == {0, 1}
        late.write_bytes(content)
        summary.update()
        summary.update()
        found = points(store, "test_accuracy/mean")
    assert set(found) == {0, 1, 2} and reads == [(1, 1), (2, 1), (1, 2), (2, 2)]
    both = [json.loads((store.level_dir(n, 2) / "metrics.json").read_text())["test_accuracy"] for n in (1, 2)]
    assert found[2] == pytest.approx(sum(both) / 2)
    assert set(points(store, "overlap/between_replicates")) == {1, 2}


def test_hyper_parameters_are_those_of_the_method(tiny):
    settings = flat_settings(tiny("watch=[sign_flips]").recipe)
    assert settings["train.optimizer"] == "adam" and settings["watch"] == "sign_flips" and settings["seed"] == 0
    assert not [name for name in settings if name.startswith(("early_bird", "schedule", "federate", "claims"))]
    assert flat_settings(tiny("federate.rounds=7").recipe)["federate.rounds"] == 7
