"""`ticketlab fuse` as it is typed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from ticketlab.cli.app import app
from ticketlab.models import models


@pytest.fixture
def run(tmp_path, write_recipe, monkeypatch):
    monkeypatch.setenv("TICKETLAB_DATA", str(tmp_path / "nothing"))
    monkeypatch.setenv("HOME", str(tmp_path))

    def call(*arguments):
        return CliRunner().invoke(app, [*arguments, "--runs", str(tmp_path / "runs")])

    return call


@pytest.fixture
def ticket(run, write_recipe):
    assert run("prune", str(write_recipe()), "--quiet").exit_code == 0


def test_without_arguments_the_newest_ticket_is_fused(run, ticket):
    found = run("fuse", "--json")
    assert found.exit_code == 0, found.output
    record = json.loads(found.stdout)
    assert record["source"]["level"] == 2
    assert {
        "run",
        "source",
        "method",
        "widths",
        "before",
        "sparse",
        "after",
        "latency_us",
        "permutation_error",
        "seconds",
    } <= set(record)
    assert {"params", "nonzeros", "macs", "bytes", "test_accuracy"} <= set(record["after"])
    assert "source: tiny-" in found.stderr
    # the fusion is a run of its own, and not the newest ticket
    again = run("fuse", "--json", "--share", "0.2")
    assert json.loads(again.stdout)["source"]["run"].startswith("tiny-")
    assert run("runs", "ls").exit_code == 0
    shown = run("runs", "show", record["run"], "--json")
    assert json.loads(shown.stdout) == record
    written = json.loads(run("report", record["run"], "--json").stdout)
    page = Path(written["page"]).read_text()
    assert f"{record['after']['params']:,}" in page and "error-curves.svg" in page
    assert f"{100 * record['after']['test_accuracy']:.2f}" in page


def test_the_table_has_dense_sparse_and_fused(run, ticket):
    found = run("fuse", "tiny", "--level", "1", "--widths", "fc1=30,fc2=10", "--combine", "fold", "--select", "l1")
    assert found.exit_code == 0, found.output
    for word in ("before", "sparse", "after", "l1 + fold", "fc1 30, fc2 10", "µs"):
        assert word in found.stdout


def test_weights_from_elsewhere(run, tmp_path):
    torch.manual_seed(0)
    save_file(models.find("lenet_300_100")((1, 8, 8), 10).state_dict(), tmp_path / "w.safetensors")
    found = run(
        "fuse", "--weights", str(tmp_path / "w.safetensors"), "--model", "lenet_300_100", "--data", "digits",
        "--mean", "0.5", "--std", "0.5", "--params", "5000", "--json",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    record = json.loads(found.stdout)
    assert record["after"]["params"] <= 5000 and record["sparse"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "lenet_5"], "--model: only with --weights FILE"),
        (["--weights", "w.pt"], "needs --model and --data NAME"),
        (["--weights", "w.pt", "--model", "lenet_5", "--data", "digits"], "w.pt: no such file"),
        (["--widths", "56;68"], "write it as 56,68 or fc1=56,fc2=68"),
        (["--option", "threshold"], "write it as name=number"),
        (["--groups", "none.yaml"], "none.yaml: no such file"),
        (["none"], "no run 'none'"),
        ([], "no runs in"),
        (["a", "b"], "one run at a time"),
        (["--params", "9", "--macs", "9"], "choose one of --params, --macs"),
    ],
)
def test_wrong_input_is_told_in_one_error_with_status_2(run, arguments, message, tmp_path):
    found = run("fuse", *arguments)
    assert found.exit_code == 2
    assert message in found.stderr and "Traceback" not in found.stderr
    assert not (tmp_path / "runs").exists()


def test_groups_can_be_named_in_a_file(run, ticket, tmp_path):
    (tmp_path / "groups.yaml").write_text("- {producers: [fc1], consumers: [fc2]}\n")
    found = run("fuse", "--groups", str(tmp_path / "groups.yaml"), "--share", "0.1", "--json")
    assert json.loads(found.stdout)["widths"] == {"fc1": 30, "fc2": 100, "output": 10}
    (tmp_path / "groups.yaml").write_text("- {producers: [fc1], consumers: [output]}\n")
    wrong = run("fuse", "--groups", str(tmp_path / "groups.yaml"), "--share", "0.1")
    assert wrong.exit_code == 2 and "output has 100 consumer places for 300 units" in wrong.stderr
    (tmp_path / "groups.yaml").write_text("producers: [fc1]\n")
    assert "a list of groups" in run("fuse", "--groups", str(tmp_path / "groups.yaml")).stderr
