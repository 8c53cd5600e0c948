"""Time in training, written `12ep` (epochs) or `500it` (iterations, one optimizer step each)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast

PATTERN = r"^(0|[1-9][0-9]*)(ep|it)$"


@dataclass(frozen=True)
class Duration:
    """A whole number of epochs or of optimizer steps."""

    count: int
    unit: Literal["ep", "it"]

    def steps(self, steps_per_epoch: int) -> int:
        """The same time in optimizer steps."""
        return self.count * (steps_per_epoch if self.unit == "ep" else 1)

    def __str__(self) -> str:
        return f"{self.count}{self.unit}"


def parse_duration(text: object) -> Duration:
    """Read `12ep` or `500it`; raises ValueError that shows both forms."""
    if isinstance(text, Duration):
        return text
    found = re.match(PATTERN, text) if isinstance(text, str) else None
    if found is None:
        raise ValueError("write a time as '12ep' (epochs) or '500it' (optimizer steps)")
    return Duration(int(found[1]), cast(Literal["ep", "it"], found[2]))
