"""What a device is told about itself, one thing at a time, and all of it together."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from ticketlab.cli.app import app
from ticketlab.federate.join_file import JoinFile
from ticketlab.federate.probe import Seen
from ticketlab.federate.processes import free_port
from ticketlab.workflows import device_check
from ticketlab.workflows.device_check import (
    ask_torch,
    bits,
    check_device,
    clock,
    data_folder,
    flower,
    join_file,
    memory,
    python,
    server,
    torch_build,
)
from ticketlab.workflows.enroll import enroll

NOW = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.fixture
def joined(tmp_path):
    _, path = enroll(tmp_path / "runs", "pi1", f"127.0.0.1:{free_port()}", 30, out=tmp_path / "pi1.join")
    return path


def told(days):
    return JoinFile("pi1", "lab.local:8443", "", "", (NOW + timedelta(days)).isoformat())


def test_join_files_in_date_nearly_out_of_it_and_open_to_others(joined):
    assert join_file(told(100), joined, NOW).state == "ok"
    soon = join_file(told(5), joined, NOW)
    assert (soon.state, "5 days left" in soon.detail) == ("warning", True)
    late = join_file(told(-1), joined, NOW)
    assert late.state == "problem" and "ticketlab client enroll pi1 --server lab.local:8443 --again" in late.do
    joined.chmod(0o644)
    assert join_file(told(100), joined, NOW).do == f"chmod 600 {joined}"


def test_systems_pythons_and_memory():
    assert [bits(True, "aarch64").state, bits(False, "armv7l").state] == ["ok", "problem"]
    assert [python(v).state for v in ((3, 10), (3, 11), (3, 13), (3, 14))] == ["problem", "ok", "ok", "warning"]
    assert [memory(size).state for size in (0.4, 1.5, 3.7, None)] == ["problem", "warning", "ok", "warning"]


def test_the_build_of_torch_that_fills_a_board():
    trap = torch_build(("2.15.0+cu132", "13.2", False), "aarch64")
    assert trap.state == "warning" and "download.pytorch.org/whl/cpu --force-reinstall" in trap.do
    assert torch_build(("2.15.0+cpu", None, False), "aarch64").state == "ok"
    assert torch_build(("2.15.0+cu132", "13.2", True), "aarch64").state == "ok"
    assert torch_build(("2.15.0+cu132", "13.2", False), "x86_64").state == "ok"
    assert torch_build("No module named 'torch'", "aarch64").state == "problem"


def test_torch_is_asked_in_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(device_check, "ASK_TORCH", "import os; os.kill(os.getpid(), 4)")
    assert ask_torch() == "dies with signal 4 when it loads: a build for another processor"
    monkeypatch.setattr(device_check, "ASK_TORCH", "import no_such_torch")
    assert "No module named 'no_such_torch'" in ask_torch()
    monkeypatch.setattr(device_check, "ASK_TORCH", "print('[\"2.10\", null, false]')")
    assert ask_torch() == ("2.10", None, False)


def test_versions_of_flower():
    assert [flower(v).state for v in ("1.41.0", "1.42.3", "1.40.0", "1.43.0", None)] == ["ok", "ok"] + ["problem"] * 3


def test_coordinators_and_clocks():
    there = Seen(None, 1.0)
    assert (server(told(9), there).state, clock(there, None).state) == ("ok", "ok")
    ahead = Seen("the clock of this device is 90 s ahead", 90.0)
    assert (server(told(9), ahead).state, clock(ahead, True).state) == ("ok", "problem")
    away = Seen("lab.local:8443: nobody listens; no federation is running there now")
    assert server(told(9), away).state == "warning"
    assert server(told(9), Seen("lab.local:8443: its certificate is of another lab")).state == "problem"
    assert [clock(away, known).state for known in (True, False, None)] == ["ok", "warning", "warning"]


def test_data_folders(tmp_path, monkeypatch):
    monkeypatch.delenv("TICKETLAB_DATA", raising=False)
    assert data_folder(None).state == "ok"
    assert data_folder(tmp_path / "no").state == "problem"
    (tmp_path / "data").mkdir()
    assert data_folder(tmp_path / "data").state == "warning"
    (tmp_path / "data" / "x").touch()
    assert data_folder(tmp_path / "data").detail.endswith("1 entries")


def test_all_of_it_as_it_is_typed(joined, monkeypatch, tmp_path):
    monkeypatch.setattr(device_check, "ask_torch", lambda: ("2.15.0+cpu", None, False))
    ran = CliRunner().invoke(app, ["client", "join", str(joined), "--check", "--json"])
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert found["ready"] and found["name"] == "pi1"
    names = ["join file", "system", "Python", "torch", "flwr", "memory", "coordinator", "clock", "data"]
    assert [check["what"] for check in found["checks"]] == names
    assert all(check["do"] for check in found["checks"] if check["state"] != "ok")
    ran = CliRunner().invoke(app, ["client", "join", str(joined), "--check", "--data", str(tmp_path / "no")])
    assert ran.exit_code == 1 and "not ready: data" in ran.stderr and "✗" in ran.stdout
    assert [check.what for check in check_device(joined, None)] == names
