"""Reports from finished runs: which runs are meant, what is shown of them, and which files that leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ticketlab.comparison import Comparison, compare, run_networks, table_rows
from ticketlab.errors import RunError
from ticketlab.page.blocks import Page
from ticketlab.report import run_levels, state
from ticketlab.runs.rows import write_csv
from ticketlab.runs.store import RunStore, find_run, find_runs, prune_first


@dataclass(frozen=True)
class Compared:
    """A comparison and its files."""

    comparisons: list[Comparison]
    files: list[Path]
    left_out: list[str]
    """Runs that have no finished network, each with its state."""


@dataclass(frozen=True)
class Reported:
    """A page and what lies beside it."""

    page: Path
    figures: int
    tables: int
    bytes: int
    """Of the page alone."""
    runs: list[Path]


def report_runs(root: Path, names: Sequence[str], against: str | None, out: Path | None) -> Reported:
    """Write the page of a run, of the newest if none is named, or of several side by side.

    Args:
        against: Of several: the method or run that the others are compared with.
        out: Folder [default: `report` in the run, or in `root` for several].

    Raises RunError for a run with nothing to show yet, for several that were not made by pruning, and where the files
    cannot be written.
    """
    from ticketlab.page.html import html

    stores = _named(root, names)
    page = _page(stores, against)
    folder = out or (stores[0].path if len(stores) == 1 else root) / "report"
    if folder.exists() and not folder.is_dir():
        raise RunError(f"--out {folder}: is a file; name a folder")
    try:
        content = html(page, _write_beside(page, folder)).encode()
        RunStore(folder).write_file("index.html", content)
    except OSError as error:
        raise RunError(f"--out {folder}: cannot be written ({error.strerror}); name another folder") from error
    found = [store.path for store in stores]
    return Reported(folder / "index.html", len(page.pictures), len(page.tables), len(content), found)


def _named(root: Path, names: Sequence[str]) -> list[RunStore]:
    """The runs that are meant; one name stands for one run, several may be prefixes of more."""
    if len(names) < 2:
        return [prune_first(root, names[0]) if names else find_run(root, None)]
    found = {store.path.resolve(): store for name in names for store in find_runs(root, name, "prune")}
    return list(found.values())


def _page(stores: Sequence[RunStore], against: str | None) -> Page:
    from ticketlab.page.others import PAGES
    from ticketlab.page.pruning import pruning_page
    from ticketlab.page.side_by_side import side_by_side

    for store in stores:
        is_pruning = store.kind == "prune"
        if not is_pruning and store.kind not in PAGES:
            raise RunError(f"{store.path}: was made by ticketlab {store.kind}, which has no page")
        if not (run_levels(store) if is_pruning else store.has_result(PAGES[store.kind][0])):
            raise RunError(f"{store.path}: has nothing to show yet; the same command goes on with it")
    if len(stores) > 1:
        return side_by_side(stores, against)
    return pruning_page(stores[0]) if stores[0].kind == "prune" else PAGES[stores[0].kind][1](stores[0])


def _write_beside(page: Page, folder: Path) -> dict[str, bytes]:
    """Figures as files for papers, tables as CSV; returns the drawings, SVG by name."""
    from ticketlab.figures import encode

    kept, drawings = RunStore(folder), {}
    for picture in page.pictures:
        files = encode(picture.figure)
        drawings[picture.name] = files["svg"]
        for kind, content in files.items():
            kept.write_file(f"figures/{picture.name}.{kind}", content)
    for table in page.tables:
        write_csv(folder / "data" / f"{table.name}.csv", table.records())
    return drawings


def compare_runs(root: Path, names: Sequence[str], against: str | None, out: Path) -> Compared:
    """Compare runs of `ticketlab prune`; a name may be a prefix of several.

    Raises RunError where fewer than two have a finished network, or where the files cannot be written.
    """
    found: dict[Path, RunStore] = {}
    for name in names:
        found |= {store.path.resolve(): store for store in find_runs(root, name, "prune")}
    networks = {path: run_networks(store) for path, store in found.items()}
    left_out = [
        f"{store.name} is {state(store, store.read_manifest())}, without a finished network; ticketlab prune goes on"
        for path, store in found.items()
        if not networks[path]
    ]
    if len(found) - len(left_out) < 2:
        raise RunError("\n".join(["a comparison needs two runs or more; ticketlab runs ls names them", *left_out]))
    if out.exists() and not out.is_dir():
        raise RunError(f"--out {out}: is a file; name a folder")
    comparisons = compare([network for of_run in networks.values() for network in of_run], against)
    try:
        return Compared(comparisons, _write(comparisons, out), left_out)
    except OSError as error:
        raise RunError(f"--out {out}: cannot be written ({error.strerror}); name another folder") from error


def _write(comparisons: Sequence[Comparison], out: Path) -> list[Path]:
    from ticketlab.figures import encode, methods_side_by_side  # matplotlib takes half a second to load

    folder, files = RunStore(out), [out / "comparison.csv"]
    write_csv(files[0], [row for comparison in comparisons for row in table_rows(comparison)])
    for kind, content in encode(methods_side_by_side(comparisons)).items():
        files.append(out / f"comparison.{kind}")
        folder.write_file(files[-1].name, content)
    return files
