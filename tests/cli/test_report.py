"""`ticketlab report` on real little runs."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
from support import TINY


@pytest.fixture
def runs(ticketlab, write_recipe):
    """A gradual and a flipout run of two seeds, one iterative run."""
    recipe = write_recipe()
    common = ("-s", "replicates=2", "--workers", "1", "--quiet", "-s", "pruning.output_rate=null")
    both = (*common, "-s", "pruning.scope=global", "-s", "pruning.rate=0.5")
    for more in (
        ("-s", "method=gradual", *both),
        ("-s", "method=sign_flip", "-s", "pruning.criterion=flipout", "-s", "train.gradient_noise=1", *both),
        common,
    ):
        ran = ticketlab("prune", recipe, *more)
        assert ran.exit_code == 0, ran.stderr


def test_runs_of_several_methods_stand_side_by_side(ticketlab, runs, tmp_path):
    ran = ticketlab("report", "--compare", "tiny")
    assert ran.exit_code == 0, ran.stderr
    assert "digits, lenet_300_100: test accuracy" in ran.stdout
    assert "sign_flip flipout" in ran.stdout and "gradual magnitude" in ran.stdout
    assert "× the operations" in ran.stdout and "× the seconds" in ran.stdout
    for name in ("comparison.csv", "comparison.png", "comparison.svg"):
        assert (tmp_path / "runs" / "comparison" / name).stat().st_size > 500
        assert name in ran.stderr
    rows = list(csv.DictReader((tmp_path / "runs/comparison/comparison.csv").read_text().splitlines()))
    # two networks pruned in training, three levels of iterative pruning
    assert len(rows) == 5
    assert {row["test_accuracy_n"] for row in rows} == {"2"}


def test_json_is_one_object_with_every_point(ticketlab, runs):
    ran = ticketlab("report", "--compare", "tiny", "--json", "--against", "sign_flip flipout")
    assert ran.exit_code == 0, ran.stderr
    (found,) = json.loads(ran.stdout)["comparisons"]
    assert found["baseline"].startswith("sign_flip flipout gradient_noise=1.0")
    by_method = {(point["method"], round(point["density"], 4)): point for point in found["points"]}
    pruned = next(point for (name, _), point in by_method.items() if name.startswith("gradual"))
    assert pruned["density"] == pytest.approx(0.25, abs=1e-3)
    assert pruned["minus_baseline"]["n"] == 2
    assert pruned["flops"] > 0 and 0 < pruned["remaining_flops"] < pruned["flops"]
    assert pruned["effective_density"] <= pruned["density"]


def test_a_damaged_run_is_left_out_by_name_and_the_others_are_compared(ticketlab, runs, tmp_path):
    first, second, third = sorted((tmp_path / "runs").iterdir())
    (first / "recipe.yaml").unlink()
    ran = ticketlab("report", "--compare", "tiny", "--json")
    assert ran.exit_code == 0, ran.stderr
    assert f"{first.name} is left out: " in ran.stderr and "recipe.yaml: no such recipe" in ran.stderr
    (found,) = json.loads(ran.stdout)["comparisons"]
    assert len({point["method"] for point in found["points"]}) == 2
    manifest = json.loads((second / "manifest.json").read_text())
    for damage in ("{", json.dumps({name: told for name, told in manifest.items() if name != "data"})):
        (second / "manifest.json").write_text(damage)
        for named in (["tiny"], [str(path) for path in (first, second, third)]):
            ran = ticketlab("report", "--compare", *named)
            assert ran.exit_code == 2 and "two runs or more" in ran.stderr
            assert first.name in ran.stderr and second.name in ran.stderr and third.name not in ran.stderr
    ran = ticketlab("report", "--compare", "tiny")
    assert ran.exit_code == 2 and "two runs or more" in ran.stderr
    assert first.name in ran.stderr and second.name in ran.stderr and third.name not in ran.stderr


def test_the_comparison_is_no_run(ticketlab, runs):
    ticketlab("report", "--compare", "tiny")
    assert "comparison" not in ticketlab("runs", "ls").stdout


@pytest.mark.parametrize(("arguments", "message"), [
    (("report", "tiny"), "'tiny' fits several runs, name one"),
    (("report", "--out", "here.txt"), "here.txt: is a file; name a folder"),
    (("report", "runs/RUN", "--against", "magnitude"), "; name the runs to compare"),
    (("report", "runs/RUN", "copy/RUN"), "are one recipe's, so that no table could tell them apart"),
    (("report", "--compare"), "two runs or more"),
    (("report", "--compare", "tinny"), "no run 'tinny' in runs; known: tiny-"),
    (("report", "--compare", "tiny", "--against", "nothing"), "no method or run 'nothing'"),
])  # fmt: skip
def test_what_cannot_be_shown_is_one_message_and_status_2(ticketlab, runs, tmp_path, arguments, message):
    (tmp_path / "here.txt").touch()
    run = min((tmp_path / "runs").iterdir())
    shutil.copytree(run, tmp_path / "copy" / run.name)
    ran = ticketlab(*(argument.replace("RUN", run.name) for argument in arguments))
    assert ran.exit_code == 2
    assert message in ran.stderr and ran.stdout == ""


CLAIMED = """
claims:
  - {claim: "a ticket of <64 %> classifies", source: "these & other tests", that: ticket, at: {level: 2}, at_least: 0.1,
     seeds: 2}
"""


@pytest.fixture
def claimed(ticketlab, write_recipe):
    """A run of two seeds with a claim, its verdict, and two controls of each level; its folder."""
    recipe = write_recipe(TINY + CLAIMED)
    for arguments in (
        ("verify", recipe, "-s", "replicates=2", "--workers", "1", "--quiet"),
        ("controls", "tiny", "--level", "all", "--control", "reinit,shuffled_mask", "--workers", "1", "--quiet"),
    ):
        ran = ticketlab(*arguments)
        assert ran.exit_code == 0, ran.stderr
    return next(path.parent for path in Path("runs").glob("*/claims.json"))


def test_a_run_is_one_page_with_its_claims_controls_and_masks(ticketlab, claimed):
    ran = ticketlab("report")
    assert ran.exit_code == 0, ran.stderr
    assert ran.stdout.strip() == str(claimed / "report" / "index.html")
    page = (claimed / "report" / "index.html").read_text()
    assert "a ticket of &lt;64 %&gt; classifies" in page and "✓ holds" in page
    assert re.findall(r'<section id="(\w+)">', page) == [
        "claims", "accuracy", "controls", "training", "layers", "masks", "cost", "environment",
    ]  # fmt: skip
    pictures = {path.name for path in (claimed / "report" / "figures").iterdir()}
    assert {"accuracy.png", "accuracy.svg", "controls.svg", "pixels.png", "overlap.svg"} <= pictures
    assert page.count("<svg") == len(pictures) / 2


def test_the_numbers_beside_the_page_are_those_of_the_run(ticketlab, claimed):
    written = json.loads(ticketlab("report", "--json").stdout)
    assert Path(written["page"]).stat().st_size == written["bytes"]
    shown = json.loads(ticketlab("runs", "show", "--json").stdout)
    levels = {(found["replicate"], level["level"]): level for found in shown["replicates"] for level in found["levels"]}
    rows = list(csv.DictReader((claimed / "report/data/levels.csv").read_text().splitlines()))
    assert [(int(row["level"]), row["test_accuracy_n"]) for row in rows] == [(0, "2"), (1, "2"), (2, "2")]
    assert float(rows[2]["test_accuracy_mean"]) == shown["summary"][2]["test_accuracy"]["mean"]
    drawn = list(csv.DictReader((claimed / "report/data/accuracy.csv").read_text().splitlines()))
    assert len(drawn) == len(levels) == 6
    for row in drawn:
        level = levels[int(row["replicate"]), int(row["level"])]
        assert float(row["test_accuracy"]) == level["test_accuracy"] and int(row["remaining"]) == level["remaining"]
    mean = shown["summary"][2]["test_accuracy"]["mean"]
    page = (claimed / "report/index.html").read_text()
    assert f"{100 * mean:.2f} ±" in page


def test_several_runs_are_one_page_with_what_differs_between_them(ticketlab, runs, tmp_path):
    names = [path.name for path in (tmp_path / "runs").iterdir()]
    ran = ticketlab("report", *names)
    assert ran.exit_code == 0, ran.stderr
    page = (tmp_path / "runs" / "report" / "index.html").read_text()
    assert "3 runs side by side" in page and "pruning.criterion" in page
    assert all(f"<h2>{name}</h2>" in page for name in names)
    assert "report" not in ticketlab("runs", "ls").stdout


def test_runs_are_filtered_sorted_and_compared(ticketlab, runs, tmp_path):
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    ran = ticketlab(
        "runs", "ls", "--json", "--where", "method!=imp", "--where", "density<30%", "--sort", "test_accuracy"
    )
    assert ran.exit_code == 0, ran.stderr
    found = json.loads(ran.stdout)["runs"]
    assert {one["method"] for one in found} == {"gradual", "sign_flip"}
    assert [one["test_accuracy"] for one in found] == sorted(one["test_accuracy"] for one in found)
    ran = ticketlab("runs", "ls", "--where", "densty<0.3")
    assert ran.exit_code == 2 and "densty" in ran.stderr and "density" in ran.stderr
    ran = ticketlab("runs", "diff", *names[:2])
    assert ran.exit_code == 0, ran.stderr
    assert all(said in ran.stdout for said in (*names[:2], "settings", "data: the same", "results"))
    shutil.copytree(tmp_path / "runs" / names[0], tmp_path / "copy" / names[0])
    again = ticketlab("runs", "diff", f"runs/{names[0]}", f"copy/{names[0]}").stdout
    assert f"copy/{names[0]} minus runs/{names[0]}" in " ".join(again.split())
    assert "same figures at every common level: 2 of 2 common seeds" in again
