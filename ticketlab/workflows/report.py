"""Reports from finished runs: what is compared, and which files it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ticketlab.comparison import Comparison, compare, run_networks, table_rows
from ticketlab.errors import RunError
from ticketlab.report import state
from ticketlab.runs.rows import write_csv
from ticketlab.runs.store import RunStore, find_runs


@dataclass(frozen=True)
class Compared:
    """A comparison and its files."""

    comparisons: list[Comparison]
    files: list[Path]
    left_out: list[str]
    """Runs that have no finished network, each with its state."""


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
