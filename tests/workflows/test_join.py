"""A device's side for real: the gate before a real SuperLink stays closed, and a client survives what happens to it."""

import os
import re
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from ticketlab.errors import FailedRun, TicketlabError
from ticketlab.federate.address import read_address
from ticketlab.federate.keys import client_key, make_authority
from ticketlab.federate.probe import look
from ticketlab.federate.processes import flwr, free_port, start, stop
from ticketlab.recipe import FederateSection
from ticketlab.runs.device import DeviceStore
from ticketlab.runs.store import RunStore
from ticketlab.workflows.enroll import enroll, revoke
from ticketlab.workflows.federation.flower import LAB, entrance_of, running
from ticketlab.workflows.federation.request import Asked
from ticketlab.workflows.federation.rounds import APP, federate_ticket
from ticketlab.workflows.join import join, node_command, read_join
from ticketlab.workflows.run import Machine, Started, prune_run
from ticketlab.workflows.ship import shipment


def until_told(path, state, seconds=60):
    """The first event of a client with that state, or the last one before the time is up; the client then stops."""
    end, is_over = time.monotonic() + seconds, []
    event = None
    for event in join(path, None, lambda: bool(is_over) or time.monotonic() > end):
        if getattr(event, "state", None) == state:
            is_over.append(True)
            break
    return event


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A real SuperLink behind its gate, with one enrolled client; two more have keys that are no longer good."""
    folder = tmp_path_factory.mktemp("lab")
    server = f"127.0.0.1:{free_port()}"
    enroll(folder / "runs", "pi1", server, 30, out=folder / "old.join")
    enroll(folder / "runs", "pi1", server, 30, again=True, out=folder / "pi1.join")
    enroll(folder / "runs", "pi2", server, 30, out=folder / "pi2.join")
    revoke(folder / "runs", "pi2")
    entrance = entrance_of(folder / "runs", ["pi1"], None)
    assert entrance.door.host == "127.0.0.1"
    with running(RunStore(folder / "runs" / "x"), ["pi1"], None, entrance) as (home, _):
        outside = folder / "outside"
        outside.mkdir()
        inner = re.search(r'address = "(.*?)"', (home / "config.toml").read_text()).group(1)
        (outside / "config.toml").write_text((home / "config.toml").read_text().replace(inner, server))
        (outside / "ca.crt").write_bytes(entrance.authority.certificate)
        yield folder, server, inner, home, outside


@pytest.fixture
def device(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("TICKETLAB_DATA", raising=False)
    return tmp_path / "state" / "ticketlab" / "clients"


@pytest.mark.slow
def test_nobody_starts_stops_or_registers_anything_from_outside(opened):
    folder, _, _, home, outside = opened
    (folder / "own.pub").write_bytes(client_key().public)
    for command in (
        ("run", str(APP), LAB),
        ("supernode", "register", str(folder / "own.pub"), LAB, "--name", "evil"),
        ("stop", "1", LAB),
        ("ls", LAB),
    ):
        with pytest.raises(FailedRun):
            flwr(outside, *command)
    assert flwr(home, "ls", LAB)["runs"] == []  # the same words do work inside, and nothing was started


@pytest.mark.slow
def test_calls_that_hand_out_tokens_are_refused_outside_and_not_inside(opened):
    _, server, inner, _, outside = opened
    trusted = ssl.create_default_context(cafile=outside / "ca.crt")

    def ask(host, path):
        given = {"content": b"", "headers": {"content-type": "application/protobuf"}}
        return httpx.post(f"https://{host}/v1/{path}", verify=trusted, trust_env=False, **given).status_code

    for path in ("runtime/acquire-task", "control/start-run", "control/stop-run", "fleet/register-node"):
        assert ask(server, path) == 403
    assert ask(inner, "runtime/acquire-task") == 200  # which is why there is a gate
    assert ask(server, "fleet/pull-messages") == 401  # goes through, and Flower asks for a signature


@pytest.mark.slow
def test_plain_text_and_foreign_authorities_do_not_get_in(opened):
    _, server, *_ = opened
    with pytest.raises(httpx.HTTPError):
        httpx.post(f"http://{server}/v1/fleet/pull-messages", trust_env=False)
    assert "is of another lab" in look(read_address(server), make_authority().certificate.decode()).problem


@pytest.mark.slow
@pytest.mark.parametrize("key", ["old", "pi2", "unknown"])
def test_keys_that_are_not_enrolled_are_refused(opened, device, tmp_path, key):
    folder, *_ = opened
    told = read_join(folder / ("pi1.join" if key == "unknown" else f"{key}.join"))
    private = client_key().private if key == "unknown" else told.private_key.encode()
    store = DeviceStore(tmp_path / "device")
    with store.lock():
        store.unpack(told.authority.encode(), private)
    command = node_command(Path(sys.executable).parent / "flower-supernode", told, store, None)
    node = start(key, command, store.home, tmp_path / "log")
    try:
        assert node.process.wait(60)
        assert "Exit Code: 305" in node.log.read_text()
    finally:
        stop([node])


@pytest.mark.slow
def test_the_enrolled_key_gets_in_and_a_refused_one_is_told(opened, device):
    folder, server, *_ = opened
    event = until_told(folder / "pi1.join", "connected")
    assert str(event) == f"connected to {server}"
    assert (device / "pi1" / "key").stat().st_mode & 0o777 == 0o600
    assert "does not take this key" in str(until_told(folder / "pi2.join", "refused"))


class Device:
    """`ticketlab client join` as a process, and what it says."""

    def __init__(self, path, log):
        self.log = log
        command = [sys.executable, "-m", "ticketlab", "client", "join", str(path)]
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)

    def said(self):
        return self.log.read_text()

    def wait_for(self, words, seconds=90, after=0):
        end = time.monotonic() + seconds
        while words not in self.said()[after:]:
            assert time.monotonic() < end and self.process.poll() is None, self.said()
            time.sleep(0.2)

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)


@pytest.mark.slow
def test_a_client_outlives_coordinators_and_its_own_crash(tiny, tmp_path, places, device):
    machine = Machine(tmp_path / "runs", places, "cpu")
    (store,) = [event.store for event in prune_run(tiny("train.steps=60it"), machine) if isinstance(event, Started)]
    given = shipment(store, places, 2)
    server = f"127.0.0.1:{free_port()}"
    enroll(machine.runs, "pi1", server, 30, out=tmp_path / "pi1.join")
    client = Device(tmp_path / "pi1.join", tmp_path / "said.txt")
    try:
        client.wait_for("nobody listens; no federation is running there now; retrying in 4 s")
        # a coordinator comes, and goes again
        *events, first = federate_ticket(given, settings(2), machine)
        notices = [event.text for event in events if not isinstance(event, dict)]
        waiting = re.compile(r"waiting for pi1 until \d\d:\d\d; on it run: ticketlab client join pi1\.join --data DIR")
        assert any(waiting.fullmatch(notice) for notice in notices)
        assert any(notice.endswith("not enrolled, so local processes here: here") for notice in notices)
        assert states(first) == [["ok", "ok"]] * 2
        assert [path.name for path in (RunStore(Path(first["run"])).path / "flower" / "clients").iterdir()] == ["here"]
        heard = len(client.said())
        # it is started again, and the client's SuperNode is killed between two rounds
        events = federate_ticket(given, settings(40), machine)
        rounds = {}
        for event in events:
            if isinstance(event, dict) and "round" in event:
                rounds[event["round"]] = [one["state"] for one in event["clients"]]
                if event["round"] == 3:
                    client.wait_for("connected to", after=heard)
                    os.kill(int((device / "pi1" / "pid").read_text()), signal.SIGKILL)
                if event["round"] > 4 and rounds[event["round"]] == ["ok", "ok"]:
                    break
        events.close()
        assert rounds[3] == ["ok", "ok"] and rounds[max(rounds)] == ["ok", "ok"]
        assert "the SuperNode ended with status -9" in client.said()
        assert "refused because of the crash (or cut connection) less than 60 s ago" in client.said()
    finally:
        status = client.stop()
    assert status == 0 and client.said().rstrip().endswith("stopped")
    assert not Path(f"/proc/{(device / 'pi1' / 'pid').read_text()}").exists()


def settings(rounds):
    return Asked(("pi1", "here"), FederateSection(rounds=rounds), join_timeout=150, round_timeout=100)


def states(record):
    return [[client["state"] for client in one["clients"]] for one in record["rounds"]]


@pytest.mark.slow
def test_a_port_that_is_taken_is_told_before_anything_starts(tiny, tmp_path, places):
    import socket

    machine = Machine(tmp_path / "runs", places, "cpu")
    (store,) = [event.store for event in prune_run(tiny("train.steps=60it"), machine) if isinstance(event, Started)]
    given = shipment(store, places, 2)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        enroll(machine.runs, "pi1", f"127.0.0.1:{other.getsockname()[1]}", 30, out=tmp_path / "pi1.join")
        with pytest.raises(TicketlabError, match="cannot be listened on: another program or federation has it"):
            next(federate_ticket(given, settings(2), machine))
    revoke(machine.runs, "pi1")
    with pytest.raises(TicketlabError, match="'pi1' is revoked"):
        next(federate_ticket(given, settings(2), machine))
    assert not list(machine.runs.glob("*federated*"))
