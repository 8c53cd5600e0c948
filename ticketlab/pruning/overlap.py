"""What masks have in common, and what the mask of a first layer looks like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ticketlab.pruning.masks import Mask

SMALLEST_PICTURE = 8


def is_comparable(one: Mask, other: Mask) -> bool:
    """Whether two masks are of the same weights: one of channels and one of weights are not."""
    return bool(one) and {n: kept.shape for n, kept in one.items()} == {n: kept.shape for n, kept in other.items()}


def kept_by_both(one: Mask, other: Mask) -> float:
    """Of the weights that one mask keeps, the share that the other keeps, too."""
    pairs = [(_bits(kept), _bits(other[name])) for name, kept in one.items()]
    both = sum(np.count_nonzero(kept & kept_there) for kept, kept_there in pairs)
    return both / max(1, sum(np.count_nonzero(kept) for kept, _ in pairs))


def _bits(kept: Tensor) -> NDArray[np.bool_]:
    """A mask for NumPy, which counts truths ten times as fast as PyTorch adds them up."""
    return np.asarray(kept.cpu().numpy(), dtype=np.bool_)


def between_replicates(masks: Sequence[Mask]) -> float | None:
    """Mean share over all pairs of masks of one density; None for a single mask."""
    if len(masks) < 2:
        return None
    return fmean(kept_by_both(one, other) for one, other in combinations(masks, 2))


def by_chance(masks: Sequence[Mask]) -> float:
    """What `between_replicates` would be of random masks, each with as many weights in each layer.

    Args:
        masks: Two or more.
    """
    counts = [{name: np.count_nonzero(_bits(found)) for name, found in mask.items()} for mask in masks]
    sizes = {name: found.numel() for name, found in masks[0].items()}
    shares = [
        sum(one[name] * other[name] / size for name, size in sizes.items()) / max(1, sum(one.values()))
        for one, other in combinations(counts, 2)
    ]
    return fmean(shares)


def nesting(masks: Sequence[Mask]) -> NDArray[np.float64]:
    """Of each mask's weights (row), the share that another keeps, too (column)."""
    return np.array([[kept_by_both(one, other) for other in masks] for one in masks])


def picture_shape(inputs: int) -> tuple[int, int, int] | None:
    """Channels, height and width of square pictures with so many numbers; None for inputs that are no picture."""
    for channels in (1, 3):
        side = round((inputs / channels) ** 0.5)
        if side >= SMALLEST_PICTURE and channels * side * side == inputs:
            return channels, side, side
    return None


def by_pixel(mask: Tensor) -> NDArray[np.float64] | None:
    """Of each input pixel's weights into a first linear layer, the share that remains, (height, width).

    Args:
        mask: Of the layer, (units, inputs); None where the inputs are no square picture.
    """
    shape = picture_shape(mask.shape[1])
    if shape is None:
        return None
    return np.asarray(mask.double().mean(dim=0).reshape(shape).mean(dim=0).numpy(), dtype=np.float64)


def tiles(mask: Tensor) -> NDArray[np.float64]:
    """A first convolution's mask as one picture: filters in reading order, the input channels of each side by side.

    Args:
        mask: (filters, channels, height, width); 1 remains, 0 is removed, lines between are 0.3, wider ones between
            filters that stand beside each other. The picture is about square.
    """
    filters, channels, height, width = mask.shape
    across = channels * (width + 1) + 1
    columns = max(1, round((filters * (height + 1) / across) ** 0.5))
    made = np.full((-(-filters // columns) * (height + 1), columns * across), 0.3)
    for number in range(filters):
        for channel in range(channels):
            top, left = number // columns * (height + 1), number % columns * across + channel * (width + 1)
            made[top : top + height, left : left + width] = mask[number, channel].numpy()
    return made


def first_layer(mask: Mapping[str, Tensor]) -> tuple[str, NDArray[np.float64]] | None:
    """Name and picture of the first layer's mask; None where there is nothing to see, as of channels or of a table."""
    if not mask:
        return None
    name, first = next(iter(mask.items()))
    if first.dim() == 4:
        return name, tiles(first)
    if first.dim() == 2 and (shares := by_pixel(first)) is not None:
        return name, shares
    return None
