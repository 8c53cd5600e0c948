"""The coordinator's program: hand the ticket to the clients by name, gather, average, evaluate, keep; repeat."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from ticketlab.codec import Sparse, decode, encode
from ticketlab.data.files import Places
from ticketlab.errors import FailedRun, FormatError
from ticketlab.federate.averaging import weighted_mean
from ticketlab.models.compact import all_finite, same_shapes
from ticketlab.runs.store import RunStore, find_run
from ticketlab.workflows.federate_client import ARRAYS, METRICS, NEEDS_MASK, TASK, arrays, blob_of
from ticketlab.workflows.fuse import accuracies
from ticketlab.workflows.ship import shipment

POLL = 0.25  # seconds between looks for answers
REQUEST, FAILURE = "federation.json", "failure.json"

app = ServerApp()


@dataclass
class Outcome:
    """What became of one client in one round; bytes are of the messages' blobs."""

    name: str
    state: str = "timeout"
    """ok, timeout, or what went wrong."""
    bytes_down: int = 0
    bytes_up: int = 0
    seconds: float = 0.0
    """Of the client's own work."""
    examples: int = 0
    accuracy: float | None = None
    """Of the network that came, on the client's own examples."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds that are missing; what failed is kept where the coordinator looks."""
    store = RunStore(Path(str(context.run_config["folder"])))
    try:
        federate(grid, store, store.read_result(REQUEST))
    except Exception as error:
        store.write_result(FAILURE, {"error": f"{type(error).__name__}: {error}"})
        raise


def federate(grid: Grid, store: RunStore, request: Mapping[str, Any]) -> None:
    """Rounds from the first one that is not finished."""
    torch.set_num_threads(1)
    places = Places(Path(request["data"]) if request["data"] else None, Places.default().cache, may_download=False)
    given = shipment(find_run(Path(request["runs"]), request["source"]), places, request["level"], request["replicate"])
    network = Sparse(given.network.mask, dict(given.network.model.state_dict()), dict(given.network.facts))
    holders: set[str] = set()
    for number in range(1, request["rounds"] + 1):
        if store.has_result(round_name(number)):
            network = Sparse(network.mask, store.read_state(number), network.facts)
            continue
        began = time.perf_counter()
        online = _wait(grid, request)
        states, examples, outcomes = _gather(grid, request, number, network, online, holders)
        if len(states) < request["min_clients"]:
            said = ", ".join(f"{outcome.name}: {outcome.state}" for outcome in outcomes)
            raise FailedRun(
                f"round {number}: {len(states)} of {request['min_clients']} needed clients answered ({said})"
            )
        network = Sparse(network.mask, weighted_mean(states, examples), network.facts)
        given.network.model.load_state_dict(network.state)
        record = {
            "round": number,
            **accuracies(given.network.model, given.splits),
            "seconds": round(time.perf_counter() - began, 3),
            "clients": [asdict(outcome) for outcome in outcomes],
        }
        store.write_state(number, network.state)
        store.write_result(round_name(number), record)


def round_name(number: int) -> str:
    """File of a finished round."""
    return f"round_{number}.json"


def _wait(grid: Grid, request: Mapping[str, Any]) -> dict[str, int]:
    """Clients of this federation that are online, by name; waits for all, and after the deadline for enough."""
    end = time.monotonic() + request["join_timeout"]
    while True:
        nodes = {node.name: node.node_id for node in grid.get_nodes() if node.status == "online"}
        online = {name: nodes[name] for name in request["clients"] if name in nodes}
        if len(online) == len(request["clients"]):
            return online
        if time.monotonic() > end:
            if len(online) >= request["min_clients"]:
                return online
            missing = ", ".join(name for name in request["clients"] if name not in online)
            raise FailedRun(f"not online within {request['join_timeout']:g} s: {missing}")
        time.sleep(POLL)


def _gather(
    grid: Grid,
    request: Mapping[str, Any],
    number: int,
    network: Sparse,
    online: Mapping[str, int],
    holders: set[str],
) -> tuple[list[dict[str, torch.Tensor]], list[int], list[Outcome]]:
    """Send the round to every client and collect the answers that come in time and are sound."""
    outcomes = {name: Outcome(name, "timeout" if name in online else "offline") for name in request["clients"]}
    blobs: dict[bool, bytes] = {}
    end = time.monotonic() + request["round_timeout"]
    pending: dict[str, str] = {}

    def send(names: Iterable[str]) -> None:
        chosen = list(names)
        messages = []
        for name in chosen:
            is_known = name in holders
            if is_known not in blobs:
                blobs[is_known] = encode(network, request["precision"], is_known=is_known)
            blob = blobs[is_known]
            outcomes[name].bytes_down += len(blob)
            messages.append(_message(request, number, name, online[name], blob, end - time.monotonic()))
        pending.update(zip(grid.push_messages(messages), chosen, strict=True))

    send(online)
    states: dict[str, dict[str, torch.Tensor]] = {}
    while pending and time.monotonic() < end:
        for reply in grid.pull_messages(list(pending)):
            name = pending.pop(reply.metadata.reply_to_message_id)
            if reply.has_error():
                outcomes[name].state = str(reply.error.reason).strip().splitlines()[-1]
                continue
            if TASK in reply.content and reply.content.config_records[TASK][NEEDS_MASK]:
                holders.discard(name)
                send([name])
                continue
            state = read_answer(reply.content, outcomes[name], network, number)
            if state is not None:
                states[name] = state
                holders.add(name)
        time.sleep(POLL)
    answered = [name for name in request["clients"] if name in states]
    return [states[name] for name in answered], [outcomes[name].examples for name in answered], list(outcomes.values())


def _message(request: Mapping[str, Any], number: int, name: str, node: int, blob: bytes, seconds: float) -> Message:
    """What a client gets; it dies with its round where nobody fetches it."""
    kept = ("train", "epochs", "seed", "partition", "partition_options", "precision")
    index = request["clients"].index(name)
    task = {**{key: request[key] for key in kept}, "round": number, "index": index, "clients": len(request["clients"])}
    content = RecordDict({ARRAYS: arrays(blob), TASK: ConfigRecord({"json": json.dumps(task)})})
    return Message(content, dst_node_id=node, message_type=MessageType.TRAIN, ttl=max(seconds, 1.0))


def read_answer(answer: RecordDict, outcome: Outcome, network: Sparse, number: int) -> dict[str, torch.Tensor] | None:
    """A client's new state; None, and why in the outcome, where it is not one of this round and this network."""
    try:
        content = blob_of(answer)
        outcome.bytes_up += len(content)
        found = decode(content, known=network.mask)
        metrics = answer.metric_records[METRICS]
        outcome.examples, outcome.seconds = int(metrics["num-examples"]), float(metrics["seconds"])  # type: ignore[arg-type]
        outcome.accuracy = float(metrics["accuracy"])  # type: ignore[arg-type]
        outcome.state = _wrong(found, network, number, outcome.examples) or "ok"
    except (FormatError, KeyError, ValueError, TypeError) as error:
        outcome.state = f"unreadable answer: {error}"
    return dict(found.state) if outcome.state == "ok" else None


def _wrong(found: Sparse, network: Sparse, number: int, examples: int) -> str | None:
    """Why an answer is not used."""
    if found.facts.get("round") != number:
        return f"an answer to round {found.facts.get('round')}"
    if not same_shapes(found.state, network.state):
        return "another network"
    if not all_finite(found.state):
        return "numbers that are not finite"
    return None if examples > 0 else "no examples"
