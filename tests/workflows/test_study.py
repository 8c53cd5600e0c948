"""The study: every cell once, interrupted or not; table, figures and verdicts beside it."""

import csv
import json

import pytest

from ticketlab.data.files import Places
from ticketlab.errors import Interrupted, RunError
from ticketlab.runs.rows import read_rows
from ticketlab.workflows import study
from ticketlab.workflows.report import report_runs
from ticketlab.workflows.run import Machine, prune_run
from ticketlab.workflows.study import Study, cells, nearest, study_run


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path / "runs", Places(None, tmp_path / "cache", may_download=False), "cpu", 1)


@pytest.fixture
def store(tiny, machine, monkeypatch):
    """A tiny run, and a grid small enough to finish."""
    monkeypatch.setattr(study, "SHARES", (0.5, 0.1))
    monkeypatch.setattr(study, "TRAINED_SHARES", (0.1,))
    monkeypatch.setattr(study, "TRAINED_EPOCHS", (1,))
    monkeypatch.setattr(study, "DISTIL_STEPS", 5)
    monkeypatch.setattr(study, "IMAGES", 300)
    return next(iter(list(prune_run(tiny(), machine)))).store


def test_the_full_grid_has_every_method_width_and_source():
    grid = cells("run", 1, [0, 7, 10, 14, 17], [0, 14], True)
    untrained = {(c.level, c.select, c.combine, c.share) for c in grid if not (c.refit or c.distil or c.epochs)}
    assert len(untrained) == 5 * 7 * 16
    assert len({cell.key() for cell in grid}) == len(grid)
    assert {c.epochs for c in grid if c.combine == "scratch"} == {1, 5}
    convolutional = cells("run", 1, [0], [], False)
    assert ("greedy", "least_squares_channel") in {(c.select, c.combine) for c in convolutional}


def test_an_interrupted_study_goes_on_where_it_stopped(store, machine):
    stopped: list[dict] = []
    with pytest.raises(Interrupted):
        for event in study_run([store], machine, lambda: len(stopped) >= 7):
            if isinstance(event, dict):
                stopped.append(event)
    assert len(stopped) == 7
    events = list(study_run([store], machine, lambda: False))
    new = [event for event in events if isinstance(event, dict)]
    assert not {row["key"] for row in new} & {row["key"] for row in stopped}
    done = events[-1]
    assert isinstance(done, Study)
    fused = nearest(store, 1, study.SPARSITIES)
    wanted = {c.key() for c in cells(store.name, 1, fused, nearest(store, 1, study.TRAINED_SPARSITIES), True)}
    rows = read_rows(done.store.path / "cells" / "replicate_1.jsonl")
    assert {row["key"] for row in rows} == wanted and len(rows) == len(wanted) == done.record["cells"]
    assert [event for event in study_run([store], machine, lambda: False) if isinstance(event, dict)] == []
    _check_published(done, rows)
    page = report_runs(done.store.path.parent, [done.store.name], None, None).page
    assert {"hypotheses.csv", "smallest.csv"} <= {path.name for path in (page.parent / "data").iterdir()}
    assert f"{len(rows)} fused networks of 1 run." in page.read_text()


def _check_published(done, rows):
    with (done.store.path / "cells.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    for name in ("accuracy_against_size", "error_curves", "points_lost"):
        assert (done.store.path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (done.store.path / f"{name}.svg").read_bytes()
    assert {f["hypothesis"] for f in done.record["findings"]} == {"H1", "H2", "H3", "H4", "H5", "H6"}
    assert json.loads((done.store.path / "study.json").read_text())["cells"] == len(rows)
    same_size = {
        (r["level"], r["share"]): r["params"] for r in rows if r["combine"] == "drop" and r["allocation"] == "uniform"
    }
    for row in rows:
        if row["allocation"] == "curves" and row["combine"] != "scratch":
            assert row["params"] <= same_size[row["level"], row["share"]]


def test_a_study_of_a_study_is_refused(store, machine):
    *_, done = study_run([store], machine, lambda: False)
    with pytest.raises(RunError, match="not a run of prune"):
        list(study_run([done.store], machine, lambda: False))
