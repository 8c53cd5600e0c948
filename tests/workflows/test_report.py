"""Pages of runs of every method; what only some of them have is in tests/cli/test_report.py."""

import csv
import re
import shutil

import pytest

from ticketlab.errors import RunError
from ticketlab.runs.store import RunStore
from ticketlab.workflows.report import report_runs

EARLY = ("method=early_bird", "pruning={scope: global}", "early_bird={densities: [0.5, 0.2], window: 2, every: 5it}")


@pytest.mark.parametrize(
    ("overrides", "sections", "leads"),
    [
        (("pruning.levels=0",), ["accuracy", "training", "cost", "environment"], "Dense network: "),
        (("method=oneshot",), ["accuracy", "training", "layers", "masks", "cost", "environment"], "Dense network: "),
        (
            EARLY,
            ["accuracy", "training", "layers", "masks", "search", "cost", "environment"],
            "At 20.00 % of weights: ",
        ),
        (
            ("method=gradual", "watch=[sign_flips]"),
            ["accuracy", "training", "layers", "masks", "cost", "environment"],
            "At ",
        ),
    ],
)
def test_every_method_has_its_page(pruned, overrides, sections, leads):
    store, machine = pruned(*overrides)
    done = report_runs(machine.runs, [], None, None)
    page = done.page.read_text()
    assert done.page == store.path / "report" / "index.html"
    assert re.findall(r'<section id="([\w-]+)">', page) == sections
    assert f'<p class="lead">{leads}' in page
    assert page.count("<svg") == done.figures == len(list((done.page.parent / "figures").glob("*.png")))


def test_a_run_without_a_finished_level_has_nothing_to_show(make_run, tmp_path):
    make_run("begun-abcdef", [])
    with pytest.raises(RunError, match="begun-abcdef: has nothing to show yet; the same command goes on with it"):
        report_runs(tmp_path, ["begun"], None, None)


def test_a_name_means_the_pruning_run_before_those_that_were_made_from_it(pruned):
    store, machine = pruned("pruning.levels=1")
    fused = machine.runs / f"{store.name}-fused-123456"
    fused.mkdir()
    (fused / "manifest.json").write_text('{"kind": "fuse"}')
    assert report_runs(machine.runs, ["tiny"], None, None).runs == [store.path]


def test_what_an_earlier_page_left_goes_and_nothing_else(pruned, tmp_path):
    store, machine = pruned("pruning.levels=1")
    other, _ = pruned("pruning.levels=1", "seed=1")
    folder = tmp_path / "mine"
    for name in ("data/raw.bin", "figures/photo.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    report_runs(machine.runs, [store.name, other.name], None, folder)
    assert (folder / "figures" / "run-2-accuracy.png").exists()
    for _ in range(2):
        report_runs(machine.runs, [store.name], None, folder)
        assert not list(folder.glob("*/run-2*")) and not list(folder.glob("*/comparison*"))
        assert (folder / "figures" / "accuracy.png").exists() and (folder / "data" / "levels.csv").exists()
        assert (folder / "data" / "raw.bin").exists() and (folder / "figures" / "photo.png").exists()


def test_nothing_of_somebody_else_is_written_over(pruned, tmp_path):
    _, machine = pruned("pruning.levels=1")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "levels.csv").write_text("mine")
    with pytest.raises(RunError, match=r"levels\.csv: is there already, and no page of ticketlab report has it; name"):
        report_runs(machine.runs, [], None, tmp_path)
    assert not (tmp_path / "index.html").exists() and (tmp_path / "data" / "levels.csv").read_text() == "mine"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "index.html").write_text("<title>somebody's own page</title>")
    with pytest.raises(RunError, match=r"index\.html: was not written by ticketlab report; name another folder"):
        report_runs(machine.runs, [], None, mine)
    assert (mine / "index.html").read_text() == "<title>somebody's own page</title>"


def test_without_a_name_the_newest_run_with_something_to_show_is_meant(pruned, make_run):
    store, machine = pruned("pruning.levels=1")
    begun = RunStore(machine.runs / "later-abcdef")
    begun.write_manifest({"state": "running", "method": "imp"})
    assert report_runs(machine.runs, [], None, None).runs == [store.path]


def test_a_record_of_another_version_is_one_line(pruned):
    store, machine = pruned("pruning.levels=1")
    store.write_result("claims.json", {"claims": [{"claim": "of a version that had no verdicts"}]})
    with pytest.raises(RunError, match=r"a record in it is not as this version .*KeyError.*makes it again"):
        report_runs(machine.runs, [], None, None)


def test_runs_that_cannot_stand_side_by_side_have_a_page_that_says_why(pruned):
    one, machine = pruned("pruning.levels=1")
    twin = machine.runs / "twin-abcdef"
    shutil.copytree(one.path, twin)
    page = report_runs(machine.runs, ["tiny", "twin"], None, None).page.read_text()
    assert "Not side by side: " in page and "leave one of them out" in page
    assert '<section id="run-2">' in page


@pytest.mark.parametrize(("overrides", "name"), [
    (EARLY, "0 (search)"),
    (("method=gradual",), "0 (start)"),
    ((), "0"),
])  # fmt: skip
def test_level_0_is_called_dense_only_where_it_was_trained_to_the_end(pruned, overrides, name):
    store, machine = pruned(*overrides)
    page = report_runs(machine.runs, [], None, None).page.read_text()
    assert f'<th scope="row">{name}</th>' in page
    assert ("Dense network: " in page) == (name == "0")
    for replicate in store.replicates():  # the same while only the first level is there
        for level in store.levels(replicate)[1:]:
            (store.level_dir(replicate, level.level) / "metrics.json").unlink()
    page = report_runs(machine.runs, [], None, None).page.read_text()
    assert f'<th scope="row">{name}</th>' in page and ("Dense network: " in page) == (name == "0")


def test_a_page_says_which_levels_lack_a_replicate(pruned):
    store, machine = pruned("replicates=2")
    assert "Not every replicate" not in report_runs(machine.runs, [], None, None).page.read_text()
    for level in (1, 2):
        (store.level_dir(2, level) / "metrics.json").unlink()
    page = report_runs(machine.runs, [], None, None).page.read_text()
    assert "Not every replicate has finished levels 1 to 2: means there are over fewer seeds" in page


def table(store, name):
    """Rows of a file beside a run's page."""
    text = (store.path / "report" / "data" / f"{name}.csv").read_text()
    return list(csv.DictReader(text.splitlines()))


def test_an_early_bird_page_says_what_the_draws_cost(pruned):
    store, machine = pruned("method=early_bird", "pruning={}", "early_bird={densities: [0.5], every: 2it}")
    done = report_runs(machine.runs, [], None, None)
    (row,) = table(store, "draws")
    assert float(row["executed_dense"]) > 0 and row["density"] == "0.5"
    first = table(store, "search")[0]
    assert (first["step"], first["to_step"]) == ("4", "2") and 0 <= float(first["distance"]) < 2
    assert "against one-shot pruning" in done.page.read_text()


def test_one_training_is_one_curve(pruned):
    store, machine = pruned("method=gradual", "pruning={levels: 2}")
    report_runs(machine.runs, [], None, None)
    rows = table(store, "training")
    assert [row["step"] for row in rows] == ["10", "20", "30"] and {row["level"] for row in rows} == {"2"}
