"""The only port that clients reach: forwards what a node may ask, over TLS, to a SuperLink that listens on loopback.

Flower serves starting runs, registering nodes and handing out task tokens on the port of its fleet calls, and asks
nobody there who he is. So nothing but the calls in `CALLS` goes through; those Flower checks by the client's key.

    python -m ticketlab.federate.gate LISTEN_HOST LISTEN_PORT UPSTREAM_HOST:PORT CERTIFICATE KEY AUTHORITY COUNTS
"""

from __future__ import annotations

import ssl
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from ticketlab.federate.traffic import Traffic

CALLS = frozenset(
    f"/v1/fleet/{call}"
    for call in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
"""What a registered node needs; registering and unregistering are the coordinator's."""
LARGEST = 16 << 20
"""Bytes of a request; Flower sends arrays in pieces of 5 MB."""
OK = 200
AT_ONCE = 256
"""Connections, of which a client has a few; more are answered with 503, which bounds what strangers can fill."""
PATIENCE = 60.0  # seconds for the SuperLink to answer
HOP_BY_HOP = frozenset({b"host", b"connection", b"content-length", b"transfer-encoding", b"keep-alive", b"upgrade"})

Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Mapping[str, Any], Receive, Send], Awaitable[None]]


def gate(upstream: httpx.AsyncClient, traffic: Traffic | None = None) -> App:
    """An ASGI program that forwards allowed calls to `upstream`, counts them, and answers everything else with 403."""

    async def serve(scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["method"] != "POST" or scope["path"] not in CALLS or scope["raw_path"] != scope["path"].encode():
            await _answer(send, 403)
            return
        body = await _body(receive)
        if body is None:
            await _answer(send, 413)
            return
        headers = [(name, value) for name, value in scope["headers"] if name.lower() not in HOP_BY_HOP]
        try:
            reply = await upstream.post(scope["path"], content=body, headers=headers)
        except httpx.HTTPError:
            await _answer(send, 503)
            return
        kept = [(name.lower(), value) for name, value in reply.headers.raw if name.lower() not in HOP_BY_HOP]
        if traffic is not None and reply.status_code == OK:  # others need not be who they say they are
            traffic.add(scope["headers"], body, kept, reply.content)
        await _answer(send, reply.status_code, kept, reply.content)

    return serve


async def _body(receive: Receive) -> bytes | None:
    """The whole request; None where it is too large to be one of Flower's."""
    body, more = bytearray(), True
    while more:
        event = await receive()
        body += event.get("body", b"")
        more = event.get("more_body", False)
        if len(body) > LARGEST:
            return None
    return bytes(body)


async def _answer(send: Send, status: int, headers: list[tuple[bytes, bytes]] | None = None, body: bytes = b"") -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers or []})
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    """Serve until told to stop."""
    host, port, upstream, certificate, key, authority, counts = sys.argv[1:]
    trusted = ssl.create_default_context(cafile=authority)
    # no proxy of the environment stands between the gate and loopback
    client = httpx.AsyncClient(base_url=f"https://{upstream}", verify=trusted, timeout=PATIENCE, trust_env=False)
    config = uvicorn.Config(
        gate(client, Traffic(Path(counts))),
        host=host,
        port=int(port),
        ssl_certfile=certificate,
        ssl_keyfile=key,
        lifespan="off",
        ws="none",
        log_level="warning",
        access_log=False,
        limit_concurrency=AT_ONCE,
    )
    uvicorn.Server(config).run()


if __name__ == "__main__":
    main()
