"""Certificates as strict readers take them."""

import ssl
from datetime import UTC, datetime, timedelta

from serving import Served

from ticketlab.federate.address import read_address
from ticketlab.federate.keys import make_authority, server_certificate, valid_until
from ticketlab.federate.probe import look


async def forbid(scope, receive, send):
    await send({"type": "http.response.start", "status": 403, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def put(folder, pair):
    for name, content in (("server.crt", pair.public), ("server.key", pair.private)):
        (folder / name).write_bytes(content)
    return folder


def seen(folder, authority, hosts=("127.0.0.1",), now=None, host="127.0.0.1", trusted=None):
    """What a device sees of a gate with such a certificate."""
    with Served(forbid, put(folder, server_certificate(authority, hosts, now))) as url:
        address = read_address(f"{host}:{url.rpartition(':')[2]}")
        return look(address, (trusted or authority).certificate.decode(), 5)


def test_a_gate_of_the_lab_is_recognised_and_clocks_are_compared(tmp_path):
    found = seen(tmp_path, make_authority())
    assert found.problem is None and abs(found.ahead) < 2


def test_what_is_wrong_with_a_certificate_is_told_in_words(tmp_path):
    authority = make_authority()
    assert "is of another lab" in seen(tmp_path, authority, trusted=make_authority()).problem
    later = datetime.now(UTC) + timedelta(days=40)
    assert "set the clock" in seen(tmp_path, authority, now=later).problem
    earlier = datetime.now(UTC) - timedelta(days=1000)
    assert "has expired" in seen(tmp_path, authority, now=earlier).problem
    assert "is for other addresses" in seen(tmp_path, authority, hosts=("10.1.2.3",)).problem
    assert "is for other addresses" in seen(tmp_path, authority, host="localhost").problem


def test_certificates_pass_the_strict_checks_of_newer_pythons(tmp_path, monkeypatch):
    authority = make_authority()
    make = ssl.create_default_context

    def strict(**given):
        context = make(**given)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr("ticketlab.federate.probe.ssl.create_default_context", strict)
    assert seen(tmp_path, authority).problem is None


def test_an_authority_outlives_the_keys_that_it_stands_behind():
    left = valid_until(make_authority().certificate) - datetime.now(UTC)
    assert left > timedelta(days=3600)
