"""Clients of Flower's simulation engine: the same networks as in one process, and nothing left behind."""

import importlib.util
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ticketlab.cli.app import app
from ticketlab.errors import FailedRun, Interrupted
from ticketlab.federate.direct import Direct
from ticketlab.recipe import FederateSection
from ticketlab.runs.store import RunStore
from ticketlab.workflows.federation import simulation as federate_simulation
from ticketlab.workflows.federation.client import train
from ticketlab.workflows.federation.request import Asked, request_of
from ticketlab.workflows.federation.rounds import federate_ticket
from ticketlab.workflows.federation.server import federate, round_name
from ticketlab.workflows.run import Machine, prune_run
from ticketlab.workflows.ship import shipment

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: python -m pip install -e '.[simulation]'"
)


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    from support import TINY

    from ticketlab.data.files import Places
    from ticketlab.recipe_file import read_recipe

    folder = tmp_path_factory.mktemp("simulation")
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    found = Machine(folder / "runs", Places(None, folder / "cache", may_download=False), "cpu")
    list(prune_run(read_recipe(folder / "tiny.yaml", ["train.steps=60it"]), found))
    return found


@pytest.fixture
def given(machine, monkeypatch):
    monkeypatch.delenv("TICKETLAB_DATA", raising=False)
    monkeypatch.setattr(federate_simulation, "_cores", lambda: 1)
    (store,) = [RunStore(path) for path in machine.runs.glob("tiny-??????")]
    return shipment(store, machine.places, 2)


def asked(clients=3, **settings):
    names = tuple(f"client_{number:04d}" for number in range(1, clients + 1))
    return Asked(names, FederateSection(**{"rounds": 2, **settings}), simulated=True)


def processes(text):
    """Command lines on this machine that hold a text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        found += [line] * (text in line)
    return found


def scratches():
    return set(Path("/tmp").glob("ticketlab-*"))


@needs_ray
@pytest.mark.slow
def test_simulated_clients_give_the_very_networks_of_clients_in_one_process(given, machine, tmp_path):
    before = scratches()
    wanted = asked(partition="dirichlet")
    *_, record = federate_ticket(given, wanted, machine, with_controls=True)
    simulated, direct = RunStore(machine.runs / Path(record["run"]).name), RunStore(tmp_path / "direct")
    direct.path.mkdir()
    federate(Direct(3, train, {}), direct, request_of(given, wanted, machine))
    for number in (1, 2):
        (one, facts), (other, told) = (store.read_state(number) for store in (simulated, direct))
        assert facts == told and set(one) == set(other)
        assert all(torch.equal(one[name], other[name]) for name in one)
        first, second = (store.read_result(round_name(number)) for store in (simulated, direct))
        for key in ("name", "state", "bytes_down", "bytes_up", "examples", "accuracy", "accuracy_after", "loss"):
            assert [client[key] for client in first["clients"]] == [client[key] for client in second["clients"]]
    down = [[client["bytes_down"] for client in one["clients"]] for one in record["rounds"]]
    assert all(after < before for before, after in zip(*down, strict=True))  # the mask is known by then
    assert [one["control"] for one in record["controls"]][-1] == "fresh weights"
    assert not processes(str(simulated.path)) and scratches() <= before


@needs_ray
@pytest.mark.slow
def test_a_stopped_simulation_ends_at_once_and_a_failed_one_says_why(given, machine):
    before, waited = scratches(), []

    def soon():
        waited.append(time.monotonic())
        return waited[-1] - waited[0] > 6  # Ray is on its way up

    with pytest.raises(Interrupted):
        list(federate_ticket(given, asked(lr=0.05, epochs=400), machine, soon))
    assert time.monotonic() - waited[-1] < 15
    with pytest.raises(FailedRun, match=r"round 1: 0 of 1 needed clients answered .*training diverged here"):
        list(federate_ticket(given, asked(lr=1e30), machine))
    assert not processes("ticketlab.workflows.federation.simulation") and scratches() <= before


@needs_ray
@pytest.mark.slow
def test_after_a_killed_coordinator_nothing_stays_and_the_same_command_goes_on(given, machine):
    before = scratches()
    command = [
        sys.executable, "-m", "ticketlab", "federate", given.store.name, "--level", "2", "--runs", str(machine.runs),
        "--simulate", "3", "--rounds", "6", "-s", "federate.epochs=3", "-s", "federate.seed=7",
    ]  # fmt: skip
    finished = set(machine.runs.glob("*-federated-*/round_1.json"))
    coordinator = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while time.monotonic() < end and not set(machine.runs.glob("*-federated-*/round_1.json")) - finished:
        time.sleep(0.1)
    coordinator.send_signal(signal.SIGKILL)
    coordinator.wait()
    end = time.monotonic() + 10
    while time.monotonic() < end and processes("ticketlab.workflows.federation.simulation"):
        time.sleep(0.1)
    assert not processes("ticketlab.workflows.federation.simulation") and scratches() <= before
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    assert "round 6" in ran.stderr


def test_without_the_engine_what_to_install_is_said_before_anything_starts(tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *each: None if name == "ray" else real(name, *each))
    ran = CliRunner().invoke(app, ["federate", "nothing", "--simulate", "3", "--runs", str(tmp_path / "runs")])
    assert ran.exit_code == 2
    assert "'ticketlab[simulation]'" in " ".join(ran.output.split())
    assert not (tmp_path / "runs").exists()
