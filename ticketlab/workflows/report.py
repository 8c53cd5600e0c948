"""Reports from finished runs: which runs are meant, what is shown of them, and which files that leaves."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ticketlab.comparison import Comparison, compare, table_rows
from ticketlab.errors import RecipeError, RunError
from ticketlab.page.blocks import Page
from ticketlab.report import run_levels, state
from ticketlab.runs.files import remove_files
from ticketlab.runs.find import asked_for, find_run, find_runs, list_runs, prune_first
from ticketlab.runs.results import OF_KIND
from ticketlab.runs.rows import csv_bytes
from ticketlab.runs.store import RunStore
from ticketlab.runs.whole import outdated
from ticketlab.trained_networks import Network, run_networks
from ticketlab.words import counted

PAGE, FIGURES, DATA = "index.html", "figures", "data"
"""A page and the folders beside it."""


@dataclass(frozen=True)
class Compared:
    """A comparison and its files."""

    comparisons: list[Comparison]
    files: list[Path]
    notes: list[str]
    """Runs that are not finished or damaged: what is compared of them, or why nothing is."""


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

    Files of an earlier page there that this one does not have are removed, and nothing else.

    Raises RunError for a run with nothing to show yet, for several that were not made by pruning or have one name, for
    one that is to be compared with another, where the folder has a page or files of somebody else, and where the files
    cannot be written.
    """
    from ticketlab.page.html import html, linked

    stores = _named(root, names)
    if against is not None and len(stores) == 1:
        raise RunError(f"--against {against}: there is only {stores[0].path}; name the runs to compare")
    folder = out or (stores[0].path if len(stores) == 1 else root) / "report"
    earlier = linked(folder / PAGE)
    if (folder / PAGE).exists() and earlier is None:
        raise RunError(f"{folder / PAGE}: was not written by ticketlab report; name another folder with --out")
    page = _page(stores, against)
    with _writing(folder):
        drawings, beside = _beside(page)
        _refuse_foreign(folder, beside, earlier or set())
        content = html(page, drawings).encode()
        # a page names the files beside it: the old one goes after its files and the new one comes before, so that what
        # is cut short here is made whole by the next call
        remove_files([folder / name for name in (earlier or set()) - set(beside)])
        for name, written in {PAGE: content, **beside}.items():
            RunStore(folder).write_file(name, written)
    found = [store.path for store in stores]
    return Reported(folder / PAGE, len(page.pictures), len(page.tables), len(content), found)


def _refuse_foreign(folder: Path, names: Iterable[str], earlier: Collection[str]) -> None:
    """Raise RunError for a file that would be written over and that no page of ours has left there."""
    for name in names:
        if (folder / name).exists() and name not in earlier:
            raise RunError(
                f"{folder / name}: is there already, and no page of ticketlab report has it; name another folder"
            )


def _named(root: Path, names: Sequence[str]) -> list[RunStore]:
    """The runs that are meant; one name stands for one run, several may be prefixes of more."""
    if len(names) < 2:
        return [prune_first(root, names[0]) if names else _newest(root)]
    return _pruning_runs(root, names)


def _newest(root: Path) -> RunStore:
    """The newest run that has something to show; where there is none the newest, whose page says so."""
    shown = [run for run in list_runs(root) if _is_shown(run)]
    return (asked_for(shown) or shown or [find_run(root, None)])[-1]


def _is_shown(store: RunStore) -> bool:
    """Whether a run has a page to come; a damaged one has not."""
    try:
        if store.kind == "prune":
            run_levels(store)
        return _has_content(store)
    except (RunError, KeyError):
        return False


def _has_content(store: RunStore) -> bool:
    """Whether a run has come to something."""
    if store.kind == "prune":
        return any(store.has_level(replicate, 0) for replicate in store.replicates())
    return store.has_result(OF_KIND[store.kind])


def _pruning_runs(root: Path, names: Sequence[str]) -> list[RunStore]:
    """All pruning runs that one of the names fits, each once; raises RunError for two of one name."""
    stores = list({store.path.resolve(): store for name in names for store in find_runs(root, name, "prune")}.values())
    named = {store.name: store for store in stores}
    for store in stores:
        if named[store.name] is not store:
            raise RunError(
                f"{store.path} and {named[store.name].path} are one recipe's, so that no table could tell them apart; "
                f"ticketlab runs diff says how they differ"
            )
    return stores


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Raises RunError where a folder is a file, or cannot be written."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"--out {folder}: is a file; name a folder")
    try:
        yield
    except OSError as error:
        raise RunError(f"--out {folder}: cannot be written ({error.strerror}); name another folder") from error


def _page(stores: Sequence[RunStore], against: str | None) -> Page:
    from ticketlab.page.others import PAGES
    from ticketlab.page.pruning import pruning_page
    from ticketlab.page.side_by_side import side_by_side

    pages = {"prune": pruning_page, **PAGES}
    for store in stores:
        if store.kind not in pages:
            raise RunError(f"{store.path}: was made by ticketlab {store.kind}, which has no page")
        if not _has_content(store):
            raise RunError(f"{store.path}: has nothing to show yet; the same command goes on with it")
    try:
        return side_by_side(stores, against) if len(stores) > 1 else pages[stores[0].kind](stores[0])
    except (KeyError, TypeError) as error:
        raise outdated(", ".join(str(store.path) for store in stores), error) from error


def _beside(page: Page) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Drawings as SVG, by name; and the files beside a page: figures for papers, tables as CSV."""
    from ticketlab.figures import encode

    drawings: dict[str, bytes] = {}
    found: dict[str, bytes] = {}
    for picture in page.pictures:
        files = encode(picture.figure)
        drawings[picture.name] = files["svg"]
        found |= {f"{FIGURES}/{picture.name}.{kind}": content for kind, content in files.items()}
    return drawings, found | {f"{DATA}/{name}.csv": csv_bytes(rows) for name, rows in page.data.items()}


def compare_runs(root: Path, names: Sequence[str], against: str | None, out: Path) -> Compared:
    """Compare runs of `ticketlab prune`; a name may be a prefix of several, of which damaged ones are left out.

    Raises RunError where fewer than two have a finished network, or where the files cannot be written.
    """
    found = [_to_compare(store) for store in _pruning_runs(root, names)]
    notes = [told for _, told in found if told]
    if sum(bool(networks) for networks, _ in found) < 2:
        raise RunError("\n".join(["a comparison needs two runs or more; ticketlab runs ls names them", *notes]))
    with _writing(out):
        comparisons = compare([network for networks, _ in found for network in networks], against)
        return Compared(comparisons, _write(comparisons, out), notes)


def _to_compare(store: RunStore) -> tuple[list[Network], str | None]:
    """Networks of a run, and what keeps it from being compared as a whole."""
    try:
        networks, known = run_networks(store), state(store, store.read_manifest())
    except (RunError, RecipeError) as error:
        return [], f"{store.name} is left out: {error}"
    except (KeyError, TypeError) as error:
        return [], f"{store.name} is left out: {outdated(str(store.path), error)}"
    if known == "finished":
        return networks, None
    compared = f"only its {counted(len(networks), 'finished network')}" if networks else "nothing of it"
    return networks, f"{store.name} is {known}: {compared} can be compared; ticketlab prune goes on"


def _write(comparisons: Sequence[Comparison], out: Path) -> list[Path]:
    from ticketlab.figures import encode, methods_side_by_side  # matplotlib takes half a second to load

    folder, files = RunStore(out), [out / "comparison.csv"]
    rows = [row for comparison in comparisons for row in table_rows(comparison)]
    folder.write_file(files[0].name, csv_bytes(rows))
    for kind, content in encode(methods_side_by_side(comparisons)).items():
        files.append(out / f"comparison.{kind}")
        folder.write_file(files[-1].name, content)
    return files
