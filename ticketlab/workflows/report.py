"""Reports from finished runs: what is compared, and which files it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ticketlab.comparison import Comparison, compare, table_rows
from ticketlab.errors import RunError
from ticketlab.runs.rows import write_csv
from ticketlab.runs.store import RunStore, find_runs


@dataclass(frozen=True)
class Compared:
    """A comparison and its files."""

    comparisons: list[Comparison]
    files: list[Path]


def compare_runs(root: Path, names: Sequence[str], against: str | None, out: Path) -> Compared:
    """Compare runs of `ticketlab prune`; a name may be a prefix of several. Raises RunError for fewer than two."""
    found: dict[Path, RunStore] = {}
    for name in names:
        found |= {store.path.resolve(): store for store in find_runs(root, name, "prune")}
    if len(found) < 2:
        raise RunError("a comparison needs two runs or more; ticketlab runs ls names them")
    comparisons = compare(list(found.values()), against)
    from ticketlab.figures import encode, methods_side_by_side  # matplotlib takes half a second to load

    rows = [row for comparison in comparisons for row in table_rows(comparison)]
    folder, files = RunStore(out), [out / "comparison.csv"]
    write_csv(files[0], rows)
    for kind, content in encode(methods_side_by_side(comparisons)).items():
        files.append(out / f"comparison.{kind}")
        folder.write_file(files[-1].name, content)
    return Compared(comparisons, files)
