"""A join file comes back as it was, or tells what is wrong with it."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from ticketlab.errors import TicketlabError
from ticketlab.federate.join_file import JoinFile, _digest, decode_join, encode_join
from ticketlab.federate.keys import client_key, make_authority

JOIN = JoinFile(
    "pi1",
    "lab.local:8443",
    make_authority().certificate.decode(),
    client_key().private.decode(),
    "2030-01-01T00:00:00+00:00",
)


def changed(**fields):
    """A join file with other fields and a digest that fits them."""
    content = {**json.loads(encode_join(JOIN)), **fields}
    content = {name: value for name, value in content.items() if name != "digest" and value is not None}
    return json.dumps({**content, "digest": _digest(content)}).encode()


def test_it_comes_back_as_it_was():
    assert decode_join(encode_join(JOIN)) == JOIN
    assert decode_join(changed()) == JOIN


def test_it_expires():
    end = datetime(2030, 1, 1, tzinfo=UTC)
    assert not JOIN.is_expired(end - timedelta(seconds=1)) and JOIN.is_expired(end)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a join file, or cut short"),
        (encode_join(JOIN)[:-40], "not a join file, or cut short"),
        (b"[1]", "not a join file; "),
        (b'{"kind": "other"}', "not a join file; "),
        (changed(version=2), "version 2 of join files, this ticketlab reads 1"),
        (changed(server=None, private_key=3), "lacks server, private_key"),
        (encode_join(replace(JOIN, server="evil:1")).replace(b"evil", b"lab2"), "was changed since it was made"),
        (encode_join(JOIN).replace(b"2030", b"2099"), "was changed since it was made"),
        (changed(name="../pi1"), "is no name of a client"),
        (changed(server="lab.local"), "is no server address"),
        (changed(private_key="x"), "its private_key cannot be read"),
        (changed(authority="x"), "its authority cannot be read"),
        (changed(expires="soon"), "its expires cannot be read"),
    ],
)
def test_what_is_wrong_is_told(content, said):
    with pytest.raises(TicketlabError, match=said):
        decode_join(content)
