"""A real SuperLink, gate and SuperNodes on loopback, with TLS and keys; and what is refused before any of it starts."""

import json
import stat

import pytest
import torch
from flwr.app import MetricRecord, RecordDict

from ticketlab.codec import Sparse, encode
from ticketlab.errors import FailedRun, TicketlabError
from ticketlab.federate.averaging import weighted_mean
from ticketlab.runs.store import RunStore
from ticketlab.workflows import federate as federating
from ticketlab.workflows.federate import Settings, check_flower, federate_ticket
from ticketlab.workflows.federate_client import ARRAYS, METRICS, arrays
from ticketlab.workflows.federate_server import Outcome, _wrong, read_answer
from ticketlab.workflows.run import Machine, Started, prune_run
from ticketlab.workflows.ship import shipment


@pytest.fixture
def ticket(tiny, tmp_path, places):
    machine = Machine(tmp_path / "runs", places, "cpu")
    (store,) = [event.store for event in prune_run(tiny("train.steps=60it"), machine) if isinstance(event, Started)]
    return shipment(store, places, 2), machine


@pytest.mark.slow
def test_two_clients_train_a_ticket_and_more_rounds_go_on_from_there(ticket, monkeypatch):
    monkeypatch.delenv("TICKETLAB_DATA", raising=False)
    given, machine = ticket
    *_, record = federate_ticket(given, Settings(("pi1", "pi2"), rounds=2, join_timeout=90, round_timeout=120), machine)
    store = RunStore(machine.runs / record["run"].rpartition("/")[2])
    assert [one["round"] for one in record["rounds"]] == [1, 2]
    for one in record["rounds"]:
        assert [(client["name"], client["state"]) for client in one["clients"]] == [("pi1", "ok"), ("pi2", "ok")]
        assert sum(client["examples"] for client in one["clients"]) == len(given.splits.train)
        state = store.read_state(one["round"])
        for name, kept in given.network.mask.items():
            assert bool((state[name][~kept] == 0).all())
    first, second = record["rounds"]
    for before, after in zip(first["clients"], second["clients"], strict=True):
        assert after["bytes_down"] < before["bytes_down"]  # the mask is known by then
        assert after["bytes_up"] < 0.7 * record["dense_bytes"]  # 64 % of the weights remain, and zlib helps
    assert record["dense_bytes"] == sum(value.nbytes for value in given.network.model.state_dict().values())
    assert record["ratio"]["up"] > 1
    for secret in ("server.key", "pi1", "pi2"):
        assert stat.S_IMODE((store.path / "flower" / "keys" / secret).stat().st_mode) == 0o600
    kept = store.read_state(2)
    *_, more = federate_ticket(given, Settings(("pi1", "pi2"), rounds=3, join_timeout=90, round_timeout=120), machine)
    assert more["run"] == record["run"] and len(more["rounds"]) == 3
    assert more["rounds"][:2] == record["rounds"]
    assert all(torch.equal(store.read_state(2)[name], value) for name, value in kept.items())


@pytest.mark.slow
def test_clients_that_do_not_come_are_named_and_nothing_stays_behind(ticket, monkeypatch):
    given, machine = ticket
    real = federating.start

    def without_nodes(name, command, home, log):
        if name == "pi2":
            command = [command[0], "--version"]
        return real(name, command, home, log)

    monkeypatch.setattr(federating, "start", without_nodes)
    monkeypatch.setattr(federating.Child, "check", lambda self: None)
    settings = Settings(("pi1", "pi2"), rounds=1, join_timeout=15, min_clients=2)
    with pytest.raises(FailedRun, match=r"not online within 15 s: .*pi2"):
        list(federate_ticket(given, settings, machine))
    (store,) = [RunStore(path) for path in machine.runs.glob("*federated*")]
    assert store.read_manifest()["state"] == "failed"
    assert not store.has_result("federated.json")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(("pi1", "pi1")), "name each client once"),
        (Settings(("",)), "'' is no name"),
        (Settings(("../x",)), r"'../x' is no name"),
        (Settings(("pi1",), min_clients=2), "there are 1 clients"),
        (Settings(("pi1",), partition="idd"), "unknown partition 'idd'; did you mean 'iid'"),
        (Settings(("pi1",), partition="dirichlet", partition_options={"beta": 1.0}), "beta"),
    ],
)
def test_what_cannot_be_run_is_told_first(settings, message):
    with pytest.raises(TicketlabError, match=message):
        settings.check()


def test_a_partition_that_cannot_be_made_is_told_before_anything_starts(ticket):
    given, machine = ticket
    with pytest.raises(TicketlabError, match="too few for 70 parts of 20"):
        next(federate_ticket(given, Settings(tuple(f"c{i}" for i in range(70)), partition="dirichlet"), machine))
    assert not list(machine.runs.glob("*federated*"))


def test_an_untested_flower_is_refused(monkeypatch):
    check_flower()
    monkeypatch.setattr(federating, "version", lambda _: "1.43.0")
    with pytest.raises(TicketlabError, match=r"flwr 1\.43\.0 was not tested"):
        check_flower()


def test_rounds_and_patience_do_not_make_another_run(ticket):
    given, machine = ticket
    base = federating._request(given, Settings(("a", "b")), machine)
    for change, same in (
        (Settings(("a", "b"), rounds=9, round_timeout=5), True),
        (Settings(("a", "b"), lr=0.2), False),
    ):
        other = federating._request(given, change, machine)
        assert (federating._hash(given, base) == federating._hash(given, other)) is same
    assert json.dumps(base)


def test_answers_that_are_not_of_this_round_and_network_are_not_used(ticket):
    given, _ = ticket
    network = Sparse(given.network.mask, dict(given.network.model.state_dict()), {})
    good = Sparse(network.mask, network.state, {"round": 3})
    assert _wrong(good, network, 3, 10) is None
    assert _wrong(good, network, 4, 10) == "an answer to round 3"
    assert _wrong(good, network, 3, 0) == "no examples"
    cut = {name: value for name, value in network.state.items() if name != "fc1.bias"}
    assert _wrong(Sparse(network.mask, cut, {"round": 3}), network, 3, 10) == "another network"
    for number in (torch.nan, torch.inf):
        broken = {**network.state, "fc1.bias": torch.full((300,), number)}
        assert _wrong(Sparse(network.mask, broken, {"round": 3}), network, 3, 10) == "numbers that are not finite"


def answer_to(content, network, number, metrics=None):
    """What the coordinator makes of a client's answer."""
    record = RecordDict({ARRAYS: arrays(content)})
    if metrics is not None:
        record[METRICS] = MetricRecord(metrics)
    outcome = Outcome("pi1")
    return read_answer(record, outcome, network, number), outcome


def test_answers_are_read_and_garbage_is_told(ticket):
    given, _ = ticket
    network = Sparse(given.network.mask, dict(given.network.model.state_dict()), {})
    content = encode(Sparse(network.mask, network.state, {"round": 1}), is_known=True)
    metrics = {"num-examples": 5, "seconds": 1.5, "accuracy": 0.25, "loss": 1.0}
    state, outcome = answer_to(content, network, 1, metrics)
    assert all(torch.equal(state[name], value) for name, value in network.state.items())
    assert (outcome.state, outcome.examples, outcome.accuracy, outcome.bytes_up) == ("ok", 5, 0.25, len(content))
    other = {name: ~kept for name, kept in network.mask.items()}
    wrong_mask = encode(Sparse(other, network.state, {"round": 1}), is_known=True)
    for bad, said in (
        (content[:-3], "unreadable answer: damaged"),
        (b"garbage", "unreadable answer: not a ticket file"),
        (wrong_mask, "unreadable answer: counts on a mask"),
    ):
        state, outcome = answer_to(bad, network, 1, metrics)
        assert state is None and outcome.state.startswith(said) and outcome.bytes_up == len(bad)
    state, outcome = answer_to(content, network, 1)
    assert state is None and outcome.state.startswith("unreadable answer")
    assert read_answer(RecordDict({}), Outcome("pi1"), network, 1) is None


def test_averages_of_answers_keep_the_mask(ticket):
    given, _ = ticket
    states = [given.network.model.state_dict()] * 2
    mean = weighted_mean(states, [1, 2])
    assert all(torch.allclose(mean[name], value) for name, value in states[0].items())
