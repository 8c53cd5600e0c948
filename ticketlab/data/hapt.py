"""Human activity (HAPT): a recording of phones at the waist → windows of one person's one activity.

Source: Reyes-Ortiz et al. 2015, "Smartphone-Based Recognition of Human Activities and Postural Transitions", its raw
signals. Length and distance of windows, and the people for testing, are those of UCI HAR (Anguita et al. 2013).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ticketlab.data.dataset import Dataset

WINDOW, STEP = 128, 64  # samples at 50 Hz: 2.56 seconds, every 1.28 seconds
SHARING = WINDOW // STEP - 1
"""Windows before a window that share samples with it."""
ACTIVITIES = ("walking", "walking upstairs", "walking downstairs", "sitting", "standing", "lying")
UNSEEN = (2, 4, 9, 10, 12, 13, 18, 20, 24)


@dataclass(frozen=True)
class Recording:
    """Samples one after the other: counts (channels, samples), the rest (samples,)."""

    counts: NDArray[np.int16]
    per_unit: tuple[float, ...]
    """Counts per g of three axes, then per rad/s of three axes."""
    subject: NDArray[np.uint8]
    run: NDArray[np.uint8]
    label: NDArray[np.int8]
    """1 to 6 are the activities, in order; all else (transitions, not labelled) is left out."""


def known_people(content: bytes, source: str) -> Dataset:
    """Every person in training and test: the last fifth of each stretch is for testing."""
    recording = _read(content)
    parts = [last_fifth(windows(*stretch)) for stretch in stretches(recording)]
    train, test = ([start for part in parts for start in part[which]] for which in (0, 1))
    return make_dataset("hapt", recording, train, test, source)


def unseen_people(content: bytes, source: str) -> Dataset:
    """UCI HAR's nine people for testing, the other 21 for training."""
    recording = _read(content)
    starts = [start for stretch in stretches(recording) for start in windows(*stretch)]
    is_unseen = np.isin(recording.subject[starts], UNSEEN)
    train, test = (np.array(starts)[chosen].tolist() for chosen in (~is_unseen, is_unseen))
    return make_dataset("hapt_unseen", recording, train, test, source)


def stretches(recording: Recording) -> list[tuple[int, int]]:
    """First sample and end of each stretch of one person, run and activity, in order of time."""
    told = (recording.subject, recording.run, recording.label)
    changes = np.flatnonzero(np.any([each[1:] != each[:-1] for each in told], axis=0)) + 1
    bounds = [0, *changes.tolist(), len(recording.label)]
    return [(first, end) for first, end in pairwise(bounds) if 1 <= recording.label[first] <= len(ACTIVITIES)]


def windows(first: int, end: int) -> range:
    """First sample of each window that lies within a stretch."""
    return range(first, end - WINDOW + 1, STEP)


def last_fifth(starts: range) -> tuple[range, range]:
    """A stretch's windows for training, and the last fifth of them (to the nearest whole number) for testing.

    The window in between that shares samples with both is dropped. Stretches of one or two windows only train.
    """
    test = round(len(starts) / 5)
    train = len(starts) - test - SHARING if test else len(starts)
    return starts[:train], starts[len(starts) - test :]


def make_dataset(name: str, recording: Recording, train: list[int], test: list[int], source: str) -> Dataset:
    """The windows that start at these samples, with their people as groups."""
    train_counts = cut(recording.counts, train)
    units = train_counts.double() / torch.tensor(recording.per_unit, dtype=torch.float64).view(-1, 1, 1)
    channels = units.transpose(0, 1).flatten(1)
    labels, people = (torch.from_numpy(each.astype(np.int64)) for each in (recording.label - 1, recording.subject))
    return Dataset(
        name,
        train_counts,
        labels[train],
        cut(recording.counts, test),
        labels[test],
        mean=tuple(channels.mean(1).tolist()),
        std=tuple(channels.std(1).tolist()),
        classes=len(ACTIVITIES),
        source=source,
        named=ACTIVITIES,
        per_unit=recording.per_unit,
        train_groups=people[train],
        test_groups=people[test],
    )


def cut(counts: NDArray[np.int16], starts: list[int]) -> Tensor:
    """The windows that start at these samples, (windows, channels, 1, WINDOW)."""
    found = np.lib.stride_tricks.sliding_window_view(counts, WINDOW, axis=1)[:, starts]
    return torch.from_numpy(found.swapaxes(0, 1)[:, :, None].copy())


def _read(content: bytes) -> Recording:
    with np.load(io.BytesIO(content), allow_pickle=False) as found:
        per_unit = tuple((1 / found["scale"]).tolist())
        return Recording(found["counts"], per_unit, found["subject"], found["run"], found["label"])
