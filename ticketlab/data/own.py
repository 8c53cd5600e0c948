"""Examples of a client's own, in one file that never leaves its folder."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from ticketlab.data.batches import Examples
from ticketlab.errors import DataError

FILE = "examples.npz"


def own_examples(folder: Path, facts: Mapping[str, Any]) -> Examples | None:
    """The examples in `folder/examples.npz`, arrays `images` and `labels`; None where there is no such file.

    Images are (examples, channels, height, width), or without channels where the network has one, in the units in which
    the network's data set is stored (0…255 for pixels, also where they are floats); labels are (examples,) from 0.
    Raises DataError for arrays that do not fit the network; nothing is unpickled.

    Args:
        facts: Of the network: input_shape, classes, mean, std, per_unit.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        # of a path, numpy would leave the file open where it is damaged
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    except (OSError, EOFError, KeyError, ValueError, TypeError, AttributeError, BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); it holds two arrays, images and labels") from error
    if images.dim() == 3 and facts["input_shape"][0] == 1:
        images = images[:, None]
    _check(path, images, labels, facts)
    mean, std, unit = (torch.tensor(facts[key]).view(-1, 1, 1) for key in ("mean", "std", "per_unit"))
    return Examples(images, labels.long(), 1 / (unit * std), -mean / std)


def _check(path: Path, images: Tensor, labels: Tensor, facts: Mapping[str, Any]) -> None:
    wanted = tuple(facts["input_shape"])
    if tuple(images.shape[1:]) != wanted or labels.dim() != 1 or len(labels) != len(images) or not len(labels):
        raise DataError(
            f"{path}: images are {tuple(images.shape)} and labels {tuple(labels.shape)}; the network wants images of "
            f"{wanted} and one label for each"
        )
    if images.is_complex() or not bool(images.isfinite().all()):
        raise DataError(f"{path}: images have numbers that are not finite, or are not real")
    if labels.is_floating_point() or labels.is_complex():
        raise DataError(f"{path}: labels are {str(labels.dtype).removeprefix('torch.')}, not whole numbers")
    labels = labels.long()  # of unsigned numbers torch knows no least
    if int(labels.min()) < 0 or int(labels.max()) >= facts["classes"]:
        raise DataError(f"{path}: labels lie in {int(labels.min())}…{int(labels.max())}, not 0…{facts['classes'] - 1}")
