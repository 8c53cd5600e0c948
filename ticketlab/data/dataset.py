"""What a data set is: resident tensors as they are stored, and what they stand for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from torch import Tensor

from ticketlab.errors import DataError

PIXELS = (255.0,)


@dataclass(frozen=True)
class Dataset:
    """Images as stored (examples, channels, height, width), labels as int64 (examples,).

    Measurements that are no pictures have a height of 1, and a width of 1 where they are not a series either.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mean: tuple[float, ...]
    """Of each channel, in its unit: pixels from 0 to 1."""
    std: tuple[float, ...]
    classes: int
    source: str
    """Folder or package that it was read from."""
    named: tuple[str, ...] = ()
    """What the classes are called, where that is more than a number."""
    per_unit: tuple[float, ...] = PIXELS
    """Stored value of one unit, of each channel or of all: 255 for pixels, counts per g for an accelerometer."""
    train_groups: Tensor | None = None
    """Person or hospital of each example, int64 (examples,), where the examples have natural clients."""
    test_groups: Tensor | None = None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width of one image."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    @property
    def labels(self) -> tuple[str, ...]:
        """What each class is called; raises DataError where names and classes differ in number."""
        if self.named and len(self.named) != self.classes:
            raise DataError(f"{self.name} has {self.classes} classes and names for {len(self.named)}")
        return self.named or tuple(map(str, range(self.classes)))

    @property
    def has_pictures(self) -> bool:
        """Whether the images are pixels."""
        return self.per_unit == PIXELS

    def checksum(self) -> str:
        """SHA-256 of all images, labels and, where there are any, groups."""
        digest = hashlib.sha256()
        stored = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        for tensor in (*stored, self.train_groups, self.test_groups):
            if tensor is not None:
                digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()
