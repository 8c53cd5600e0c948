"""What a page is made of: sections of sentences, tables and figures. Knows no HTML and no runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Text:
    """A paragraph, or lines to be copied as they are."""

    text: str
    is_code: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of text under columns, and the same as data in a CSV file."""

    name: str
    """Of the file, without its ending."""
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    data: Sequence[Mapping[str, Any]] = ()
    """Plain values, one mapping for each row; where there are none, the text of the rows."""

    def records(self) -> list[dict[str, Any]]:
        """Rows for the CSV file."""
        if self.data:
            return [dict(row) for row in self.data]
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


@dataclass(frozen=True)
class Picture:
    """A figure with what it shows in words, for who cannot see it."""

    name: str
    """Of the files, without their ending."""
    title: str
    alt: str
    figure: Figure
    data: Sequence[Mapping[str, Any]] = ()
    """The numbers that are drawn, one mapping for each row of a CSV file; none where a table beside it has them."""


Block = Text | Table | Picture


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    name: str
    """Of the link to it: letters and hyphens."""
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A whole page."""

    title: str
    lead: Sequence[str]
    """Sentences under the title: what came out."""
    sections: Sequence[Section]
    warning: str | None = None
    """What must be known before any number is read, such as stand-in data."""

    @property
    def tables(self) -> list[Table]:
        """Of all sections."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, Table)]

    @property
    def pictures(self) -> list[Picture]:
        """Of all sections."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, Picture)]

    @property
    def data(self) -> dict[str, Sequence[Mapping[str, Any]]]:
        """Rows of each CSV file, by its name without the ending."""
        drawn = {picture.name: [flat(row) for row in picture.data] for picture in self.pictures if picture.data}
        return drawn | {table.name: [flat(row) for row in table.records()] for table in self.tables}


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the fields of its dictionaries as columns: `{"a": {"b": 1}}` as `{"a_b": 1}`."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            found.update({f"{name}_{inner}": plain for inner, plain in flat(value).items()})
        else:
            found[name] = value
    return found
