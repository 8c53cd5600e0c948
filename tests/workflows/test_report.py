"""Pages of runs of every method; what only some of them have is in tests/cli/test_report.py."""

import re

import pytest

from ticketlab.errors import RunError
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
            ["accuracy", "layers", "masks", "cost", "environment"],
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


def test_what_a_page_of_other_runs_left_in_the_shared_folder_goes_and_nothing_elsewhere(pruned, tmp_path):
    store, machine = pruned("pruning.levels=1")
    for out in (None, tmp_path / "mine"):
        folder = out or store.path / "report"
        (folder / "figures").mkdir(parents=True)
        (folder / "figures" / "run-3-accuracy.png").touch()
        report_runs(machine.runs, [], None, out)
        assert (folder / "figures" / "run-3-accuracy.png").exists() == (out is not None)
        assert (folder / "figures" / "accuracy.png").exists()
