"""What messages hold and under which names; blobs as Flower carries them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict

ARRAYS, TASK, METRICS = "arrays", "task", "metrics"
"""Records of a message: blobs, what to do as JSON, numbers to show."""
NETWORK, EXTRA = "network", "extra"
"""Blobs, each a ticket of the codec."""
SECURE = "secaggplus_configs"
"""Record of a message of Flower's SecAgg+."""
NEEDS_MASK = "needs-mask"
"""In a client's answer: send it again, with the mask."""


def blobs(parts: Mapping[str, bytes]) -> ArrayRecord:
    """Bytes as Flower carries them."""
    return ArrayRecord(array_dict={name: Array(np.frombuffer(part, np.uint8)) for name, part in parts.items()})


def blobs_of(content: RecordDict) -> dict[str, bytes]:
    """The bytes of a message; raises KeyError where it has none."""
    return {name: array.numpy().tobytes() for name, array in content.array_records[ARRAYS].items()}
