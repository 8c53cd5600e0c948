"""Training as TensorBoard events: scalars, histograms of live weights, the recipe, a margin chart."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from ticketlab.pruning.masks import Mask
from ticketlab.pruning.overlap import first_layer, is_comparable, kept_by_both
from ticketlab.runs.files import remove_files, write_bytes
from ticketlab.runs.store import Level

MARGIN = ("test_accuracy/mean", "test_accuracy/lowest", "test_accuracy/highest")
LAYOUT = {
    "by level": {
        "test accuracy: mean, lowest, highest": ["Margin", list(MARGIN)],
        "test accuracy of each replicate": ["Multiline", [r"test_accuracy/replicate"]],
        "early-stop step": ["Multiline", [r"early_stop/step"]],
        "density of each layer": ["Multiline", [r"density/(?!remaining$).*"]],
        "overlap of masks": ["Multiline", [r"overlap/.*"]],
    },
    "training": {
        "loss": ["Multiline", [r"loss/.*"]],
        "validation accuracy": ["Multiline", [r"accuracy/val"]],
        "sign flips": ["Multiline", [r"sign_flip_rate/.*"]],
    },
}
"""Of the page of custom scalars."""
OVER_INPUTS = "(yellow: share of weights that remain at each input, blue: mean training image)"


class Events:
    """A folder's events, on disk when the block ends."""

    def __init__(self, writer: SummaryWriter) -> None:
        self._writer = writer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()


class LevelEvents(Events):
    """Events of one level; a level taken up at step `start` hides what was logged beyond it before."""

    def __init__(self, folder: Path, start: int) -> None:
        # the name of a file begins with the second and then says nothing of order
        while list(folder.glob(f"events.out.tfevents.{int(time.time()):010}.*")):
            time.sleep(0.05)
        super().__init__(SummaryWriter(str(folder), purge_step=start))

    def point(self, step: int, values: Mapping[str, float]) -> None:
        """One point of the evaluation grid."""
        for name, value in values.items():
            if name != "step":
                self._writer.add_scalar(_tag(name), value, step)

    def weights(self, weights: Mapping[str, Tensor], mask: Mask, step: int) -> None:
        """Histogram of each layer's live weights; dead ones would hide them under a spike at zero."""
        for name, kept in mask.items():
            self.histogram(f"live_weights/{name}", weights[name][kept], step)

    def scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        """Named numbers under one heading."""
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)

    def histogram(self, name: str, values: Tensor, step: int) -> None:
        """Distribution of those numbers that are finite; nothing where there are none, for that cannot be drawn."""
        known = values[values.isfinite()]
        if known.numel():
            self._writer.add_histogram(name, known.cpu().numpy(), step)

    def picture(self, name: str, png: bytes, step: int) -> None:
        """A figure as it stands now."""
        self._writer.add_image(name, _pixels(png), step, dataformats="HWC")

    def flush(self) -> None:
        """Put all events on disk."""
        self._writer.flush()


def _tag(name: str) -> str:
    if "/" in name:
        return name
    split, _, figure = name.partition("_")
    return f"{figure}/{split}" if split in ("train", "val") else f"training/{name}"


def log_level(
    folder: Path, level: Level, mask: Mask, before: Mask | None = None, inputs: NDArray[np.float32] | None = None
) -> None:
    """A finished level as one point of its replicate's curves over levels, and its first layer's mask as a picture.

    Args:
        before: Mask of the level before, where there is one.
        inputs: Mean training image, (height, width), to see what the mask looks at.
    """
    with _whole_file(folder, f"level_{level.level:04}") as writer:
        writer.add_scalar("test_accuracy/replicate", level.test_accuracy, level.level)
        writer.add_scalar("early_stop/step", level.early_stop_step, level.level)
        for name, value in level.layers.items():
            writer.add_scalar(f"density/{name}", value, level.level)
        if level.effective_density is not None:
            writer.add_scalar("density/effective", level.effective_density, level.level)
        if before and is_comparable(mask, before):
            writer.add_scalar("overlap/kept_by_the_level_before", kept_by_both(mask, before), level.level)
        if seen := first_layer(mask):
            name, shares = seen
            behind = inputs if inputs is not None and inputs.shape == shares.shape else None
            tag = f"mask/{name} (bright: weights that remain)" if behind is None else f"mask/{name} {OVER_INPUTS}"
            writer.add_image(tag, _magnified(shares, behind), level.level, dataformats="HWC")


@contextmanager
def _whole_file(folder: Path, name: str) -> Iterator[SummaryWriter]:
    """A writer of one file of events in a folder that has several: it takes the place of an earlier one of its name.

    TensorBoard reads the files of a folder by their names, which begin with the second; the writer's own go on with a
    plain number, of which 10 comes before 9.
    """
    with tempfile.TemporaryDirectory() as aside:
        with SummaryWriter(aside) as writer:
            yield writer
        (made,) = Path(aside).iterdir()
        content = made.read_bytes()
    path = folder / f"events.out.tfevents.{int(time.time()):010}.{name}"
    write_bytes(path, content)
    remove_files(old for old in folder.glob(f"events.out.tfevents.*.{name}") if old != path)


def _magnified(shares: NDArray[np.float64], behind: NDArray[np.float32] | None) -> NDArray[np.uint8]:
    """Large pixels, (height, width, 3): yellow where weights remain, blue where inputs are bright, white where both.

    Grey where there are no inputs. Blue and yellow are told apart by colour-blind eyes.
    """
    layers = (shares, shares, shares if behind is None else behind)
    pixels = np.stack([np.uint8(255 * layer / max(float(layer.max()), 1e-12)) for layer in layers], axis=2)
    times = max(1, 280 // max(shares.shape))
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


def _fresh(folder: Path) -> SummaryWriter:
    """A writer of a folder whose earlier events are deleted."""
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    return SummaryWriter(str(folder))


class RunEvents(Events):
    """A run as a whole in its own folder: recipe, hyper-parameters, accuracy against level; earlier ones are dropped.

    Args:
        settings: Hyper-parameters by dotted name; values of text, number or truth.
    """

    def __init__(self, folder: Path, recipe_text: str, settings: Mapping[str, Any]) -> None:
        super().__init__(_fresh(folder))
        self._writer.add_text("recipe", "```yaml\n" + recipe_text + "```")
        self._writer.add_custom_scalars(LAYOUT)
        # the public add_hparams() would open a second run beside this one
        assert self._writer.file_writer is not None
        for record in hparams(dict(settings), dict.fromkeys((MARGIN[0], "density/all"), 0.0)):
            self._writer.file_writer.add_summary(record)
        self._writer.flush()

    def level(self, level: int, row: Mapping[str, Any]) -> None:
        """A level that all replicates have finished.

        Args:
            row: Density; mean, lowest, highest test accuracy over replicates; overlap, the share of weights that two
                replicates both keep, or None; by_chance, that of random masks.
        """
        for tag in MARGIN:
            self._writer.add_scalar(tag, row[tag.rpartition("/")[2]], level)
        self._writer.add_scalar("density/all", row["density"], level)
        if row["overlap"] is not None:
            self._writer.add_scalar("overlap/between_replicates", row["overlap"], level)
            self._writer.add_scalar("overlap/by_chance", row["by_chance"], level)
        self._writer.flush()


def write_fusion(folder: Path, record: Mapping[str, Any]) -> None:
    """A fusion: error against units left for each group, accuracy of each stage, what was made of what."""
    with _fresh(folder) as writer:
        for name, curve in record["error_curves"].items():
            for units, error in enumerate(curve):
                writer.add_scalar(f"fusion_error/{name}", error, units)
        for index, stage in enumerate(record["stages"]):
            writer.add_scalar(f"fusion_accuracy/{stage['stage']}", stage["test_accuracy"], index)
        writer.add_text("widths", _table([{"layer": name, "units": units} for name, units in record["widths"].items()]))


def write_table(folder: Path, name: str, rows: Sequence[Mapping[str, Any]], pictures: Mapping[str, bytes]) -> None:
    """Rows as a table, beside figures, as PNG."""
    with _fresh(folder) as writer:
        writer.add_text(name, _table(rows))
        _add_pictures(writer, pictures)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown; columns in the order of the first row."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, ["---"] * len(names), *([str(row.get(name, "")) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def write_pictures(folder: Path, pictures: Mapping[str, bytes]) -> None:
    """Figures, as PNG, under their names."""
    with _fresh(folder) as writer:
        _add_pictures(writer, pictures)


def _add_pictures(writer: SummaryWriter, pictures: Mapping[str, bytes]) -> None:
    for name, content in pictures.items():
        writer.add_image(name, _pixels(content), dataformats="HWC")


def write_curves(folder: Path, curves: Mapping[str, Mapping[int, float]], pictures: Mapping[str, bytes]) -> None:
    """Named curves, step → value each, beside figures, as PNG."""
    with _fresh(folder) as writer:
        _add_pictures(writer, pictures)
        for name, curve in curves.items():
            for step, value in curve.items():
                writer.add_scalar(name, value, step)


def write_stability(folder: Path, record: Mapping[str, Any], pictures: Mapping[str, bytes]) -> None:
    """An instability analysis: barriers by level, or by step where steps differ; errors along each line; figures."""
    rows = record["rows"]
    by_step = len({row["step"] for row in rows}) > 1
    with _fresh(folder) as writer:
        for row in rows:
            where = f"by_step_of_level_{row['level']}" if by_step else "by_level"
            place = row["step"] if by_step else row["level"]
            for split, found in row["barrier"].items():
                writer.add_scalar(f"barrier_{where}/{split}", found["mean"], place)
            writer.add_scalar(f"distance_{where}/l2", row["distance"]["mean"], place)
            for split, curve in row["curves"].items():
                for point, error in enumerate(curve["mean"]):
                    writer.add_scalar(f"error_on_line/level_{row['level']}_at_{row['step']}_{split}", error, point)
        for name, content in pictures.items():
            writer.add_image(f"stability/{name}", _pixels(content), dataformats="HWC")


def _pixels(png: bytes) -> NDArray[np.uint8]:
    """A PNG's pixels, (height, width, 3)."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


CLIENTS = 20
"""Clients that get curves of their own; of more the spread tells."""


class FederationEvents(Events):
    """Events of a federation: a point for each round; what an earlier process wrote is written anew."""

    def __init__(self, folder: Path) -> None:
        super().__init__(_fresh(folder))
        self._sent = 0

    def round(self, record: Mapping[str, Any]) -> None:
        """A finished round: accuracy against rounds and against KiB sent so far, each client, the spread, the rule."""
        number, clients = record["round"], record["clients"]
        self._sent += sum(client["bytes_up"] + client["bytes_down"] for client in clients)
        scalars = {
            "accuracy/test": record["test_accuracy"],
            "accuracy/validation": record["val_accuracy"],
            "federation/density": record["density"],
            "federation/seconds": record["seconds"],
            "federation/clients_that_answered": sum(client["state"] == "ok" for client in clients),
            **{f"rule/{key}": value for key, value in record["rule"].items() if isinstance(value, int | float)},
            **{f"spread/{key}_{name}": value for key in ("accuracy", "accuracy_after")
               for name, value in (record["spread"][key] or {}).items()},
        }  # fmt: skip
        for client in clients if len(clients) <= CLIENTS else ():
            told = {
                key: client[key]
                for key in ("accuracy", "accuracy_after", "loss", "bytes_up", "bytes_down", "seconds", "memory_mib")
            }
            scalars |= {f"client_{key}/{client['name']}": value for key, value in told.items() if value is not None}
        for tag, value in scalars.items():
            self._writer.add_scalar(tag, value, number)
        self._writer.add_scalar("accuracy_by_kib/test", record["test_accuracy"], self._sent // 1024)
        self._writer.flush()
