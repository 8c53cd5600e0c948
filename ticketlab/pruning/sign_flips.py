"""How often each weight changed sign: counts that cost a few per cent of an optimizer step at most.

Signs are compared after every step, zero counting as positive. A byte per weight counts within a block of steps and
is added to a wider total at the block's end, before it can overflow.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

BLOCK = 255
"""Steps that a byte can count."""
FINENESS = 16
"""Blocks in a half-life: forgetting goes in steps of 1 − 2^(−1/16), 4 %."""


class SignFlips:
    """Sign changes of tensors that training changes in place.

    Args:
        weights: The tensors as they stand before the first step.
        most: Steps that will be counted at most; decides the integer type of the totals.
        half_life: Steps after which a flip counts half in `recent`; None: nothing is forgotten.
    """

    def __init__(self, weights: Mapping[str, Tensor], most: int, half_life: int | None = None) -> None:
        self.weights = {name: weight.detach().reshape(-1) for name, weight in weights.items()}
        assert all(flat.data_ptr() == weights[name].data_ptr() for name, flat in self.weights.items()), "a copied view"
        self.half_life = half_life
        self.block = min(BLOCK, max(1, half_life // FINENESS)) if half_life else BLOCK
        device = next(iter(self.weights.values())).device
        self._sizes = [flat.numel() for flat in self.weights.values()]
        total = sum(self._sizes)
        self._now, self._before = (_Signs(self.weights, self._sizes, device) for _ in range(2))
        self._byte = torch.zeros(total, dtype=torch.uint8, device=device)
        self._total = torch.zeros(total, dtype=torch.int16 if most < 2**15 else torch.int32, device=device)
        self._decayed = torch.zeros(total if half_life else 0, device=device)
        self._in_block = 0
        self.look_()

    def go_on_from_(self, counts: Mapping[str, Tensor], recent: Mapping[str, Tensor]) -> None:
        """Start from counts made earlier, in the tensors' shapes."""
        self._total.copy_(torch.cat([counts[name].reshape(-1) for name in self.weights]))
        if self.half_life:
            self._decayed.copy_(torch.cat([recent[name].reshape(-1) for name in self.weights]))

    def look_(self) -> None:
        """Take the signs as they are now: a change made by other hands than training's is not counted."""
        self._before.read_()

    def update_(self) -> Tensor:
        """Count the flips of the step just done; returns 1 for each weight that flipped, of all tensors in a row."""
        self._now.read_()
        flipped = self._before.flags.bitwise_xor_(self._now.flags)
        self._byte += flipped
        self._now, self._before = self._before, self._now
        self._in_block += 1
        if self._in_block == self.block:
            self._end_block_()
        return flipped

    def _end_block_(self) -> None:
        self._total += self._byte
        if self.half_life:
            self._decayed = self._faded()
        self._byte.zero_()
        self._in_block = 0

    def _faded(self) -> Tensor:
        """Decayed counts as of now; flips of the present block count whole."""
        assert self.half_life is not None
        return self._decayed * 2 ** (-self._in_block / self.half_life) + self._byte

    def counts(self) -> dict[str, Tensor]:
        """Flips of each weight since counting began, in the tensors' shapes flattened."""
        return self.named(self._total + self._byte)

    def recent(self) -> dict[str, Tensor]:
        """Flips of each weight, those a half-life ago counting half; float32. All flips without a half-life."""
        return self.named(self._faded()) if self.half_life else self.counts()

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Numbers of all tensors in a row, tensor by tensor."""
        return dict(zip(self.weights, flat.split(self._sizes), strict=True))

    def state(self) -> dict[str, Tensor]:
        """All that later counts depend on, flat."""
        return {"total": self._total, "byte": self._byte, "decayed": self._decayed,
                "in_block": torch.tensor(self._in_block)}  # fmt: skip

    def restore_(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave; signs are those of the weights as they are now."""
        for own, name in ((self._total, "total"), (self._byte, "byte"), (self._decayed, "decayed")):
            own.copy_(state[name])
        self._in_block = int(state["in_block"])
        self.look_()


class _Signs:
    """1 for each negative weight of some tensors, as a byte, in a row."""

    def __init__(self, weights: Mapping[str, Tensor], sizes: list[int], device: torch.device) -> None:
        self.flags = torch.zeros(sum(sizes), dtype=torch.uint8, device=device)
        negative = self.flags.view(torch.bool).split(sizes)
        self._tensors = list(zip(weights.values(), negative, strict=True))
        # numpy's comparison is vectorised: a seventh of the time of torch's
        on_cpu = device.type == "cpu"
        self._arrays = [(flat.numpy(), flags.numpy()) for flat, flags in self._tensors] if on_cpu else []

    def read_(self) -> None:
        """Look at the weights as they are now."""
        if self._arrays:
            for weights, flags in self._arrays:
                np.less(weights, 0, out=flags)
        else:
            for flat, negative in self._tensors:
                torch.lt(flat, 0, out=negative)
