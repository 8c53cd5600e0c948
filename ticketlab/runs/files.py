"""A run's files: tensors with a checksum, files that passed a gate or did not."""

from __future__ import annotations

import json
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ticketlab.runs.whole import PARTIAL, damaged, read_json, write_bytes, write_json

__all__ = ["damaged", "read_json", "write_bytes", "write_json"]

T = TypeVar("T")

REJECTED = ".rejected"
"""Ends the name of a file that did not pass its gate."""


def write_judged(path: Path, content: bytes, is_accepted: bool) -> Path:
    """Keep a file under its name, or as `.rejected`; whichever is written replaces the other. Returns its path."""
    rejected = path.with_name(path.name + REJECTED)
    written, stale = (path, rejected) if is_accepted else (rejected, path)
    write_bytes(written, content)
    stale.unlink(missing_ok=True)
    return written


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for another program's own files, gone afterwards."""
    # not where TMPDIR says: the path of a socket in it may have 103 characters in all
    short = "/tmp" if Path("/tmp").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="ticketlab-", dir=short, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def remove(folder: Path) -> None:
    """Remove a folder and all that is in it; what cannot be removed stays."""
    shutil.rmtree(folder, ignore_errors=True)


def remove_files(paths: Iterable[Path]) -> None:
    """Delete files; those that are gone already are no error."""
    for path in paths:
        path.unlink(missing_ok=True)


@contextmanager
def temporary(content: bytes, suffix: str) -> Iterator[Path]:
    """A file for another process to read, gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"content{suffix}"
        path.write_bytes(content)
        yield path


def remove_partial(folder: Path) -> None:
    """Delete what a killed process left half-written below a folder."""
    for left in folder.rglob(f".*{PARTIAL}"):
        left.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Tensors and facts about them (as JSON) in one safetensors file with a checksum over both."""
    write_bytes(path, tensor_bytes(tensors, facts))


def tensor_bytes(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """What `write_tensors` writes."""
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    text = json.dumps(facts, sort_keys=True)
    # one entry only: safetensors writes several in an order that changes from process to process
    metadata = {"ticketlab": f"{_checksum(contiguous, text)} {text}"}
    return save(contiguous, metadata)


def read_tensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a file; raises RunError when it is damaged in any bit."""
    return read_whole(path, tensors_of)


def read_whole(path: Path | str, parse: Callable[[bytes], T]) -> T:
    """What `parse` makes of a file; raises RunError that names it where it cannot be read or `parse` refuses it."""
    path = Path(path)
    try:
        return parse(path.read_bytes())
    except (OSError, ValueError) as error:
        raise damaged(path, str(error)) from error


def tensors_of(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts in the bytes of such a file; raises ValueError when they are damaged in any bit."""
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        checksum, _, text = header["__metadata__"]["ticketlab"].partition(" ")
        facts = json.loads(text)
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(str(error)) from error
    if checksum != str(_checksum(tensors, text)):
        raise ValueError("checksum does not match")
    return tensors, facts


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, without that beginning."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _checksum(tensors: Mapping[str, Tensor], text: str) -> int:
    value = zlib.crc32(text.encode())
    for name in sorted(tensors):
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, value)
    return value
