"""A real SuperLink, gate and SuperNodes on loopback, with TLS and keys; and what is noticed before and beside them."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from ticketlab.codec import Sparse
from ticketlab.errors import FailedRun, Interrupted, TicketlabError
from ticketlab.federate.direct import Direct
from ticketlab.pruning.masks import masked
from ticketlab.recipe import FederateSection
from ticketlab.runs.results import FEDERATED
from ticketlab.runs.store import RunStore
from ticketlab.workflows.export import export_network
from ticketlab.workflows.federation import flower as flowering
from ticketlab.workflows.federation import rounds as federating
from ticketlab.workflows.federation.client import train
from ticketlab.workflows.federation.controls import controls_of
from ticketlab.workflows.federation.record import record_of, write_network
from ticketlab.workflows.federation.request import Asked, request_hash, request_of
from ticketlab.workflows.federation.rounds import Watch, check_flower, federate_ticket
from ticketlab.workflows.federation.server import FAILURE, LIVE, federate, read_round, round_name
from ticketlab.workflows.federation.start import starting
from ticketlab.workflows.run import Machine, Started, prune_run
from ticketlab.workflows.ship import newest, shipment


@pytest.fixture
def ticket(tiny, tmp_path, places, monkeypatch):
    monkeypatch.delenv("TICKETLAB_DATA", raising=False)
    machine = Machine(tmp_path / "runs", places, "cpu")
    (store,) = [event.store for event in prune_run(tiny("train.steps=60it"), machine) if isinstance(event, Started)]
    return shipment(store, places, 2), machine


def asked(*clients, patience=(90.0, 120.0), least=1, **section):
    join, of_round = patience
    return Asked(clients or ("pi1", "pi2"), FederateSection(**section), least, of_round, join)


@pytest.mark.slow
def test_two_clients_train_a_ticket_and_more_rounds_go_on_from_there(ticket):
    given, machine = ticket
    *events, record = federate_ticket(given, asked("pi1", "coordinator", rounds=2), machine)
    store = RunStore(machine.runs / record["run"].rpartition("/")[2])
    assert [one["round"] for one in record["rounds"]] == [1, 2]
    told = [event for event in events if isinstance(event, dict)]
    assert [event["round"] for event in told if "round" in event] == [1, 2]
    lives = [client["state"] for event in told if "live" in event for client in event["live"]["clients"]]
    assert "waiting" in lives and "ok" in lives
    for one in record["rounds"]:
        assert [(client["name"], client["state"]) for client in one["clients"]] == [
            ("pi1", "ok"),
            ("coordinator", "ok"),
        ]
        trained = sum(client["examples"] for client in one["clients"])
        assert trained == pytest.approx(0.9 * len(given.splits.train), abs=2)
        state, _ = store.read_state(one["round"])
        for name, kept in given.network.mask.items():
            assert bool((state[name][~kept] == 0).all())
    first, second = record["rounds"]
    for before, after in zip(first["clients"], second["clients"], strict=True):
        assert after["bytes_down"] < before["bytes_down"]  # the mask is known by then
        assert after["bytes_up"] < 0.7 * record["dense_bytes"]  # 64 % of the weights remain, and zlib helps
    assert record["dense_bytes"] == sum(value.nbytes for value in given.network.model.state_dict().values())
    assert record["ratio"]["up"] > 1
    for secret in ("keys/server.key", "clients/pi1/pi1.join", "clients/coordinator/coordinator.join"):
        assert stat.S_IMODE((store.path / "flower" / secret).stat().st_mode) == 0o600
    kept, _ = store.read_state(2)
    *_, more = federate_ticket(given, asked("pi1", "coordinator", rounds=3), machine)
    assert more["run"] == record["run"] and len(more["rounds"]) == 3
    assert more["rounds"][:2] == record["rounds"]
    assert all(torch.equal(store.read_state(2)[0][name], value) for name, value in kept.items())


@pytest.mark.slow
def test_clients_that_do_not_come_are_named_and_nothing_stays_behind(ticket, monkeypatch):
    given, machine = ticket
    real, children = flowering.start, []

    def without_nodes(name, command, *more):
        if name == "pi2":
            command = [command[0], "--version"]
        children.append(real(name, command, *more))
        return children[-1]

    monkeypatch.setattr(flowering, "start", without_nodes)
    with pytest.raises(FailedRun, match=r"not online within 15 s: .*pi2"):
        list(federate_ticket(given, asked(rounds=1, patience=(15.0, 60.0), least=2), machine))
    (store,) = [RunStore(path) for path in machine.runs.glob("*federated*")]
    assert store.read_manifest()["state"] == "failed"
    assert not store.has_result(FEDERATED)
    assert len(children) == 4 and all(child.process.poll() is not None for child in children)


def test_what_cannot_be_run_is_told_before_anything_starts(ticket):
    given, machine = ticket
    many = tuple(f"c{index}" for index in range(70))
    for bad, message in (
        (asked("pi1", "pi1"), "name each client once"),
        (asked(*many, partition="dirichlet", partition_options={"least": 20}), "too few for 70 parts of 20"),
        (asked(partition="group"), "does not tell its examples apart"),
        (asked(rule="submodels", options={"weak": "pi9"}), "weak names clients"),
        (asked(rule="feddst", options={"alpha": 2.0}), "alpha lies between 0 and 1"),
    ):
        with pytest.raises(TicketlabError, match=message):
            next(federate_ticket(given, bad, machine))
    assert not list(machine.runs.glob("*federated*"))


def test_an_untested_flower_is_refused(monkeypatch):
    check_flower()
    for found in ("1.43.0", "1.40.2", "2.0.0"):
        monkeypatch.setattr(federating, "version", lambda _, found=found: found)
        with pytest.raises(TicketlabError, match=f"flwr {found} was not tested"):
            check_flower()


# --- rounds without processes


def finished(given, machine, rounds=2, **section):
    """A federation whose clients ran in this process, kept as the command keeps it."""
    wanted = asked(rounds=rounds, **section)
    request = {**request_of(given, wanted, machine), "simulated": True}
    store = RunStore(machine.runs / f"{given.store.name}-federated-{request_hash(request)}")
    with store.lock():
        federating._open(store, given, request)
    federate(Direct(2, train, {}), store, request)
    begin = starting(given, wanted.start, machine.places)
    write_network(store, rounds, begin)
    store.write_result(FEDERATED, record_of(store, begin, given.test_accuracy, request, []))
    store.set_state("finished")
    return store, begin


def test_a_finished_federation_ships_the_network_of_its_last_round(ticket, tmp_path):
    given, machine = ticket
    store, begin = finished(given, machine)
    found = shipment(newest(machine.runs, store.name), machine.places)
    last, _ = read_round(store, 2, begin)
    assert found.kind == "masked" and found.network.name == store.name
    state = found.network.model.state_dict()
    assert set(state) == set(last.state) and all(torch.equal(state[name], value) for name, value in last.state.items())
    assert all(torch.equal(found.network.mask[name], kept) for name, kept in given.network.mask.items())
    assert found.test_accuracy == store.read_result(round_name(2))["test_accuracy"]
    assert not torch.equal(state["fc1.weight"], given.network.model.state_dict()["fc1.weight"])
    (made,) = export_network(found, [("ticket", "float32")], tmp_path / "out")
    assert made["accepted"] and made["test_accuracy"] == pytest.approx(found.test_accuracy)


def test_a_federation_that_is_not_finished_ships_nothing(ticket):
    given, machine = ticket
    store, _ = finished(given, machine, rounds=1)
    store.forget(FEDERATED)
    with pytest.raises(TicketlabError, match="is not finished; the same command goes on with it"):
        shipment(store, machine.places)
    assert newest(machine.runs, None).name == given.store.name


def test_finished_rounds_are_read_and_nothing_is_started(ticket, monkeypatch):
    given, machine = ticket
    store, _ = finished(given, machine)
    monkeypatch.setattr(flowering, "start", lambda *_: pytest.fail("a program was started"))
    *events, record = federate_ticket(given, asked(rounds=2), machine)
    assert events == record["rounds"] == [store.read_result(round_name(number)) for number in (1, 2)]
    assert RunStore(store.path).read_manifest()["state"] == "finished"


def test_a_longer_federation_is_not_put_back_by_asking_for_fewer_rounds(ticket, monkeypatch):
    given, machine = ticket
    store, _ = finished(given, machine, rounds=3)
    before = store.read_file("federated.ticket")
    said, *_, record = federate_ticket(given, asked(rounds=2), machine)
    assert said.text.endswith("3 rounds are here already, which is more than 2; none is lost")
    assert [one["round"] for one in record["rounds"]] == [1, 2, 3]
    assert store.read_file("federated.ticket") == before


def test_a_federation_is_where_another_one_starts_from(ticket, tmp_path):
    given, machine = ticket
    store, begin = finished(given, machine)
    network = shipment(store, machine.places)
    request = {**request_of(network, asked(rounds=1), machine), "simulated": True}
    folder = RunStore(tmp_path / "next")
    folder.path.mkdir()
    federate(Direct(2, train, {}), folder, request)
    last, _ = read_round(store, 2, begin)
    assert all(torch.equal(starting(network, "trained", machine.places).state[n], v) for n, v in last.state.items())
    for start in ("rewound", "reinit"):
        with pytest.raises(TicketlabError, match=f"only a level of a pruning run has {start} weights"):
            starting(network, start, machine.places)


def test_a_federation_that_starts_from_another_one_has_no_controls(ticket):
    given, machine = ticket
    store, _ = finished(given, machine, rounds=1)
    network = shipment(store, machine.places)
    request = request_of(network, asked(rounds=1), machine)
    (said,) = controls_of(store, network, request, machine.places)
    assert said.text.startswith(f"no controls: {store.name} has no dense network")


@pytest.mark.parametrize("start", ["trained", "rewound", "reinit"])
def test_a_federation_starts_from_the_weights_that_were_asked_for(ticket, start):
    given, machine = ticket
    found = starting(given, start, machine.places)
    weights = {"trained": given.network.model.state_dict(), "rewound": given.store.read_rewind(1)}
    assert all(torch.equal(found.mask[name], kept) for name, kept in given.network.mask.items())
    assert all(bool((found.state[name][~kept] == 0).all()) for name, kept in found.mask.items())
    if start in weights:
        expected = masked(weights[start], found.mask)
        assert all(torch.equal(found.state[name], value) for name, value in expected.items())
    else:
        again = starting(given, start, machine.places)
        assert all(torch.equal(found.state[name], value) for name, value in again.state.items())
        assert all(
            not torch.equal(found.state["fc1.weight"], masked(w, found.mask)["fc1.weight"]) for w in weights.values()
        )
    assert isinstance(found, Sparse) and found.facts["density"] == pytest.approx(0.64, abs=0.02)


# --- what the command sees of the rounds


class Clock:
    """Time that goes on when it is told to."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(federating.time, "monotonic", found.monotonic)
    return found


def test_what_is_new_of_the_clients_is_told_once(tmp_path, clock):
    store = RunStore(tmp_path)
    watch = Watch(store, lambda: pytest.fail("nobody needed to ask"))
    assert list(watch.look("round_9.json")) == []
    for updated in ("1", "2"):
        store.write_result(LIVE, {"round": 1, "updated": updated, "clients": []})
        assert list(watch.look("round_9.json")) == [{"live": {"round": 1, "updated": updated, "clients": []}}]
        assert list(watch.look("round_9.json")) == []


def test_after_a_silence_flower_is_asked_and_an_end_without_a_word_is_a_failure(tmp_path, clock):
    asked_at, status = [], "running"

    def told():
        asked_at.append(clock.now)
        return status

    watch = Watch(RunStore(tmp_path), told)
    for step in (29.0, 2.0, 29.0, 2.0):
        clock.now += step
        assert list(watch.look("round_9.json")) == []
    assert asked_at == [131.0, 162.0]
    status = "finished:failed"
    clock.now += 29
    assert list(watch.look("round_9.json")) == []
    clock.now += 2
    with pytest.raises(FailedRun, match=r"ended without a word \(Flower says finished:failed\)"):
        list(watch.look("round_9.json"))


def test_a_round_that_is_finished_while_flower_is_asked_is_no_failure(tmp_path, clock):
    store = RunStore(tmp_path)

    def told():
        store.write_result("round_9.json", {"round": 9})
        return "finished:completed"

    watch = Watch(store, told)
    clock.now += 31
    assert list(watch.look("round_9.json")) == []


def test_a_word_of_the_clients_ends_the_silence(tmp_path, clock):
    store = RunStore(tmp_path)
    watch = Watch(store, lambda: pytest.fail("nobody needed to ask"))
    for number in range(5):
        clock.now += 20
        store.write_result(LIVE, {"round": number, "updated": "", "clients": []})
        assert len(list(watch.look("round_9.json"))) == 1


def test_a_failure_of_the_rounds_is_told_as_it_was_written(tmp_path):
    store = RunStore(tmp_path)
    federating._check(store, [])
    store.write_result(FAILURE, {"error": "FailedRun: round 1: 0 of 1 needed clients answered"})
    with pytest.raises(FailedRun, match=r"^round 1: 0 of 1"):
        federating._check(store, [])


def test_a_round_that_was_finished_last_is_told_even_where_flower_has_ended(tmp_path, clock, monkeypatch):
    """The program may end between two looks; what it has written counts."""
    from contextlib import contextmanager

    store = RunStore(tmp_path)

    @contextmanager
    def nothing(*_):
        yield tmp_path, []

    def flwr(home, *command):
        if command[0] == "run":
            for number in (1, 2):
                store.write_result(round_name(number), {"round": number})
            return {"run-id": 7}
        return {"runs": [{"status": "finished:completed"}]}

    monkeypatch.setattr(federating, "running", nothing)
    monkeypatch.setattr(federating, "flwr", flwr)
    request = {"clients": ["a"], "data": None, "join_timeout": 5, "simulated": False, "settings": {"rounds": 2}}
    entrance = flowering.entrance_of(tmp_path, ["a"], None)
    said, *rounds = federating._rounds(store, request, 0, entrance, lambda: False)
    assert said.text.endswith("not enrolled, so local processes here: a") and rounds == [{"round": 1}, {"round": 2}]
    with pytest.raises(Interrupted, match="goes on with the next round"):
        list(federating._rounds(store, {**request, "settings": {"rounds": 3}}, 2, entrance, lambda: True))


# --- programs that are killed


def alive(folder):
    """Processes that were started for a run: its folder is in their environment."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if str(folder).encode() in (each / "environ").read_bytes() and (each / "cmdline").read_bytes():
                found.append((int(each.name), (each / "cmdline").read_bytes().replace(b"\0", b" ").decode()))
    return found


def until(claim, seconds):
    end = time.monotonic() + seconds
    while not claim() and time.monotonic() < end:
        time.sleep(0.2)
    return claim()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere programs are not tied to the one that started them")
@pytest.mark.parametrize(("victim", "said"), [("coordinator", None), ("flwr-serverapp", "ended without a word")])
def test_what_is_killed_leaves_nothing_behind_and_the_same_command_goes_on(ticket, victim, said):
    given, machine = ticket
    command = [
        sys.executable, "-m", "ticketlab", "federate", given.store.name, "--level", "2", "--runs", str(machine.runs),
        "--clients", "a,b", "--rounds", "3", "-s", "federate.epochs=3",
    ]  # fmt: skip

    def first_round():
        return list(machine.runs.glob("*federated*/round_1.json"))

    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert until(first_round, 120), started.communicate(timeout=60)
    folder = first_round()[0].parent
    before = first_round()[0].read_bytes()
    killed = [started.pid] if victim == "coordinator" else [pid for pid, line in alive(folder) if victim in line]
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    _, told = started.communicate(timeout=150)
    assert started.returncode == (1 if said else -signal.SIGKILL) and (said or "") in told
    assert until(lambda: not alive(folder), 40), alive(folder)
    again = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=200)
    record = json.loads(again.stdout)
    assert [one["round"] for one in record["rounds"]] == [1, 2, 3] and first_round()[0].read_bytes() == before
    assert not alive(folder)
