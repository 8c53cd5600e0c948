"""The gate with real TLS on loopback: what goes through, and what does not."""

import ssl

import httpx
import pytest
from serving import Served

from ticketlab.federate.gate import CALLS, LARGEST, gate
from ticketlab.federate.keys import make_authority, server_certificate
from ticketlab.federate.processes import free_port


def unkept(url, trusted):
    """A client without connections that would outlive the test."""
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=url, verify=trusted, trust_env=False, limits=limits)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    authority = make_authority()
    pair = server_certificate(authority, ["localhost", "127.0.0.1"])
    for name, content in (("ca.crt", authority.certificate), ("server.crt", pair.public), ("server.key", pair.private)):
        (folder / name).write_bytes(content)
    (folder / "foreign.crt").write_bytes(make_authority().certificate)
    return folder


@pytest.fixture(scope="module")
def doors(files):
    """A SuperLink's stand-in that says what it was asked, and the gate before it."""

    async def superlink(scope, receive, send):
        body, more = b"", True
        while more:
            event = await receive()
            body, more = body + event.get("body", b""), event.get("more_body", False)
        seen = dict(scope["headers"])
        answer = b" ".join([scope["path"].encode(), str(len(body)).encode(), seen.get(b"x-signed", b"unsigned")])
        headers = [(b"x-answered", b"yes"), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 207, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    trusted = ssl.create_default_context(cafile=files / "ca.crt")
    with Served(superlink, files) as inner:
        client = unkept(inner, trusted)
        with Served(gate(client), files) as outer:
            yield inner, outer, trusted


def ask(doors, method, path, **more):
    with httpx.Client(base_url=doors[1], verify=doors[2], trust_env=False) as client:
        return client.request(method, path, **more)


@pytest.mark.parametrize("path", sorted(CALLS))
def test_a_nodes_calls_go_through_with_headers_and_status(doors, path):
    reply = ask(doors, "POST", path, content=b"12345", headers={"x-signed": "by-pi1"})
    assert reply.status_code == 207 and reply.headers["x-answered"] == "yes"
    assert reply.content == f"{path} 5 by-pi1".encode()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/control/start-run"),
        ("POST", "/v1/control/register-node"),
        ("POST", "/v1/control/stop-run"),
        ("POST", "/v1/runtime/acquire-task"),
        ("POST", "/v1/fleet/register-node"),
        ("POST", "/v1/fleet/unregister-node"),
        ("GET", "/v1/fleet/pull-messages"),
        ("GET", "/openapi.json"),
        ("POST", "/v1/fleet/../control/start-run"),
        ("POST", "/v1/fleet/%2e%2e/control/start-run"),
        ("POST", "/v1/fleet/pull-messages/"),
        ("POST", "//v1/fleet/pull-messages"),
        ("POST", "/v1/fleet/pull%2dmessages"),
        ("POST", "/V1/FLEET/PULL-MESSAGES"),
        ("POST", "/"),
    ],
)
def test_everything_else_is_refused(doors, method, path):
    assert ask(doors, method, path, content=b"x" if method == "POST" else None).status_code == 403


def test_a_request_that_is_too_large_is_refused(doors):
    assert ask(doors, "POST", "/v1/fleet/push-object", content=b"0" * (LARGEST + 1)).status_code == 413


def test_plain_text_and_foreign_authorities_do_not_get_in(doors, files):
    with pytest.raises(httpx.HTTPError):
        httpx.post(doors[1].replace("https", "http") + "/v1/fleet/pull-messages", content=b"", trust_env=False)
    foreign = ssl.create_default_context(cafile=files / "foreign.crt")
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        httpx.post(doors[1] + "/v1/fleet/pull-messages", content=b"", verify=foreign, trust_env=False)


def test_a_superlink_that_is_away_is_told_as_such(files):
    trusted = ssl.create_default_context(cafile=files / "ca.crt")
    nobody = unkept(f"https://127.0.0.1:{free_port()}", trusted)
    with Served(gate(nobody), files) as outer:
        reply = httpx.post(outer + "/v1/fleet/pull-messages", content=b"", verify=trusted, trust_env=False)
        assert reply.status_code == 503
