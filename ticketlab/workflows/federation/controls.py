"""What a federated ticket must be compared with: the server's data alone, dense networks, fresh weights.

The same rounds, clients, partition and seeds, trained in this process.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ticketlab.data.files import Places
from ticketlab.errors import Interrupted, Stop
from ticketlab.federate.direct import Direct
from ticketlab.runs.store import RunStore
from ticketlab.runs.tensorboard import FederationEvents
from ticketlab.workflows.federation.client import train
from ticketlab.workflows.federation.record import plain_bytes, ratios, read_rounds
from ticketlab.workflows.federation.server import FAILURE, federate, round_name
from ticketlab.workflows.progress import Notice
from ticketlab.workflows.ship import Shipment, shipment

ARMS: dict[str, tuple[bool, str]] = {
    "dense": (True, "rewound"),
    "dense, warm": (True, "trained"),
    "fresh weights": (False, "reinit"),
}
"""Control → whether it is of level 0 instead of the ticket's level, and its weights at the start."""


def controls_of(
    store: RunStore,
    given: Shipment,
    request: Mapping[str, Any],
    places: Places,
    should_stop: Stop = lambda: False,
) -> Iterator[Notice | dict[str, Any]]:
    """Each control's record, read where it is finished; none for a network whose run has no dense one of its sizes.

    Raises Interrupted between rounds of different controls when asked to stop.
    """
    if not given.has_dense:
        yield Notice(f"no controls: {given.network.name} has no dense network of its own sizes in its run")
        return
    logging.getLogger("flwr").setLevel(logging.WARNING)  # its strategies tell of every step
    dense = len(plain_bytes(given.network.model.state_dict()))
    alone = shipment(given.store, places, 0, request["replicate"])
    for name, found in (("server data alone, dense", alone), ("server data alone, ticket", given)):
        yield {"control": name, "test_accuracy": found.test_accuracy, "rounds": [], "ratio": None}
    for name, (is_dense, start) in ARMS.items():
        if should_stop():
            raise Interrupted("stopped; the same command goes on with the controls")
        part = store.part(f"controls/{name.replace(', ', '_').replace(' ', '_')}")
        told = {**request, "start": start, "level": 0 if is_dense else request["level"], "work": "train"}
        told |= {"simulated": True, "settings": _plain(request["settings"])}
        if not part.has_result(round_name(request["settings"]["rounds"])):
            yield Notice(f"control: {name}")
            part.forget(FAILURE)
            config = {"data": request["data"] or ""}
            federate(Direct(len(request["clients"]), train, config), part, told)
        yield _record(name, part, read_rounds(part, request["settings"]["rounds"]), dense)


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a control: plain averages of all weights under one mask."""
    of_rule: dict[str, Any] = {"rule": "fixed", "options": {}, "privacy": None, "aggregate": "mean", "start": None}
    of_rule |= {"server_lr": 1.0, "server_momentum": 0.0}
    of_rule |= {"secure": False}
    return {**settings, **of_rule}


def _record(name: str, part: RunStore, rounds: Sequence[Mapping[str, Any]], dense: int) -> dict[str, Any]:
    with FederationEvents(part.path) as events:
        for one in rounds:
            events.round(one)
    return {
        "control": name,
        "test_accuracy": rounds[-1]["test_accuracy"],
        "rounds": [one["test_accuracy"] for one in rounds],
        "ratio": ratios(rounds, dense),
    }
