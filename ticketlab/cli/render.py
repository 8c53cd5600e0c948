"""Results as tables or JSON on stdout; progress and errors on stderr; exit statuses. The only code that prints."""

from __future__ import annotations

import json as jsonlib
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from ticketlab.errors import Stop, TicketlabError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ticketlab.report import Estimate


def result(content: object) -> None:
    """Text as it is, anything else as one JSON object, on stdout."""
    print(content if isinstance(content, str) else jsonlib.dumps(content, indent=2, ensure_ascii=False))


def note(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def one_line_errors(verbose: bool = False) -> Iterator[None]:
    """Errors as text on stderr and an exit status, never a traceback unless asked for."""
    try:
        yield
    except TicketlabError as error:
        if verbose:
            traceback.print_exc()
        lines = str(error).splitlines()
        note("error: " + ("\n  ".join(["", *lines]).lstrip("\n ") if len(lines) > 1 else lines[0]))
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        note("interrupted; what was finished is kept")
        raise typer.Exit(130) from error


@contextmanager
def stop_request(
    said: str = "stopping: saving the state first (again to stop at once)",
) -> Iterator[Stop]:
    """Ctrl-C or SIGTERM asks for a stop, so that the state can be saved first; a second Ctrl-C does not wait.

    Before anybody has asked whether to stop there is no state to save, and the first one does not wait either.
    """
    asked: list[int] = []
    heard: list[bool] = []

    def ask(number: int, _: object) -> None:
        if asked or not heard:
            raise KeyboardInterrupt
        asked.append(number)
        note(said)

    def should_stop() -> bool:
        heard[:] = [True]
        return bool(asked)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield should_stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def with_interval(estimate: Estimate, form: str) -> str:
    """Mean ± half the interval, in per cent; the mean alone where there is no interval."""
    half = "" if estimate.high is None else f" ±{100 * (estimate.high - estimate.mean):.2f}"
    return f"{100 * estimate.mean:{form}}{half}"


def new_table(title: str, columns: Sequence[str]) -> Table:
    """A plain table; columns of percentages stand to the right."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=title, box=box.SIMPLE_HEAD, title_justify="left", show_edge=False, pad_edge=False, collapse_padding=True
    )
    for index, column in enumerate(columns):
        # a name or a verdict that is cut says nothing
        is_number = bool(index and "%" in column)
        is_whole = is_number or column in ("verdict", "state", "updated", "n", "levels")
        table.add_column(column, justify="right" if is_number else "left", no_wrap=is_whole, overflow="fold")
    return table


def show(table: Table) -> None:
    """Print a table on stdout."""
    console(stderr=False).print(table, markup=False)


def console(stderr: bool) -> Console:
    """A console that obeys NO_COLOR; where the output is no terminal it is wide enough never to fold a row."""
    from rich.console import Console

    made = Console(stderr=stderr)
    return made if made.is_terminal else Console(stderr=stderr, width=200, no_color=True)
