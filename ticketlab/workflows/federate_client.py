"""What runs on a client, in a fresh process for every message: receive, train, answer."""

from __future__ import annotations

import json
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from ticketlab.codec import Sparse, decode, encode, mask_digest
from ticketlab.data.batches import Examples, permutation, split
from ticketlab.data.files import Places
from ticketlab.data.own import own_examples
from ticketlab.data.partition import partitions
from ticketlab.data.sources import load_dataset
from ticketlab.errors import DataError, FormatError, UnknownMask
from ticketlab.federate.local import judge
from ticketlab.federate.messages import ARRAYS, EXTRA, METRICS, NEEDS_MASK, NETWORK, ORIGIN, TASK, blobs, blobs_of
from ticketlab.federate.rules import adaptive, early_bird, fixed, personal, sign_flip, submodels  # noqa: F401
from ticketlab.federate.rules.rule import Reply, Work, works
from ticketlab.federate.strategies import protect
from ticketlab.models.build import network_from
from ticketlab.models.compact import all_finite, same_shapes
from ticketlab.pruning.masks import masked
from ticketlab.recipe import FederateSection
from ticketlab.seeds import derive_seed

MEMORY, RESIDUAL, LAST = "ticket", "residual", "last"
"""What a client remembers from message to message, until its SuperNode is started anew."""

Task = dict[str, Any]

app = ClientApp()


@dataclass(frozen=True)
class Own:
    """A client's own examples."""

    train: Examples
    validation: Examples
    """For decisions while training."""
    test: Examples
    """For the accuracy that is shown."""


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round; answers that it needs the mask where it does not have it."""
    began = time.perf_counter()
    torch.set_num_threads(1)
    task = json.loads(str(message.content[TASK]["json"]))
    settings = FederateSection.model_validate_json(json.dumps(task["settings"]))
    try:
        received, origin, last = _receive(blobs_of(message.content), context)
    except UnknownMask:
        return Message(RecordDict({TASK: ConfigRecord({NEEDS_MASK: True})}), reply_to=message)
    model = network_from(received.state, received.facts)
    _check(received, model.state_dict())
    own = examples_of(received.facts, settings, task, str(context.node_config.get("data", "")))
    before = judge(model, received.state, own.test)
    seed = derive_seed(settings.seed, "client", task["index"], task["round"])
    work = Work(model, received, origin, last, own.train, own.validation, settings, task["rule"], seed)
    reply = works.find(task["work"])(work)
    network = protect(reply.network, received, settings.privacy) if settings.privacy else reply.network
    parts = _answer(network, reply, received, settings, task, context)
    metrics: dict[str, Any] = {"num-examples": len(own.train)}
    if settings.privacy is None or settings.privacy.kind != "local":
        after = judge(model, reply.network.state, own.test)
        metrics |= {"accuracy": before, "accuracy_after": after, "loss": reply.loss}
    metrics |= {"memory-mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    metrics |= {"seconds": time.perf_counter() - began}
    return Message(RecordDict({ARRAYS: blobs(parts), METRICS: MetricRecord(metrics)}), reply_to=message)


def _receive(parts: dict[str, bytes], context: Context) -> tuple[Sparse, Sparse | None, Sparse | None]:
    """The network and the origin, from the message or from memory, and the client's own last one; remembers them.

    Raises UnknownMask where the message counts on what is not remembered.
    """
    kept: dict[str, Any] = dict(context.state.config_records[MEMORY]) if MEMORY in context.state else {}
    known = decode(bytes(kept[NETWORK])).mask if NETWORK in kept else None
    received = decode(parts[NETWORK], known=known)
    if known is None or mask_digest(known) != mask_digest(received.mask):
        kept[NETWORK] = encode(received)
    if ORIGIN in parts:
        kept[ORIGIN] = parts[ORIGIN] or parts[NETWORK]
    context.state[MEMORY] = ConfigRecord(kept)
    origin, last = (decode(bytes(kept[name])) if name in kept else None for name in (ORIGIN, LAST))
    return received, origin, last


def _check(received: Sparse, wanted: dict[str, torch.Tensor]) -> None:
    """Raise FormatError for a network that is not the one it says it is."""
    if not same_shapes(received.state, wanted):
        raise FormatError("the server's network has other layers than this client's")
    if not all_finite(received.state):
        raise FormatError("the server's network has numbers that are not finite")


def _answer(
    network: Sparse, reply: Reply, received: Sparse, settings: FederateSection, task: Task, context: Context
) -> dict[str, bytes]:
    """The blobs of an answer; remembers a new mask, and what float16 cuts off where that is to be made good."""
    is_known = mask_digest(network.mask) == mask_digest(received.mask)
    if settings.error_feedback and RESIDUAL in context.state:
        left = decode(bytes(context.state.config_records[RESIDUAL][NETWORK])).state  # type: ignore[arg-type]
        state = {name: value + left[name] if name in left else value for name, value in network.state.items()}
        network = Sparse(network.mask, masked(state, network.mask), network.facts)
    content = encode(
        Sparse(network.mask, network.state, {"round": task["round"]}), settings.precision, is_known=is_known
    )
    if settings.error_feedback:
        sent = decode(content, known=network.mask).state
        cut = {n: value - sent[n] for n, value in network.state.items() if value.is_floating_point()}
        context.state[RESIDUAL] = ConfigRecord({NETWORK: encode(Sparse({}, cut, {}))})
    kept: dict[str, Any] = dict(context.state.config_records[MEMORY])
    if not is_known:
        kept[NETWORK] = encode(network)
    if "last" in works.needs(task["work"]):
        kept[LAST] = encode(reply.network)
    context.state[MEMORY] = ConfigRecord(kept)
    parts = {NETWORK: content}
    if reply.extra is not None:
        parts[EXTRA] = encode(reply.extra, settings.precision)
    return parts


def examples_of(facts: dict[str, Any], settings: FederateSection, task: Task, folder: str) -> Own:
    """This client's own examples: of its own folder, or its part of a data set that all know."""
    places = Places.default(Path(folder) if folder else None)
    found = own_examples(places.root, facts) if places.root else None
    test: Examples | None = None
    if found is None:
        splits = split(
            load_dataset(facts["data"], places), facts["validation"], facts["split_seed"], facts.get("examples")
        )
        shared = splits.of_clients
        make = partitions.find(settings.partition)
        parts = make(shared.labels, task["clients"], settings.seed, **settings.partition_options)
        found = shared.some(parts[task["index"]])
    return _held_out(found, settings, derive_seed(settings.seed, "holdout", task["index"]), test)


def _held_out(found: Examples, settings: FederateSection, seed: int, test: Examples | None) -> Own:
    count = round(settings.holdout * len(found))
    order = permutation(len(found), seed)
    judged, rest = order[:count], order[count:].sort().values
    if not len(rest):
        raise DataError(f"{len(found)} examples here are too few to hold {settings.holdout:g} of them out")
    train = found.some(rest)
    validation, shown = judged.tensor_split(2)
    if test is None:
        test = found.some(shown) if len(shown) else train
    return Own(train, found.some(validation), test)
