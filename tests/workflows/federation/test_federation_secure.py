"""Secure sums: equal to plain means, no answer in the clear, clients lost at every message; once on a real Flower."""

import math

import numpy as np
import pytest
import torch
from federations import asked_of, given_of, network_after, pruned, ran
from flwr.app import Message
from flwr.common import bytes_to_ndarray
from scipy.stats import kstest

from ticketlab.codec import Sparse, decode
from ticketlab.errors import FailedRun, TicketlabError
from ticketlab.federate.messages import ARRAYS, NETWORK, TASK, blobs_of
from ticketlab.federate.secure import COLLECT, CONFIGS, STAGE, UNMASK, Sum, sum_of
from ticketlab.federate.strategies import to_vector
from ticketlab.recipe import FederateSection, PrivacySection
from ticketlab.runs.store import RunStore
from ticketlab.workflows.federation.client import app, train
from ticketlab.workflows.federation.request import Asked
from ticketlab.workflows.federation.rounds import federate_ticket
from ticketlab.workflows.federation.server import round_name

ROUNDING = 1e-6
"""Of float32 in the plain mean, for values of a few units at most."""


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    return pruned(tmp_path_factory.mktemp("federation"))


def secure(request, most=10_000):
    """A request for the same rounds by secure sums, for clients in this process."""
    return {**request, "settings": {**request["settings"], "secure": True}, "most_examples": most}


def distance(one, other, number):
    (first, _), (second, _) = (network_after(store, number) for store in (one, other))
    return max(float((first.state[name] - second.state[name]).abs().max()) for name in first.state)


def stage_of(message):
    return str(message.content.config_records[CONFIGS][STAGE])


def lost(stages, client=2):
    """Clients of which one does not answer these messages."""

    def answer(message, context):
        if context.node_id == client and stage_of(message) in stages:
            raise RuntimeError("killed")
        return app(message, context)

    return answer


@pytest.fixture(autouse=True)
def no_data(monkeypatch):
    monkeypatch.delenv("TICKETLAB_DATA", raising=False)


# --- numbers


def test_sums_stay_below_the_modulus_and_errors_below_a_level_each():
    for clients in (3, 4, 5, 8, 100):
        how = Sum(clients, 1000, 16.0)
        assert how.clients * how.levels < 2**32
        assert how.threshold > clients / 2
    how = Sum(3, 1000, 16.0)
    assert how.levels == 2**30
    assert how.error(3, 1000) == pytest.approx(3 * 32 / 2**30)
    assert how.error(3, 500) == pytest.approx(2 * how.error(3, 1000))


def test_the_span_grows_with_the_network_and_with_the_noise_of_local_privacy():
    small, large = (Sparse({}, {"w": torch.tensor([value, 0.0])}, {}) for value in (0.5, 4.0))
    assert sum_of(small, 3, 100, None).span == 16
    assert sum_of(large, 3, 100, None).span == 64
    privacy = PrivacySection(kind="local", clip=0.5, epsilon=1.0, delta=1e-5)
    found = sum_of(small, 3, 100, privacy)
    assert found.span == pytest.approx(16 + 10 * math.sqrt(2 * math.log(1.25e5)))
    assert found.most_examples == 1
    with pytest.raises(FailedRun, match="among 3 at least; 2 are left"):
        sum_of(small, 2, 100, None)


# --- rounds with clients in this process


def test_secure_rounds_equal_plain_ones_within_the_stated_error(machine, tmp_path):
    request = asked_of(machine, rounds=2)
    plain, hidden = RunStore(tmp_path / "plain"), RunStore(tmp_path / "hidden")
    first = ran(plain, request)
    second = ran(hidden, secure(request), app)
    told = second[0]["rule"]["secure"]
    assert (told["clients"], told["summed"], told["threshold"]) == (3, 3, 2)
    assert distance(plain, hidden, 1) < told["error_below"] + ROUNDING
    assert distance(plain, hidden, 2) < 1e-4  # training from networks that far apart
    for one, other in zip(first, second, strict=True):
        assert abs(one["test_accuracy"] - other["test_accuracy"]) < 0.02
        for client, same in zip(one["clients"], other["clients"], strict=True):
            assert (client["name"], client["examples"]) == (same["name"], same["examples"])
    assert [c["accuracy"] for c in first[0]["clients"]] == [c["accuracy"] for c in second[0]["clients"]]


def test_going_on_and_local_privacy_and_server_momentum_work_on_the_sum(machine, tmp_path):
    for section in ({"server_momentum": 0.5, "server_lr": 0.7}, {"privacy": PrivacySection(kind="local", clip=0.1)}):
        request = asked_of(machine, rounds=2, **section)
        name = next(iter(section))
        plain, hidden = RunStore(tmp_path / name / "plain"), RunStore(tmp_path / name / "hidden")
        ran(plain, request)
        ran(hidden, secure(request), app, rounds=1)
        records = ran(hidden, secure(request), app)
        assert len(records) == 2
        if name == "server_momentum":
            assert distance(plain, hidden, 2) < 1e-4
        else:
            assert records[1]["rule"]["privacy"]["epsilon"] == 1.0
            assert all(client["accuracy"] is None for client in records[1]["clients"])


def test_what_the_server_gets_of_a_client_is_uniform_noise_and_no_values(machine, tmp_path):
    """The values are nowhere in the message, and what is there looks random and does not go with them."""
    seen, own = {}, {}

    def look(message, context):
        stage = stage_of(message)
        reply = app(message, context)
        if stage == COLLECT:
            mask = decode(blobs_of(message.content)[NETWORK]).mask
            own[context.node_id] = to_vector(decode(plain_answer(message, context), known=mask))
            seen[context.node_id] = reply.content
        return reply

    def plain_answer(message, context):
        ordinary = {name: message.content[name] for name in (ARRAYS, TASK)}
        record = type(message.content)(ordinary)
        return blobs_of(train(Message(record, dst_node_id=1, message_type="train"), context).content)[NETWORK]

    ran(RunStore(tmp_path / "r"), secure(asked_of(machine)), look, rounds=1)
    assert len(seen) == 3
    for node, content in seen.items():
        assert not any(len(record) for record in content.array_records.values())
        factor, masked = map(bytes_to_ndarray, content.config_records[CONFIGS]["masked_params"])
        assert masked.shape == own[node].shape and factor.shape == (1,)
        assert kstest(masked / 2**32, "uniform").pvalue > 1e-4
        assert abs(np.corrcoef(masked, own[node])[0, 1]) < 5 / math.sqrt(len(masked))
        assert own[node][:8].tobytes() not in b"".join(content.config_records[CONFIGS]["masked_params"])


@pytest.mark.parametrize("stage", [COLLECT, UNMASK])
def test_a_client_that_is_lost_after_sharing_keys_is_survived(machine, tmp_path, stage):
    hidden = RunStore(tmp_path / "r")
    (record,) = ran(hidden, secure(asked_of(machine)), lost([stage]), rounds=1)
    states = [client["state"] for client in record["clients"]]
    if stage == UNMASK:  # its vector was there already
        assert states == ["ok", "ok", "ok"]
        return
    assert states[0] == states[2] == "ok" and "RuntimeError: killed" in states[1]
    plain = RunStore(tmp_path / "plain")

    def dies(message, context):
        if context.node_id == 2:
            raise RuntimeError("killed")
        return train(message, context)

    ran(plain, asked_of(machine), dies, rounds=1)
    assert distance(plain, hidden, 1) < record["rule"]["secure"]["error_below"] + ROUNDING


def test_a_client_whose_numbers_cannot_be_is_left_out_of_the_sum(machine, tmp_path):
    def lies(message, context):
        stage, reply = stage_of(message), app(message, context)
        if context.node_id == 2 and stage == COLLECT:
            reply.content.config_records["fitres.metrics"]["accuracy"] = math.nan
        return reply

    store = RunStore(tmp_path / "r")
    (record,) = ran(store, secure(asked_of(machine)), lies, rounds=1)
    states = [client["state"] for client in record["clients"]]
    assert states == ["ok", "unreadable answer: accuracy is not a number that can be", "ok"]
    assert record["rule"]["secure"]["summed"] == 2
    assert b"NaN" not in store.read_file(round_name(1))


@pytest.mark.parametrize("stage", ["setup", "share_keys"])
def test_a_client_that_is_lost_early_is_left_out_where_three_remain(machine, tmp_path, stage):
    (record,) = ran(RunStore(tmp_path / "r"), secure(asked_of(machine, clients=4)), lost([stage]), rounds=1)
    states = [client["state"] for client in record["clients"]]
    assert [state == "ok" for state in states] == [True, False, True, True]
    assert record["rule"]["secure"]["summed"] == 3
    with pytest.raises(FailedRun, match=r"round 1: .*among 3 at least; 2 are left \(.*c1: RuntimeError: killed"):
        ran(RunStore(tmp_path / "s"), secure(asked_of(machine)), lost([stage]), rounds=1)


def test_too_few_to_open_the_sum_is_a_failure_that_says_so(machine, tmp_path):
    def two_die(message, context):
        if context.node_id > 1 and stage_of(message) == UNMASK:
            raise RuntimeError("killed")
        return app(message, context)

    store = RunStore(tmp_path / "r")
    with pytest.raises(FailedRun, match=r"round 1: too few clients were left to open the sum \(.*c2: RuntimeError"):
        ran(store, secure(asked_of(machine)), two_die, rounds=1)
    assert not store.has_result(round_name(1))
    assert len(ran(store, secure(asked_of(machine)), app)) == 2


def test_the_sum_is_not_opened_for_fewer_clients_than_asked_for(machine, tmp_path):
    asked = []

    def look(message, context):
        asked.append(stage_of(message))
        return lost([COLLECT])(message, context)

    with pytest.raises(FailedRun, match=r"round 1: 2 of 3 needed clients answered \(.*c1: RuntimeError: killed"):
        ran(RunStore(tmp_path / "r"), secure(asked_of(machine, least=3)), look, rounds=1)
    assert UNMASK not in asked


def test_a_client_says_what_a_sum_cannot_hold(machine, tmp_path):
    with pytest.raises(FailedRun, match=r"examples are more than the 100 that a secure sum was made for"):
        ran(RunStore(tmp_path / "r"), secure(asked_of(machine), most=100), app, rounds=1)


# --- what is refused


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"rule": "sign_flip"}, "rule: sign_flip"),
        ({"aggregate": "median"}, "aggregate: median"),
        ({"privacy": {"kind": "central"}}, r"privacy\.kind: central"),
        ({"precision": "float16"}, "leave precision out"),
    ],
)
def test_what_needs_single_answers_is_refused(section, message):
    with pytest.raises(ValueError, match=message):
        FederateSection(secure=True, **section)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Asked(("a", "b"), FederateSection(secure=True)), "needs 3 clients in a round, not 2"),
        (Asked(tuple("abcd"), FederateSection(secure=True, clients_per_round=2)), "needs 3 clients in a round, not 2"),
        (Asked(tuple("abc"), FederateSection(secure=True), simulated=True), "not for simulations"),
    ],
)
def test_too_few_clients_and_simulations_are_refused(asked, message):
    with pytest.raises(TicketlabError, match=message):
        asked.check()


# --- a real Flower


@pytest.mark.slow
def test_three_nodes_on_loopback_give_the_plain_mean(machine, tmp_path):
    given = given_of(machine, 2)
    settings = FederateSection(secure=True, rounds=2)
    asked = Asked(tuple(f"c{index}" for index in range(3)), settings, round_timeout=120, join_timeout=90)
    *_, record = federate_ticket(given, asked, machine)
    hidden, plain = RunStore(machine.runs / record["run"].rpartition("/")[2]), RunStore(tmp_path / "plain")
    ran(plain, asked_of(machine))
    assert distance(plain, hidden, 1) < record["rounds"][0]["rule"]["secure"]["error_below"] + ROUNDING
    assert distance(plain, hidden, 2) < 1e-4
    for one in record["rounds"]:
        assert [(client["name"], client["state"]) for client in one["clients"]] == [
            (name, "ok") for name in asked.clients
        ]
