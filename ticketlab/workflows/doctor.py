"""What this machine has, what it lacks, and what to do about it."""

from __future__ import annotations

import importlib.util
import os
import platform
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch

from ticketlab.data.files import Places
from ticketlab.data.sources import Located, locate_all
from ticketlab.errors import DataError
from ticketlab.formats import FORMATS
from ticketlab.runs.find import list_runs
from ticketlab.runs.manifest import cpu_name

EXTRAS = {
    "pytest": "python -m pip install -e '.[test]'",
    "executorch": f"for .pte files: {FORMATS['executorch'].install}",
    "litert_torch": f"for .tflite files: {FORMATS['litert'].install}",
}
"""Optional package → how to get it."""


@dataclass(frozen=True)
class Finding:
    """One thing about this machine."""

    what: str
    state: Literal["ok", "note", "problem"]
    detail: str
    do: str = ""


def examine(runs: Path, places: Places) -> list[Finding]:
    """Look at torch, threads, data, extras and folders; changes nothing."""
    return [
        _torch(),
        _accelerator(),
        _threads(),
        *_data(places),
        *_extras(),
        _folder("cache", places.cache),
        _runs(runs),
    ]


def _torch() -> Finding:
    build = f"{version('torch')} ({'CUDA ' + str(torch.version.cuda) if torch.version.cuda else 'CPU'} build)"
    detail = f"torch {build}, Python {platform.python_version()}, {platform.machine()}, {cpu_name()}"
    if platform.machine() == "aarch64" and torch.version.cuda:
        advice = "on a small board install the CPU build: its wheels are smaller by gigabytes"
        return Finding("torch", "note", detail, advice)
    return Finding("torch", "ok", detail)


def _accelerator() -> Finding:
    if torch.cuda.is_available():
        return Finding("accelerator", "ok", torch.cuda.get_device_name(), "--device cuda is the default here")
    if torch.backends.mps.is_available():
        return Finding("accelerator", "ok", "Apple GPU", "use it with --device mps")
    return Finding("accelerator", "note", "none; training runs on the CPU")


def _threads() -> Finding:
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    detail = f"{cores} cores, load {load:.1f}; replicates run one per core with one thread each"
    if load > cores:
        return Finding("threads", "note", detail, "other work slows training down; use fewer --workers")
    return Finding("threads", "ok", detail)


def _data(places: Places) -> list[Finding]:
    try:
        located = locate_all(places)
    except DataError as error:
        return [Finding("data", "problem", str(error), "mend --data or $TICKETLAB_DATA")]
    return [
        Finding(f"data: {item.name}", "ok", item.found)
        if item.found
        else Finding(f"data: {item.name}", "note", "not here", _to_have(item))
        for item in located
    ]


def _to_have(item: Located) -> str:
    return f"ticketlab data fetch {item.name}, or {item.wanted}" if item.can_fetch else item.wanted


def _extras() -> list[Finding]:
    return [
        Finding(f"extra: {name}", "ok", version(name.replace("_", "-")))
        if importlib.util.find_spec(name)
        else Finding(f"extra: {name}", "note", "not installed", how)
        for name, how in EXTRAS.items()
    ]


def _folder(what: str, folder: Path) -> Finding:
    """Whether files can be made in a folder, or in the nearest one above it that exists."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return Finding(f"folder: {what}", "ok", str(folder))
    except OSError as error:
        return Finding(f"folder: {what}", "problem", f"{folder}: {error.strerror}", "make it writable or name another")


def _runs(runs: Path) -> Finding:
    found = _folder("runs", runs)
    if found.state != "ok":
        return found
    return Finding("folder: runs", "ok", f"{runs}, {len(list_runs(runs))} runs")
