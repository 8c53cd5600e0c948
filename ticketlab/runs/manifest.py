"""What made a run: versions, commit, host, threads, device, data; and whether it can be taken up here."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ticketlab.errors import RunError

PACKAGES = ("ticketlab", "torch", "torchvision", "numpy", "safetensors", "tensorboard")
FIXED = {
    "hash": "was made by another recipe",
    "device": "was trained on another device",
    "threads": "was trained with another number of threads",
    "data_checksum": "was trained on other data",
    "ticket_digest": "starts from another ticket",
    "init_digest": "starts from other weights here (another version of torch?)",
}
"""Facts that must not change within a run, because results would not be comparable bit for bit."""


def now() -> str:
    """UTC time in ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def short_hash(identity: Any) -> str:
    """Six hexadecimal digits that tell apart what decides a run's result."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:6]


def environment() -> dict[str, Any]:
    """Versions, commit and host of this process."""
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "host": platform.node(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "command": " ".join([Path(sys.argv[0]).name.replace("__main__.py", "ticketlab"), *sys.argv[1:]]),
    }


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def check_same(before: Mapping[str, Any], facts: Mapping[str, Any], path: Path) -> list[str]:
    """Raise RunError where a run cannot be taken up with these facts; return warnings about versions."""
    wrong = [
        f"it {FIXED[key]} ({before[key]}, now {facts[key]})"
        for key in FIXED
        if key in before and key in facts and before[key] != facts[key]
    ]
    if wrong:
        raise RunError(
            f"{path} cannot be taken up: {'; '.join(wrong)}. Run it as before, or name another folder with --runs"
        )
    old, new = before.get("versions", {}), facts.get("versions", {})
    changed = [f"{name} {old[name]} → {new[name]}" for name in new if name in old and old[name] != new[name]]
    return [f"versions changed since {path.name} was started: {', '.join(changed)}"] if changed else []


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _commit() -> str | None:
    """Commit of the checkout that this package runs from, with `+` for uncommitted changes."""
    package = Path(__file__).resolve().parents[1]
    try:
        root = _git(package, "rev-parse", "--show-toplevel")
        if Path(root) != package.parent:
            return None
        return _git(package, "rev-parse", "HEAD") + ("+" if _git(package, "status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
