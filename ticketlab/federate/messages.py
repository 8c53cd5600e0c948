"""What messages hold and under which names; blobs as Flower carries them."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict

from ticketlab.errors import FormatError

ARRAYS, TASK, METRICS = "arrays", "task", "metrics"
"""Records of a message: blobs, what to do as JSON, numbers to show."""
NETWORK, EXTRA = "network", "extra"
"""Blobs, each a ticket of the codec."""
UNAVAILABLE = "Node Unavailable"
"""How Flower says that a client is gone."""
HEADER, LONGEST = 512, 200
"""Bytes that NumPy's header may take; characters of a reason that are shown."""
SECURE = "secaggplus_configs"
"""Record of a message of Flower's SecAgg+."""
NEEDS_MASK = "needs-mask"
"""In a client's answer: send it again, with the mask."""


def blobs(parts: Mapping[str, bytes]) -> ArrayRecord:
    """Bytes as Flower carries them."""
    return ArrayRecord(array_dict={name: Array(np.frombuffer(part, np.uint8)) for name, part in parts.items()})


def blobs_of(content: RecordDict) -> dict[str, bytes]:
    """The bytes of a message; raises KeyError where it has none, FormatError for an array that is none of bytes.

    Nothing is taken from the array's own header: what it claims may be anything.
    """
    return {name: _bytes(name, array) for name, array in content.array_records[ARRAYS].items()}


def _bytes(name: str, array: Array) -> bytes:
    shape, data = tuple(array.shape), array.data
    count = shape[0] if len(shape) == 1 else -1
    if array.dtype != "uint8" or not 0 <= count <= len(data) <= count + HEADER:
        raise FormatError(f"'{name}' is no row of bytes")
    return data[len(data) - count :]


def said(reason: object) -> str:
    """The last line of what a client says, short and without control characters."""
    lines = str(reason).strip().splitlines() or ["failed"]
    if UNAVAILABLE in lines[-1]:
        return "lost: Flower heard nothing of it for a minute"
    wrapped = re.fullmatch(r"<class '(?:\w+\.)*(\w+)'>:<['\"](.*)['\"]>", lines[-1])
    told = f"{wrapped[1]}: {wrapped[2]}" if wrapped else lines[-1]
    return "".join(sign for sign in told if sign.isprintable())[:LONGEST]
