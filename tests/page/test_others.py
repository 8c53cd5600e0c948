"""Pages of federations; those of fusions and studies are tested where real ones are made."""

import pytest

from ticketlab.page.others import federation_page
from ticketlab.runs.results import FEDERATED
from ticketlab.runs.store import RunStore

MIB = 2**20


def client(name, up, down):
    return {
        "name": name, "state": "ok", "examples": 50, "bytes_up": up, "bytes_down": down, "seconds": 1.25,
        "accuracy": 0.5, "accuracy_after": None,
    }  # fmt: skip


def finished(number, accuracy, *clients):
    return {"round": number, "test_accuracy": accuracy, "density": 0.1, "clients": list(clients)}


@pytest.fixture
def page(tmp_path):
    record = {
        "run": "runs/f", "rule": "fixed", "partition": "iid", "density": 0.1, "start": {"test_accuracy": 0.8},
        "rounds": [
            finished(1, 0.90, client("pi1", MIB, MIB), client("pi2", MIB // 2, MIB // 2)),
            finished(2, 0.95, client("pi1", MIB, MIB), client("pi2", MIB, MIB)),
        ],
        "ratio": {"up": 10.04, "down": 9.96}, "controls": [
            {"control": "dense", "test_accuracy": 0.97, "rounds": [0.91, 0.97]},
            {"control": "server_alone", "test_accuracy": 0.7, "rounds": []},
        ],
    }  # fmt: skip
    store = RunStore(tmp_path / "f")
    store.write_manifest({"kind": "federate", "data": "mnist", "stand_in_for": None, "versions": {"torch": "2.15.0"}})
    store.write_result(FEDERATED, record)
    return federation_page(store)


def test_a_federations_page_leads_with_what_came_out(page):
    assert page.lead == [
        "2 rounds of 2 clients, rule fixed, partition iid: test accuracy 80.00 % before, 95.00 % after, at 10.00 % of "
        "the weights.",
        "Each client sent 10.0 and received 10.0 times fewer bytes than dense ones.",
    ]
    assert [section.name for section in page.sections] == ["rounds", "controls", "environment"]


def test_accuracy_stands_against_rounds_and_against_all_bytes_so_far(page):
    by_round, by_bytes = page.pictures[0].figure.get_axes()
    assert by_round.get_lines()[0].get_xydata().tolist() == [[1, 90], [2, 95]]
    assert by_round.get_lines()[1].get_xydata().tolist() == [[1, 91], [2, 97]]
    assert by_round.get_lines()[2].get_xydata().tolist() == [[2, 70]]
    assert by_bytes.get_lines()[0].get_xydata().tolist() == [[3, 90], [7, 95]]


def test_every_client_of_every_round_has_a_row(page):
    clients = page.tables[0]
    assert [(row["round"], row["name"], row["bytes_up"]) for row in clients.records()] == [
        (1, "pi1", MIB), (1, "pi2", MIB // 2), (2, "pi1", MIB), (2, "pi2", MIB),
    ]  # fmt: skip
    assert clients.rows[1] == ("1", "pi2", "ok", "50", "524,288", "524,288", "1.2", "50.00", "")
