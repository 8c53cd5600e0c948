"""ticketlab from Python."""

import subprocess
import sys

import pytest
import torch

import ticketlab
from ticketlab.errors import RunError, TicketlabError


@pytest.fixture
def run(write_recipe, tmp_path):
    return ticketlab.prune(write_recipe(), "replicates=2", runs=tmp_path / "runs", quiet=True)


def test_a_recipe_is_pruned_and_its_run_read(run, tmp_path):
    assert run.state == "finished" and run.recipe.replicates == 2
    assert [(level["replicate"], level["level"]) for level in run.levels()] == [
        (r, n) for r in (1, 2) for n in range(3)
    ]
    again = ticketlab.load_run("tiny", runs=tmp_path / "runs")
    assert again.path == run.path and again.levels() == run.levels()
    assert ticketlab.load_run(run.path).name == run.name
    assert [row["test_accuracy"]["n"] for row in run.summary()] == [2, 2, 2]
    assert [point["step"] for point in run.curve(1)] == [10, 20, 30]


def test_a_script_without_a_guard_is_told_so(write_recipe, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"import ticketlab\nticketlab.prune({str(write_recipe())!r}, 'replicates=2', workers=2)\n")
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert ran.returncode and "put the call of your script under `if __name__ ==" in ran.stderr


def test_networks_are_what_was_trained_under_their_masks(run):
    mask, weights, network = run.mask(2, 2), run.weights(2, 2), run.network(2, 2)
    for name, value in network.state_dict().items():
        assert torch.equal(value, weights[name])
    assert all(bool((weights[name][~kept] == 0).all()) for name, kept in mask.items())
    kept = sum(int(layer.sum()) for layer in mask.values())
    assert kept == next(one["remaining"] for one in run.levels() if (one["replicate"], one["level"]) == (2, 2))


def test_without_pandas_a_frame_is_an_error_that_says_what_else_there_is(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(RunError, match=r"pandas, which is not installed; levels\(\) gives plain dicts"):
        run.frame()


def test_a_frame_has_a_row_for_each_level_and_a_column_for_each_layer(run):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = run.frame()
    assert isinstance(frame, pandas.DataFrame) and len(frame) == 6
    assert frame["layers.fc1.weight"].tolist() == [level["layers"]["fc1.weight"] for level in run.levels()]


def test_what_is_not_there_is_an_error(run, tmp_path):
    for read in (run.mask, run.weights, run.curve):
        with pytest.raises(RunError, match="no finished level 9 of replicate 1; it has levels 0, 1, 2"):
            read(9)
    with pytest.raises(RunError, match="no finished level 0 of replicate 3; it has no finished level"):
        run.mask(0, 3)
    with pytest.raises(TicketlabError, match="workers=0, threads=1: both are 1 or more"):
        ticketlab.prune("recipe.yaml", workers=0)
    with pytest.raises(RunError, match="no run 'tinny'"):
        ticketlab.load_run("tinny", runs=tmp_path / "runs")
    with pytest.raises(TicketlabError, match="no such recipe"):
        ticketlab.prune(tmp_path / "missing.yaml")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ticketlab.nothing


def test_importing_the_package_loads_no_torch():
    code = "import sys, ticketlab; print('torch' in sys.modules, sorted(ticketlab.__all__))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False ['Run', 'TicketlabError', '__version__', 'load_run', 'prune']"
