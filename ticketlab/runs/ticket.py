"""The ticket file: packed mask bits and the weights to start from, as values or as the seed that draws them.

Layout, version 1 (safetensors): `mask/NAME` is uint8, one bit per weight in the tensor's order, first weight in
the highest bit; `weights/NAME` holds the surviving values in that order, or a whole tensor that no mask covers.
A ticket rewound to initialisation holds no values: `init_seed` draws them and `digest` proves that they are
the same. No pickle, no code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ticketlab.pruning.masks import Mask, pack, unpack
from ticketlab.runs.files import damaged, read_tensors, write_tensors

FORMAT = "ticketlab-ticket"
VERSION = 1


@dataclass(frozen=True)
class Ticket:
    """A mask and the weights that training restarts from."""

    mask: Mask
    weights: dict[str, Tensor] | None
    """The model's state with removed weights zero; None where `facts["init_seed"]` draws it."""
    facts: dict[str, Any]
    """Recipe hash, model, replicate, level, rewind step, and `init_seed` with `digest` or neither."""


def write_ticket(path: Path, ticket: Ticket) -> None:
    """Save a ticket in the smallest faithful form."""
    tensors = {f"mask/{name}": torch.from_numpy(pack(kept)) for name, kept in ticket.mask.items()}
    for name, value in (ticket.weights or {}).items():
        kept = ticket.mask.get(name)
        tensors[f"weights/{name}"] = value.cpu() if kept is None else value.cpu()[kept.cpu()]
    shapes = {name: list(kept.shape) for name, kept in ticket.mask.items()}
    write_tensors(path, tensors, {**ticket.facts, "format": FORMAT, "version": VERSION, "shapes": shapes})


def read_ticket(path: Path | str) -> Ticket:
    """Load a ticket; raises RunError when it is damaged or of another format or version."""
    tensors, facts = read_tensors(path)
    if (facts.pop("format", None), facts.pop("version", None)) != (FORMAT, VERSION):
        raise damaged(Path(path), f"not a {FORMAT} file of version {VERSION}")
    shapes = facts.pop("shapes")
    mask = {name: unpack(tensors[f"mask/{name}"].numpy(), shape) for name, shape in shapes.items()}
    weights = {name.removeprefix("weights/"): value for name, value in tensors.items() if name.startswith("weights/")}
    return Ticket(mask, {n: _spread(v, mask.get(n)) for n, v in weights.items()} or None, facts)


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of a state's values, independent of device and of order."""
    value = hashlib.sha256()
    for name in sorted(weights):
        value.update(name.encode())
        value.update(weights[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return value.hexdigest()


def _spread(values: Tensor, mask: Tensor | None) -> Tensor:
    """Surviving values back in their places, zero elsewhere."""
    if mask is None:
        return values
    full = torch.zeros(mask.shape, dtype=values.dtype)
    full[mask] = values
    return full
