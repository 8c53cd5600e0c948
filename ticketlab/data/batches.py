"""Resident tensors → normalised batches in a seeded order; split, crop and flip."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ticketlab.data.dataset import Dataset
from ticketlab.errors import DataError
from ticketlab.seeds import derive_seed

CROP_BORDER = 4  # pixels


@dataclass(frozen=True)
class Examples:
    """Images (examples, channels, height, width) as stored and labels (examples,), with their normalisation."""

    images: Tensor
    labels: Tensor
    scale: Tensor
    """Per channel, (channels, 1, 1): normalised = image · scale + shift."""
    shift: Tensor
    groups: Tensor | None = None
    """Person or hospital of each example, (examples,), where the data set tells."""

    def __len__(self) -> int:
        return len(self.labels)

    def some(self, chosen: Tensor) -> Examples:
        """The examples at these indices."""
        groups = None if self.groups is None else self.groups[chosen]
        return Examples(self.images[chosen], self.labels[chosen], self.scale, self.shift, groups)

    def first(self, count: int) -> Examples:
        """The first examples, at most so many."""
        return self.some(torch.arange(min(count, len(self))))

    def to(self, device: torch.device) -> Examples:
        """The same examples on a device."""
        images, labels, scale, shift = (t.to(device) for t in (self.images, self.labels, self.scale, self.shift))
        return Examples(images, labels, scale, shift, None if self.groups is None else self.groups.to(device))


@dataclass(frozen=True)
class Splits:
    """Training, validation and test examples of one data set."""

    train: Examples
    validation: Examples
    test: Examples
    unused: Examples
    """Training examples that the recipe does not use."""

    @property
    def of_clients(self) -> Examples:
        """What the clients of a federation share: the unused training examples, or all where all are used."""
        return self.unused if len(self.unused) else self.train

    def to(self, device: torch.device) -> Splits:
        """The same splits on a device; unused examples stay where they are."""
        return Splits(self.train.to(device), self.validation.to(device), self.test.to(device), self.unused)


def split(dataset: Dataset, validation: int, seed: int, examples: int | None = None) -> Splits:
    """Set `validation` training examples aside, drawn without replacement; the test set stays as published.

    Of the others, `examples` are for training (all when None); raises DataError where there are not so many.
    """
    order = permutation(len(dataset.train_labels), seed)
    used = len(order) - validation if examples is None else examples
    if used > len(order) - validation:
        raise DataError(f"data.examples: {dataset.name} has {len(order) - validation} training examples, not {used}")
    held_out, rest, unused = order.split([validation, used, len(order) - validation - used])
    rest, unused = rest.sort().values, unused.sort().values
    mean = torch.tensor(dataset.mean).view(-1, 1, 1)
    std = torch.tensor(dataset.std).view(-1, 1, 1)
    scale, shift = 1 / (torch.tensor(dataset.per_unit).view(-1, 1, 1) * std), -mean / std
    train = Examples(dataset.train_images, dataset.train_labels, scale, shift, dataset.train_groups)
    test = Examples(dataset.test_images, dataset.test_labels, scale, shift, dataset.test_groups)
    return Splits(train.some(rest), train.some(held_out), test, train.some(unused))


def permutation(count: int, seed: int) -> Tensor:
    """Random order of 0…count-1, the same for the same seed."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Optimizer steps in one pass; the last batch may be smaller."""
    return -(-examples // batch_size)


def shuffled_batches(
    examples: Examples, batch_size: int, seed: int, start: int, augment: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end from step `start` on, as float images and labels.

    Order and augmentation depend on the seed and the step alone, so that training can be taken up at any step.
    """
    per_epoch = steps_per_epoch(len(examples), batch_size)
    step, order = start, torch.empty(0)
    while True:
        epoch, index = divmod(step, per_epoch)
        if index == 0 or step == start:
            order = permutation(len(examples), derive_seed(seed, "order", epoch)).to(examples.labels.device)
        chosen = order[index * batch_size : (index + 1) * batch_size]
        images = examples.images.index_select(0, chosen)
        if augment:
            images = crop_and_flip(images, derive_seed(seed, "augment", step))
        yield normalise(images, examples), examples.labels.index_select(0, chosen)
        step += 1


def normalise(images: Tensor, examples: Examples) -> Tensor:
    """Images as stored → float32 with mean 0 and deviation 1 per channel; one copy, changed in place."""
    return images.to(torch.float32, copy=True).mul_(examples.scale).add_(examples.shift)


def crop_and_flip(images: Tensor, seed: int) -> Tensor:
    """Each image shifted by up to 4 pixels over a zero border and mirrored with probability ½.

    The whole batch is gathered at once; the draw depends on the seed alone, not on the device.
    """
    count, channels, height, width = images.shape
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.randint(0, 2 * CROP_BORDER + 1, (2, count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    rows = torch.arange(height) + offsets[0]
    columns = torch.where(mirrored, torch.arange(width - 1, -1, -1), torch.arange(width)) + offsets[1]
    padded_width = width + 2 * CROP_BORDER
    places = (rows[:, :, None] * padded_width + columns[:, None, :]).view(count, 1, -1).to(images.device)
    padded = functional.pad(images, [CROP_BORDER] * 4).view(count, channels, -1)
    return padded.gather(2, places.expand(-1, channels, -1)).view_as(images)
