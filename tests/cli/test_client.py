"""`ticketlab client` as it is typed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ticketlab.cli.app import app
from ticketlab.errors import TicketlabError
from ticketlab.federate.join_file import decode_join, encode_join
from ticketlab.federate.processes import free_port
from ticketlab.runs.device import DeviceStore
from ticketlab.runs.lab import LabStore
from ticketlab.workflows.join import _stop_orphan, join

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def call(*arguments):
        return CliRunner().invoke(app, ["client", *map(str, arguments)])

    return call


def test_a_client_is_enrolled_listed_and_revoked(run, tmp_path):
    ran = run("enroll", "pi1", "--server", "lab.local:8443", "--days", 10)
    assert ran.exit_code == 0 and ran.stdout == "pi1.join\n"
    assert (tmp_path / "pi1.join").stat().st_mode & 0o777 == 0o600
    assert "ticketlab client join pi1.join --check" in ran.stderr
    ran = run("enroll", "pi1", "--server", "lab.local:8443")
    assert ran.exit_code == 2 and "--again makes a new key" in ran.stderr
    made = json.loads(run("enroll", "pi2", "--server", "lab.local:8443", "--out", "two.join", "--json").stdout)
    assert (made["name"], made["join_file"], made["state"]) == ("pi2", "two.join", "enrolled")
    assert json.loads(run("revoke", "pi2", "--json").stdout)["state"] == "revoked"
    listed = json.loads(run("ls", "--json").stdout)["clients"]
    assert [(one["name"], one["state"], one["server"]) for one in listed] == [
        ("pi1", "enrolled", "lab.local:8443"),
        ("pi2", "revoked", "lab.local:8443"),
    ]
    table = run("ls").stdout
    assert "pi1" in table and "revoked" in table and listed[0]["expires"][:10] in table


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("enroll", "pi/1", "--server", "lab:1"), "is no name of a client"),
        (("enroll", "pi1", "--server", "lab"), "is no server address"),
        (("revoke", "pi1"), "'pi1' is not enrolled"),
        (("join", "none.join"), "none.join: No such file or directory"),
        (("join", "none.join", "--check", "--systemd"), "one at a time"),
        (("join", "none.join", "--json"), "--json goes with --check"),
    ],
)
def test_mistakes_are_told_and_start_nothing(run, arguments, said):
    ran = run(*arguments)
    assert ran.exit_code == 2 and said in ran.stderr


def test_a_join_file_that_is_out_of_date_is_refused_with_the_way_out(run, tmp_path):
    run("enroll", "pi1", "--server", "lab.local:8443")
    path = tmp_path / "pi1.join"
    path.write_bytes(encode_join(replace(decode_join(path.read_bytes()), expires="2020-01-01T00:00:00+00:00")))
    ran = run("join", path)
    assert ran.exit_code == 2 and "ticketlab client enroll pi1 --server lab.local:8443 --again" in ran.stderr


def test_a_device_without_flower_is_told_so(run, tmp_path):
    run("enroll", "pi1", "--server", "lab.local:8443")
    with pytest.raises(TicketlabError, match=r"supernode is not there; install Flower beside ticketlab"):
        next(join(tmp_path / "pi1.join", None, lambda: True, launcher=tmp_path / "supernode"))


def test_a_data_folder_that_is_not_there_is_told(run, tmp_path):
    run("enroll", "pi1", "--server", "lab.local:8443")
    ran = run("join", "pi1.join", "--data", tmp_path / "none")
    assert ran.exit_code == 2 and "no folder that can be read" in ran.stderr


def test_the_unit_is_on_stdout_and_how_to_install_it_is_not(run, tmp_path):
    run("enroll", "pi1", "--server", "lab.local:8443")
    (tmp_path / "my data").mkdir()
    ran = run("join", "pi1.join", "--systemd", "--data", "my data")
    assert ran.exit_code == 0 and ran.stdout.startswith("[Unit]")
    start = f'ExecStart={sys.executable} -m ticketlab client join {tmp_path}/pi1.join --data "{tmp_path}/my data"'
    assert start in ran.stdout.splitlines()
    assert "sudo tee /etc/systemd/system/ticketlab-pi1.service" in ran.stderr
    assert "sudo systemctl enable --now ticketlab-pi1" in ran.stderr


def test_what_the_device_needs_loads_no_torch():
    code = (
        "import sys, ticketlab.cli.client, ticketlab.workflows.join, ticketlab.workflows.device_check; "
        "print([name for name in ('torch', 'flwr', 'numpy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.slow
def test_joining_waits_warns_is_done_once_at_a_time_and_ends_on_both_signals(run, tmp_path, monkeypatch):
    run("enroll", "pi1", "--server", f"127.0.0.1:{free_port()}")
    (tmp_path / "pi1.join").chmod(0o644)
    command = [sys.executable, "-m", "ticketlab", "client", "join", str(tmp_path / "pi1.join")]
    monkeypatch.chdir(ROOT)
    for number in (signal.SIGTERM, signal.SIGINT):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            lines = [process.stderr.readline(), process.stderr.readline()]
            assert f"warning: other users can read {tmp_path}/pi1.join" in lines[0]
            assert "nobody listens; no federation is running there now; retrying in 4 s" in lines[1]
            second = subprocess.run(command, capture_output=True, text=True)
            assert second.returncode == 2 and "pi1 has joined from this device already" in second.stderr
            process.send_signal(number)
            assert process.wait(10) == 0
            assert process.stderr.read().rstrip().endswith("stopped")
        finally:
            process.kill()
            process.wait()
            process.stderr.close()


def test_a_supernode_that_outlived_its_supervisor_is_found_by_its_key(tmp_path):
    store = DeviceStore(tmp_path / "pi1")
    assert store.orphan() is None
    store.write_pid(os.getpid())
    assert store.orphan() is None  # a pid that another program has now
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(store.key)])
    try:
        store.write_pid(process.pid)
        end = time.monotonic() + 5
        while store.orphan() is None and time.monotonic() < end:
            time.sleep(0.05)
        assert store.orphan() == process.pid
        threading.Thread(target=process.wait, daemon=True).start()
        _stop_orphan(store)
        assert process.wait(5) == -signal.SIGTERM
    finally:
        process.kill()


def test_logs_start_empty_and_the_last_one_is_kept(tmp_path):
    store = DeviceStore(tmp_path / "pi1")
    with store.lock():
        store.fresh_log().write_text("first")
        store.fresh_log().write_text("second")
        assert not store.fresh_log().exists()
    assert (tmp_path / "pi1" / "flower.log.1").read_text() == "second"
    assert LabStore(tmp_path).clients() == []
