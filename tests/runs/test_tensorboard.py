import dataclasses
import io
import re

import numpy as np
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ticketlab.runs.store import Level
from ticketlab.runs.tensorboard import LAYOUT, FederationEvents, LevelEvents, RunEvents, log_level, write_table


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
    before = {"fc.weight": torch.tensor([[True, True, False, True]])}
    after = {"fc.weight": torch.tensor([[True, False, True, True]])}
    log_level(tmp_path, level(0, 1.0), before)
    log_level(tmp_path, level(1, 0.8), after, before)
    found = read(tmp_path)
    assert [(e.step, round(e.value, 6)) for e in found.Scalars("overlap/kept_by_the_level_before")] == [(1, 0.666667)]
    assert found.Tags()["images"] == []  # four inputs are no picture
    assert [(e.step, round(e.value, 6)) for e in found.Scalars("density/fc.weight")] == [(0, 1.0), (1, 0.8)]
    assert [e.step for e in found.Scalars("test_accuracy/replicate")] == [0, 1]


def test_levels_stand_in_order_however_fast_they_come_and_each_once(tmp_path):
    mask = {"fc.weight": torch.tensor([[True, True]])}
    for index in (*range(12), 11):  # the last one trained again
        log_level(tmp_path, level(index, 1.0), mask)
    assert [e.step for e in read(tmp_path).Scalars("test_accuracy/replicate")] == list(range(12))


def test_the_first_layers_mask_is_a_picture_of_the_inputs_it_looks_at(tmp_path):
    mask = torch.zeros(2, 64, dtype=torch.bool)
    mask[:, 0] = True  # the pixel in the upper left corner keeps both of its weights
    mask[0, 9] = True  # one to the right and below keeps one of two
    log_level(tmp_path, level(1, 0.02), {"fc.weight": mask})
    (image,) = read(tmp_path).Images("mask/fc.weight (bright: weights that remain)")
    pixels = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))[:, :, 0]
    assert pixels.shape == (280, 280)
    assert (pixels[:35, :35] == 255).all() and (pixels[35:70, 35:70] == 127).all()
    assert pixels.sum() == 35 * 35 * (255 + 127)


def test_a_mask_is_yellow_over_the_mean_image_in_blue(tmp_path):
    mask = torch.zeros(2, 64, dtype=torch.bool)
    mask[:, 0] = mask[:, 1] = True
    mean = np.zeros((8, 8), dtype=np.float32)
    mean[0, 1] = mean[0, 2] = 40.0
    log_level(tmp_path, level(1, 0.02), {"fc.weight": mask}, None, mean)
    tag = "mask/fc.weight (yellow: share of weights that remain at each input, blue: mean training image)"
    (image,) = read(tmp_path).Images(tag)
    pixels = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))[0, ::35]
    assert pixels[:4].tolist() == [[255, 255, 0], [255, 255, 255], [0, 0, 255], [0, 0, 0]]


def test_a_layer_without_finite_weights_has_no_histogram_and_stops_nothing(tmp_path):
    weights = {
        "empty": torch.ones(2),
        "broken": torch.tensor([float("nan"), float("inf")]),
        "half": torch.tensor([1.0, 2]),
    }
    kept = {"empty": torch.zeros(2, dtype=torch.bool), "broken": torch.ones(2, dtype=torch.bool)}
    with LevelEvents(tmp_path, 0) as events:
        events.weights(weights, {**kept, "half": torch.tensor([False, True])}, 1)
    assert read(tmp_path).Tags()["histograms"] == ["live_weights/half"]


def test_a_level_taken_up_hides_what_was_logged_beyond_its_checkpoint(tmp_path):
    with LevelEvents(tmp_path, 0) as events:
        for step in (100, 200, 300):
            events.point(step, {"val_loss": float(step)})
    with LevelEvents(tmp_path, 150) as events:
        events.point(200, {"val_loss": -1.0})
    assert [(e.step, e.value) for e in read(tmp_path).Scalars("loss/val")] == [(100, 100.0), (200, -1.0)]


def test_the_run_summary_is_one_run_with_recipe_hparams_and_margin(tmp_path):
    dense = {"density": 1.0, "mean": 0.97, "lowest": 0.96, "highest": 0.98, "overlap": None, "by_chance": 1.0}
    rows = [dense, {**dense, "density": 0.5, "overlap": 0.625, "by_chance": 0.55}]
    for _ in range(2):  # written again when a run is extended
        with RunEvents(tmp_path, "method: imp\n", {"train.lr": 0.1, "method": "imp"}) as events:
            for number, row in enumerate(rows):
                events.level(number, row)
    assert len(list(tmp_path.iterdir())) == 1
    found = read(tmp_path)
    tags = found.Tags()
    assert {"test_accuracy/mean", "test_accuracy/lowest", "test_accuracy/highest"} <= set(tags["scalars"])
    assert [(e.step, e.value) for e in found.Scalars("overlap/between_replicates")] == [(1, 0.625)]
    assert [(e.step, round(e.value, 6)) for e in found.Scalars("overlap/by_chance")] == [(1, 0.55)]
    assert "recipe/text_summary" in tags["tensors"]
    plugins = {name for name in ("hparams", "custom_scalars", "text") if found.PluginTagToContent(name)}
    assert plugins == {"hparams", "custom_scalars", "text"}


def test_every_chart_of_the_layout_has_what_it_shows(tmp_path):
    mask = {"fc.weight": torch.tensor([[True, False]])}
    with LevelEvents(tmp_path, 0) as events:
        events.point(1, {"train_loss": 0.5, "val_loss": 0.5, "val_accuracy": 0.9, "density/remaining": 0.5})
        events.scalars("sign_flip_rate", {"fc.weight": 0.5}, 1)
    log_level(tmp_path, level(1, 0.5), mask, mask)
    row = {"density": 0.5, "mean": 0.9, "lowest": 0.8, "highest": 1.0, "overlap": 0.5, "by_chance": 0.5}
    with RunEvents(tmp_path / "run", "", {}) as events:
        events.level(0, row)
    tags = {*read(tmp_path).Tags()["scalars"], *read(tmp_path / "run").Tags()["scalars"]}
    shown = {
        name: {tag for pattern in patterns for tag in tags if re.match(f"{pattern}$", tag)}
        for charts in LAYOUT.values()
        for name, (_, patterns) in charts.items()
    }
    assert all(shown.values()), shown
    assert shown["density of each layer"] == {f"density/{name}" for name in ("all", "effective", "fc.weight")}, (
        "nothing that has another x axis"
    )


def test_a_table_is_text_beside_its_figures(tmp_path):
    for verdict in ("holds", "fails"):  # written anew each time
        write_table(tmp_path, "claims", [{"claim": "one", "n": 5}, {"claim": "two", "verdict": verdict}], {})
    assert len(list(tmp_path.iterdir())) == 1
    (event,) = read(tmp_path).Tensors("claims/text_summary")
    assert event.tensor_proto.string_val[0].decode().splitlines() == [
        "| claim | n | verdict |", "| --- | --- | --- |", "| one | 5 |  |", "| two |  | fails |",
    ]  # fmt: skip


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
