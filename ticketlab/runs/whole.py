"""Files that are whole or absent: written beside their name and renamed. Needs no torch."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ticketlab.errors import RunError

PARTIAL = ".partial"


def write_bytes(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Put a file in place at once; a reader or a crash sees the old one or the new one, nothing between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """One JSON object, indented for people."""
    write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises RunError that names a damaged file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except PermissionError as error:
        raise RunError(f"{path}: may not be read ({error.strerror})") from error
    except (OSError, ValueError) as error:
        raise damaged(path, str(error)) from error
    if not isinstance(content, dict):
        raise damaged(path, "not a JSON object")
    return content


def outdated(paths: str, error: Exception) -> RunError:
    """The error for a record that lacks what this version looks for, with the way out."""
    return RunError(
        f"{paths}: a record in it is not as this version of ticketlab writes it ({type(error).__name__}: {error}); "
        "the command that made it makes it again"
    )


def damaged(path: Path, reason: str) -> RunError:
    """The error for a file that cannot be used, with the way out."""
    return RunError(
        f"{path}: damaged ({reason}); delete {path.parent} and run the command that made it: what it held is computed "
        "again"
    )
