import dataclasses

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ticketlab.runs.store import Level
from ticketlab.runs.tensorboard import LevelEvents, log_level, write_run_summary


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
