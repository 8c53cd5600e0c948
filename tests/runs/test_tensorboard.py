import dataclasses

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ticketlab.runs.store import Level
from ticketlab.runs.tensorboard import FederationEvents, LevelEvents, log_level, write_run_summary


def level(index, share):
    values = {field.name: 0 for field in dataclasses.fields(Level)}
    return Level(**{**values, "level": index, "layers": {"fc.weight": share}, "test_accuracy": 0.9})


def read(folder):
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return events


def test_a_level_logs_scalars_densities_and_histograms_of_live_weights(tmp_path):
    mask = {"fc.weight": torch.tensor([[True, False, False, True]])}
    with LevelEvents(tmp_path, 0) as events:
        events.point(100, {"step": 100, "train_loss": 0.5, "val_accuracy": 0.9, "lr": 0.1, "step_ms": 1.5})
        events.weights({"fc.weight": torch.tensor([[2.0, 0.0, 0.0, -3.0]])}, mask, 100)
    found = read(tmp_path)
    assert set(found.Tags()["scalars"]) == {
        "loss/train", "accuracy/val", "training/lr", "training/step_ms",
    }  # fmt: skip
    histogram = found.Histograms("live_weights/fc.weight")[0].histogram_value
    assert (histogram.num, histogram.min, histogram.max) == (2, -3, 2)


def test_finished_levels_are_points_of_their_replicates_curves(tmp_path):
    for index, share in enumerate((1.0, 0.8)):
        log_level(tmp_path, level(index, share))
    found = read(tmp_path)
    assert [(e.step, round(e.value, 6)) for e in found.Scalars("density/fc.weight")] == [(0, 1.0), (1, 0.8)]
    assert [e.step for e in found.Scalars("test_accuracy/replicate")] == [0, 1]


def test_a_level_taken_up_hides_what_was_logged_beyond_its_checkpoint(tmp_path):
    with LevelEvents(tmp_path, 0) as events:
        for step in (100, 200, 300):
            events.point(step, {"val_loss": float(step)})
    with LevelEvents(tmp_path, 150) as events:
        events.point(200, {"val_loss": -1.0})
    assert [(e.step, e.value) for e in read(tmp_path).Scalars("loss/val")] == [(100, 100.0), (200, -1.0)]


def test_the_run_summary_is_one_run_with_recipe_hparams_and_margin(tmp_path):
    rows = [{"density": 1.0, "mean": 0.97, "lowest": 0.96, "highest": 0.98}] * 2
    for _ in range(2):  # written again when a run is extended
        write_run_summary(tmp_path, "method: imp\n", {"train.lr": 0.1, "method": "imp"}, rows)
    assert len(list(tmp_path.iterdir())) == 1
    found = read(tmp_path)
    tags = found.Tags()
    assert {"test_accuracy/mean", "test_accuracy/lowest", "test_accuracy/highest"} <= set(tags["scalars"])
    assert "recipe/text_summary" in tags["tensors"]
    plugins = {name for name in ("hparams", "custom_scalars", "text") if found.PluginTagToContent(name)}
    assert plugins == {"hparams", "custom_scalars", "text"}


def finished(number, names=("pi1", "pi2"), **more):
    client = {
        "state": "ok",
        "bytes_up": 1000,
        "bytes_down": 2072,
        "seconds": 1.5,
        "loss": 0.5,
        "accuracy": 0.25,
        "memory_mib": 200.0,
    }
    return {
        "round": number, "test_accuracy": number / 10, "val_accuracy": number / 20, "density": 0.5, "seconds": 2.0,
        "rule": {"mask_distance": 0.125, "drawn": None, "densities": {"pi1": 0.5}},
        "spread": {"accuracy": {"mean": 0.75, "lowest": 0.5, "worst_tenth": 0.5}, "accuracy_after": None},
        "clients": [{"name": name, **client, "accuracy_after": None} for name in names], **more,
    }  # fmt: skip


def points(found, tag):
    return [(event.step, round(event.value, 6)) for event in found.Scalars(tag)]


def test_each_round_is_a_point_of_every_curve(tmp_path):
    with FederationEvents(tmp_path) as events:
        events.round(finished(1))
        events.round(finished(2))
    found = read(tmp_path)
    assert points(found, "accuracy/test") == [(1, 0.1), (2, 0.2)]
    assert points(found, "accuracy/validation") == [(1, 0.05), (2, 0.1)]
    assert points(found, "accuracy_by_kib/test") == [(6, 0.1), (12, 0.2)]  # 2 · 3,072 bytes a round
    assert points(found, "federation/clients_that_answered") == [(1, 2.0), (2, 2.0)]
    assert points(found, "rule/mask_distance") == [(1, 0.125), (2, 0.125)]
    assert points(found, "spread/accuracy_lowest") == [(1, 0.5), (2, 0.5)]
    assert points(found, "client_bytes_up/pi2") == [(1, 1000.0), (2, 1000.0)]
    tags = set(found.Tags()["scalars"])
    assert "client_accuracy/pi1" in tags
    assert not {"rule/drawn", "rule/densities", "client_accuracy_after/pi1", "spread/accuracy_after_mean"} & tags


def test_rounds_of_an_earlier_process_are_written_anew_and_not_twice(tmp_path):
    with FederationEvents(tmp_path) as events:
        events.round(finished(1))
    with FederationEvents(tmp_path) as events:
        for number in (1, 2, 3):
            events.round(finished(number))
    found = read(tmp_path)
    assert points(found, "accuracy/test") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert [step for step, _ in points(found, "accuracy_by_kib/test")] == [6, 12, 18]


def test_a_client_that_did_not_answer_has_no_point_among_those_that_did(tmp_path):
    record = finished(1)
    record["clients"][1] |= {"state": "timeout", "loss": None, "accuracy": None}
    with FederationEvents(tmp_path) as events:
        events.round(record)
    found = read(tmp_path)
    assert points(found, "federation/clients_that_answered") == [(1, 1.0)]
    assert "client_loss/pi2" not in found.Tags()["scalars"] and "client_loss/pi1" in found.Tags()["scalars"]


def test_of_many_clients_the_spread_tells(tmp_path):
    with FederationEvents(tmp_path) as events:
        events.round(finished(1, [f"c{index}" for index in range(21)]))
    tags = read(tmp_path).Tags()["scalars"]
    assert not [tag for tag in tags if tag.startswith("client_")] and "spread/accuracy_mean" in tags
