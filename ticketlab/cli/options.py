"""Options that several groups of commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from ticketlab.data.files import Places

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML file, such as recipes/lenet_mnist.yaml.")]
RunsRoot = Annotated[Path, typer.Option("--runs", help="Folder that runs are kept in.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the traceback of an error.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="A.B=C", help="Change a field of the recipe.")
]
DataRoot = Annotated[
    Path | None,
    typer.Option("--data", help="Folder with data sets [default: $TICKETLAB_DATA, then the cache]."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]
RunName = Annotated[
    str | None, typer.Argument(metavar="[RUN]", help="Name, path or unique prefix; the newest if left out.")
]
Workers = Annotated[int | None, typer.Option(min=1, help="Replicates at a time [default: cores].")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of each replicate.")]
EngineName = Annotated[Literal["processes", "ray"], typer.Option("--engine", help="What runs replicates.")]
Address = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Ray cluster to use, or auto [default: one on this machine].")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]


def places_of(data: Path | None, may_download: bool = True) -> Places:
    """Where data is looked for, as the user said."""
    from dataclasses import replace

    from ticketlab.data.files import Places

    return replace(Places.default(data), may_download=may_download)
