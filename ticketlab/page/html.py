"""A page as one HTML file: styles and figures inside, nothing loaded from anywhere, no script."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from ticketlab.page.blocks import Page, Picture, Table, Text

REFERENCES = re.compile(r'( id="|url\(#|href="#)')
BESIDE = re.compile(r'href="((?:figures|data)/[^"/]+)"')
OURS = {"#000000": "currentColor", "#ffffff": "var(--paper)"}
"""Colours of a drawing that follow the page, light or dark."""
GENERATOR = "ticketlab report"
SMALLEST = 0.57
"""A drawing is not made smaller than this share of its size: one of 6.4 inches fits on a telephone."""


def html(page: Page, drawings: Mapping[str, bytes]) -> str:
    """The whole document.

    Args:
        drawings: Of each picture by name, as SVG with its text as text.
    """
    return _template().render(
        page=page,
        generator=GENERATOR,
        style=Markup(_style()),
        svg=lambda picture: inline_svg(picture, drawings[picture.name]),
        kind=_kind,
    )


def linked(path: Path) -> set[str] | None:
    """Names of the files beside such a document that it links to; None for a file that is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return set(BESIDE.findall(text)) if f'content="{GENERATOR}"' in text[:2000] else None


def _template() -> Template:
    loader = PackageLoader("ticketlab.page", "")
    made = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    return made.get_template("page.html.j2")


def _style() -> str:
    return (files("ticketlab.page") / "page.css").read_text(encoding="utf-8")


def _kind(block: Text | Table | Picture) -> str:
    return type(block).__name__.lower()


def inline_svg(picture: Picture, drawing: bytes) -> Markup:
    """A drawing as an element of the page: its black is the page's own colour of text, its white that of the paper."""
    text = drawing.decode()
    # names inside a drawing are those of the page, so each drawing gets names of its own
    found = REFERENCES.sub(rf"\g<1>{picture.name}-", text[text.index("<svg") :])
    for drawn, ours in OURS.items():
        found = found.replace(drawn, ours)
    size = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', found)
    assert size is not None, "matplotlib writes the size of its drawings in points"
    width = 4 / 3 * float(size[1])
    style = f"max-width: {width:.0f}px; min-width: {SMALLEST * width:.0f}px"
    label = Markup('role="img" aria-label="{}" style="{}"').format(picture.alt, style)
    before, _, after = found.partition(size[0])
    return Markup(before) + label + Markup(after)
