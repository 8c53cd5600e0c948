"""A sparse network as bytes: packed masks and surviving values, nothing else; checked on arrival, never a pickle.

Layout, version 1; numbers are little-endian:

    0   4  b"TKLT"
    4   2  version
    6   4  CRC-32 of everything that follows
    10  8  length of the body before compression
    18  …  the body, compressed by zlib

    body:  length of the header (4), the header, then of each tensor its mask, if it has one, its scales, its values

The header is JSON in UTF-8, a mebibyte at most: `facts`, and `tensors` as [name, shape, dtype, stored, mask]. `mask` is
null (every value is stored); "bits" (one bit for each weight in the tensor's order, the first in the highest bit of a
byte, the last byte filled with zeros); or, where that is shorter, a number of bytes of gaps: for each surviving weight
the removed ones between it and the survivor before, 255 standing for 255 removed and no survivor yet; or "known": the
receiver has the mask, and the header's `mask` is the SHA-256 of all masks (`mask_digest`).

Values and scales are stored as planes (the lowest bytes of all, then the next), which compress better. `stored` is the
tensor's dtype, or of a float32 tensor of two dimensions or more "float16", or "int8": then a float32 scale for each
index of the first dimension comes before the values, and a weight is its int8 times its scale.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ticketlab.errors import FormatError, UnknownMask
from ticketlab.pruning.masks import Mask, masked, pack, unpack

MAGIC = b"TKLT"
VERSION = 1
PREFIX = struct.Struct("<4sHIQ")
LIMIT = 1 << 28
"""Bytes that a decoded network may take, unless the receiver says otherwise."""
DTYPES = ("float32", "float64", "float16", "int64", "int32", "uint8", "bool")
DIMENSIONS = 8
LONG_GAP = 255

LONGEST_HEADER = 1 << 20

Stored = Literal["float32", "float16", "int8"]
"""How float32 tensors are stored; float32 is exact."""


@dataclass(frozen=True)
class Sparse:
    """A network's state with removed weights +0.0, the mask of what remains, and facts about it."""

    mask: Mask
    state: dict[str, Tensor]
    facts: dict[str, Any]


def encode(network: Sparse, precision: Stored = "float32", is_known: bool = False) -> bytes:
    """The bytes of a network; of masked tensors the surviving values alone, and the mask unless the receiver knows it.

    Float16 and int8 (symmetric, one scale a row) are for masked and other tensors of two dimensions or more;
    biases and norms stay float32. Raises FormatError for numbers that float16 or int8 cannot hold, and for a network
    that `decode` would refuse.
    """
    for name, covered in network.mask.items():
        if name not in network.state or network.state[name].shape != covered.shape:
            raise FormatError(f"the mask of '{name}' fits no tensor of the network")
    if sum(value.nbytes for value in network.state.values()) + sum(map(torch.numel, network.mask.values())) > LIMIT:
        raise FormatError(f"takes more than {LIMIT:,} bytes, which a reader refuses; store it as safetensors")
    is_known = is_known and bool(network.mask)
    state = masked(network.state, network.mask)
    listed, parts = [], []
    for name, value in state.items():
        tensor, kept = value.detach().cpu().contiguous(), network.mask.get(name)
        coding, packed = ("known", b"") if is_known and kept is not None else _pack(kept)
        stored = precision if tensor.dtype == torch.float32 and tensor.dim() > 1 and tensor.numel() else _name(tensor)
        listed.append([name, list(tensor.shape), _name(tensor), stored, coding])
        parts += [packed, _values(name, tensor, kept, stored)]
    told = {"facts": network.facts, "tensors": listed, **({"mask": mask_digest(network.mask)} if is_known else {})}
    header = json.dumps(told, sort_keys=True).encode()
    body = b"".join([struct.pack("<I", len(header)), header, *parts])
    rest = struct.pack("<Q", len(body)) + zlib.compress(body, 9)
    return PREFIX.pack(MAGIC, VERSION, zlib.crc32(rest), len(body)) + rest[8:]


def decode(content: bytes, limit: int = LIMIT, known: Mask | None = None) -> Sparse:
    """The network in these bytes; raises FormatError for bytes that are damaged, or that hold no network.

    Raises UnknownMask where they count on a mask that is not `known`.

    Nothing is trusted: lengths are checked against what is there, and `limit` in bytes holds for the body, and for the
    tensors and masks together, before memory is taken for them.
    """
    reader = _Reader(_body(content, limit))
    facts, listed, digest = _header(reader)
    if digest is not None and (known is None or mask_digest(known) != digest):
        raise UnknownMask("counts on a mask that is not known here")
    mask: Mask = {}
    state: dict[str, Tensor] = {}
    free = limit
    for name, shape, dtype, stored, coding in listed:
        free -= math.prod(max(size, 1) for size in shape) * (_dtype(dtype).itemsize + (coding is not None))
        if free < 0:
            raise FormatError(f"not read: its tensors take more than {limit:,} bytes")
        kept = _known(known, name, shape) if coding == "known" else _unpack(reader, coding, shape)
        if kept is not None:
            mask[name] = kept
        state[name] = _tensor(reader, shape, dtype, stored, kept)
    reader.end()
    return Sparse(mask, state, facts)


# --- the envelope


def _body(content: bytes, limit: int) -> bytes:
    if len(content) < PREFIX.size or content[:4] != MAGIC:
        raise FormatError("not a ticket file, or cut off at its beginning")
    _, version, checksum, length = PREFIX.unpack_from(content)
    if version != VERSION:
        raise FormatError(f"a ticket file of version {version}; this ticketlab reads version {VERSION}")
    if zlib.crc32(content[10:]) != checksum:
        raise FormatError("damaged or cut off: its checksum does not match")
    if length > limit:
        raise FormatError(f"not read: it unpacks to {length:,} bytes, more than {limit:,}")
    unpacker = zlib.decompressobj()
    try:
        body = unpacker.decompress(content[PREFIX.size :], length + 1)
    except zlib.error as error:
        raise FormatError(f"damaged: {error}") from error
    if len(body) != length or not unpacker.eof or unpacker.unused_data:
        raise FormatError("damaged: its length is not what it says")
    return body


def _header(reader: _Reader) -> tuple[dict[str, Any], list[Any], str | None]:
    """Facts, tensors, and the digest of the mask that the receiver is to know."""
    (length,) = struct.unpack("<I", reader.take(4))
    if length > LONGEST_HEADER:
        raise FormatError(f"damaged: a header of {length:,} bytes")
    try:
        header = json.loads(bytes(reader.take(length)).decode())
        facts, listed, digest = header["facts"], header["tensors"], header.get("mask")
        fits = isinstance(facts, dict) and isinstance(listed, list) and all(_is_entry(entry) for entry in listed)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"damaged: its header cannot be read ({error})") from error
    if not fits or len({entry[0] for entry in listed}) != len(listed):
        raise FormatError("damaged: its header does not describe tensors")
    if (digest is not None) != any(entry[4] == "known" for entry in listed):
        raise FormatError("damaged: its header does not say which mask it counts on")
    return facts, listed, digest


def _is_entry(entry: Any) -> bool:
    if not (isinstance(entry, list) and len(entry) == 5):
        return False
    name, shape, dtype, stored, coding = entry
    return (
        isinstance(name, str)
        and isinstance(shape, list)
        and len(shape) <= DIMENSIONS
        and all(_is_count(size) for size in shape)
        and dtype in DTYPES
        and (stored == dtype or (dtype == "float32" and stored in ("float16", "int8") and len(shape) > 1))
        and (coding in (None, "bits", "known") or _is_count(coding))
    )


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**48


class _Reader:
    """Bytes taken one after the other; too few, or any left over, is an error."""

    def __init__(self, content: bytes) -> None:
        self.content = memoryview(content)
        self.at = 0

    def take(self, count: int) -> memoryview:
        if count > len(self.content) - self.at:
            raise FormatError("damaged: it ends too early")
        self.at += count
        return self.content[self.at - count : self.at]

    def end(self) -> None:
        if self.at != len(self.content):
            raise FormatError("damaged: bytes are left over")


# --- masks


def mask_digest(mask: Mask) -> str:
    """SHA-256 of names, shapes and bits, the same on every machine and in every order of layers."""
    value = hashlib.sha256()
    for name in sorted(mask):
        value.update(json.dumps([name, list(mask[name].shape)]).encode() + pack(mask[name]).tobytes())
    return value.hexdigest()


def _known(known: Mask | None, name: str, shape: list[int]) -> Tensor:
    if known is None or name not in known or list(known[name].shape) != shape:
        raise FormatError("damaged: a tensor has another shape than its mask")
    return known[name]


def _pack(kept: Tensor | None) -> tuple[str | int | None, bytes]:
    """A mask in the shorter of two codings, and which."""
    if kept is None:
        return None, b""
    bits, gaps = pack(kept).tobytes(), _gaps(kept.cpu().numpy().reshape(-1))
    return (len(gaps), gaps) if len(gaps) < len(bits) else ("bits", bits)


def _gaps(kept: NDArray[np.bool_]) -> bytes:
    """Removed weights before each survivor, a byte each, more where the gap is long."""
    long, rest = np.divmod(np.diff(np.flatnonzero(kept), prepend=-1) - 1, LONG_GAP)
    ends = np.cumsum(long + 1)
    coded = np.full(ends[-1] if len(ends) else 0, LONG_GAP, np.uint8)
    coded[ends - 1] = rest
    return coded.tobytes()


def _unpack(reader: _Reader, coding: str | int | None, shape: list[int]) -> Tensor | None:
    if coding is None:
        return None
    count = math.prod(shape)
    packed = -(-count // 8)
    if coding == "bits":
        bits = np.frombuffer(reader.take(packed), np.uint8)
        if count % 8 and bits[-1] & (0xFF >> count % 8):
            raise FormatError("damaged: a mask reaches beyond its tensor")
        return unpack(bits, shape)
    assert isinstance(coding, int)
    if coding >= packed:
        raise FormatError("damaged: gaps take more bytes than bits would")
    coded = np.frombuffer(reader.take(coding), np.uint8)
    if len(coded) and coded[-1] == LONG_GAP:
        raise FormatError("damaged: a gap ends in no survivor")
    is_end = coded < LONG_GAP
    places = np.cumsum(coded.astype(np.int64) + is_end)[is_end] - 1
    if len(places) and places[-1] >= count:
        raise FormatError("damaged: a mask reaches beyond its tensor")
    kept = np.zeros(count, bool)
    kept[places] = True
    return torch.from_numpy(kept).reshape(shape)


# --- values


def _values(name: str, tensor: Tensor, kept: Tensor | None, stored: str) -> bytes:
    """The surviving values of a tensor as they are stored, scales in front."""
    scales = b""
    if stored == "int8":
        step = tensor.flatten(1).abs().amax(1) / 127
        if not bool(step.isfinite().all()):
            raise FormatError(f"{name} has values that are not finite; int8 cannot hold them")
        step = torch.where(step < torch.finfo().tiny, 0, step)
        scales = _planes(step)
        tensor = (tensor / torch.where(step == 0, torch.inf, step).view(_rows(tensor.shape))).round().char()
    elif stored == "float16" and tensor.dtype == torch.float32:
        tensor = tensor.half()
        if not bool(tensor.isfinite().all()):
            raise FormatError(f"{name} has values that float16 cannot hold")
    return scales + _planes(tensor if kept is None else tensor[kept.cpu()])


def _tensor(reader: _Reader, shape: list[int], dtype: str, stored: str, kept: Tensor | None) -> Tensor:
    scales = _unplaned(reader, shape[0], torch.float32) if stored == "int8" else None
    if scales is not None and not bool((scales.isfinite() & (scales >= 0)).all()):
        raise FormatError("damaged: a scale is negative or not finite")
    count = math.prod(shape) if kept is None else int(kept.sum())
    values = _unplaned(reader, count, torch.int8 if stored == "int8" else _dtype(stored)).to(_dtype(dtype))
    full = torch.zeros(shape, dtype=_dtype(dtype))
    if kept is None:
        full.view(-1).copy_(values)
    else:
        full[kept] = values
    return full if scales is None else full * scales.view(_rows(shape))


def _rows(shape: Sequence[int]) -> list[int]:
    """The shape in which a number for each row meets a tensor."""
    return [-1, *[1] * (len(shape) - 1)]


def _planes(tensor: Tensor) -> bytes:
    values = tensor.contiguous().numpy().reshape(-1)
    return values.view(np.uint8).reshape(-1, values.itemsize).T.tobytes()


def _unplaned(reader: _Reader, count: int, dtype: torch.dtype) -> Tensor:
    size = dtype.itemsize
    planes = np.frombuffer(reader.take(count * size), np.uint8).reshape(size, count)
    if dtype == torch.bool and bool((planes > 1).any()):
        raise FormatError("damaged: a truth value is neither 0 nor 1")
    return torch.from_numpy(planes.T.copy()).view(-1).view(dtype)


def _name(tensor: Tensor) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise FormatError(f"tensors of {name} cannot be stored")
    return name


def _dtype(name: str) -> torch.dtype:
    return getattr(torch, name)
