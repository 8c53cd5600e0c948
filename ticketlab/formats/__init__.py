"""Network ↔ the bytes of a file that another program loads: one module a format."""

from __future__ import annotations

from pathlib import Path

from ticketlab.errors import FormatError
from ticketlab.formats import executorch, litert, onnx, pt2, safetensors, ticket
from ticketlab.formats.format import Format
from ticketlab.registry import did_you_mean

FORMATS: dict[str, Format] = {
    "onnx": onnx.FORMAT,
    "pt2": pt2.FORMAT,
    "safetensors": safetensors.FORMAT,
    "ticket": ticket.FORMAT,
    "executorch": executorch.FORMAT,
    "litert": litert.FORMAT,
}
"""Name, as `--format` takes it → format."""


def find_format(name: str) -> Format:
    """The format of that name; raises FormatError that suggests the nearest one."""
    if name not in FORMATS:
        raise FormatError(f"--format: unknown format '{name}'{did_you_mean(name, FORMATS)}")
    return FORMATS[name]


def format_of(path: Path) -> tuple[str, Format]:
    """The format of a file by its suffix; raises FormatError that lists those there are."""
    suffix = Path(path.stem).suffix if path.suffix == ".rejected" else path.suffix
    for name, found in FORMATS.items():
        if found.suffix == suffix:
            return name, found
    known = ", ".join(found.suffix for found in FORMATS.values())
    raise FormatError(f"{path}: its ending names no format; there are: {known}")
