"""Clients get a key once; which of them a federation waits for, and where."""

import json
import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from ticketlab.errors import RunError, TicketlabError
from ticketlab.federate.join_file import decode_join
from ticketlab.runs.lab import LabStore
from ticketlab.workflows.enroll import door, enroll, expected, lab_authority, revoke, state_of


@pytest.fixture
def lab(tmp_path):
    """Enroll clients in a lab of its own."""

    def call(name, server="lab.local:8443", days=30, **more):
        return enroll(tmp_path / "runs", name, server, days, out=tmp_path / f"{name}.join", **more)

    call.runs = tmp_path / "runs"
    return call


def mode(path):
    return stat.S_IMODE(Path(path).stat().st_mode)


def test_one_file_holds_all_that_a_device_needs_and_the_lab_keeps_no_private_key(lab):
    client, path = lab("pi1")
    join = decode_join(path.read_bytes())
    assert (join.name, join.server, join.expires) == ("pi1", "lab.local:8443", client.expires)
    assert join.authority.encode() == lab_authority(lab.runs).certificate
    private = serialization.load_ssh_private_key(join.private_key.encode(), None)
    openssh = (serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    assert private.public_key().public_bytes(*openssh).decode() == client.public_key
    assert mode(path) == 0o600 and mode(lab.runs / "lab" / "authority.json") == 0o600
    kept = (lab.runs / "lab" / "clients" / "pi1.json").read_text()
    assert json.loads(kept)["public_key"] == client.public_key and "PRIVATE" not in kept


def test_an_enrolled_name_gets_a_new_key_only_when_asked_for(lab):
    first, path = lab("pi1")
    with pytest.raises(TicketlabError, match=r"'pi1' is enrolled already; --again makes a new key"):
        lab("pi1")
    assert decode_join(path.read_bytes()).expires == first.expires
    authority = lab_authority(lab.runs)
    second, _ = lab("pi1", again=True)
    assert second.public_key != first.public_key and lab_authority(lab.runs) == authority
    assert expected(lab.runs, ["pi1"])["pi1"].public_key == second.public_key


def test_a_file_of_another_lab_is_not_overwritten(lab, tmp_path):
    (tmp_path / "pi1.join").write_text("dear")
    with pytest.raises(TicketlabError, match=r"pi1\.join exists"):
        lab("pi1")
    assert (tmp_path / "pi1.join").read_text() == "dear"


def test_a_key_cannot_outlive_the_lab(lab):
    with pytest.raises(TicketlabError, match=r"certificate ends in 364\d days"):
        lab("pi1", days=5000)
    assert LabStore(lab.runs).clients() == []


def test_revoked_and_expired_clients_are_refused_with_the_way_out(lab):
    for name in ("pi1", "pi2", "pi3"):
        lab(name)
    revoke(lab.runs, "pi1")
    store = LabStore(lab.runs)
    store.write_client(replace(store.read_client("pi2"), expires="2020-01-01T00:00:00+00:00"))
    with pytest.raises(TicketlabError) as caught:
        expected(lab.runs, ["pi1", "pi2", "pi3"])
    first, second = str(caught.value).splitlines()
    assert "'pi1' is revoked" in first and "ticketlab client enroll pi1 --server lab.local:8443 --again" in first
    assert "'pi2' is expired since 2020-01-01" in second
    assert list(expected(lab.runs, ["pi3", "other"])) == ["pi3"]
    assert revoke(lab.runs, "pi1").revoked == store.read_client("pi1").revoked
    with pytest.raises(TicketlabError, match="'pi9' is not enrolled; did you mean 'pi"):
        revoke(lab.runs, "pi9")


def test_states(lab):
    client, _ = lab("pi1", days=1)
    now = datetime.now(UTC)
    assert state_of(client, now) == "enrolled" and state_of(client, now + timedelta(days=2)) == "expired"
    assert state_of(replace(client, revoked="2026-01-01T00:00:00+00:00"), now) == "revoked"


def test_the_gate_listens_where_clients_knock(lab):
    clients = [lab("pi1")[0], lab("pi2", "192.168.1.5:8443")[0]]
    found = door(lab.runs, clients)
    assert (found.host, found.port, found.local) == ("0.0.0.0", 8443, "127.0.0.1")
    assert found.names == ("localhost", "127.0.0.1", "lab.local", "192.168.1.5")
    one = door(lab.runs, clients, "192.168.1.5")
    assert (one.host, one.local) == ("192.168.1.5", "192.168.1.5")
    here, _ = lab("pi3", "127.0.0.1:9000")
    assert door(lab.runs, [here]).host == "127.0.0.1"
    with pytest.raises(TicketlabError, match=r"pi1 at lab\.local:8443, .*pi3 at 127\.0\.0\.1:9000"):
        door(lab.runs, [*clients, here])


def test_damage_is_told_and_no_second_authority_is_made_in_silence(lab):
    lab("pi1")
    (lab.runs / "lab" / "clients" / "pi1.json").write_text("{}")
    with pytest.raises(RunError, match=r"pi1\.json: damaged.*--again"):
        expected(lab.runs, ["pi1"])
    (lab.runs / "lab" / "authority.json").write_text("{")
    with pytest.raises(RunError, match=r"authority\.json: damaged"):
        lab("pi2")
    (lab.runs / "lab" / "authority.json").unlink()
    with pytest.raises(RunError, match="no authority"):
        lab_authority(lab.runs)
