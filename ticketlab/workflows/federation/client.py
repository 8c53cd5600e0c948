"""What runs on a client, on a device in a fresh process for every message: receive, train, answer."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
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
from ticketlab.federate.messages import ARRAYS, EXTRA, METRICS, NEEDS_MASK, NETWORK, SECURE, TASK, blobs, blobs_of
from ticketlab.federate.rules import adaptive, fixed, personal  # noqa: F401  those that have a client's side
from ticketlab.federate.rules.rule import Reply, Work, works
from ticketlab.federate.tied import tie_app
from ticketlab.models.build import network_from
from ticketlab.models.compact import all_finite, same_shapes
from ticketlab.pruning.masks import masked
from ticketlab.recipe import FederateSection
from ticketlab.seeds import derive_seed

MEMORY, RESIDUAL = "ticket", "residual"
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


def where_secure(message: Message, context: Context, answer: Callable[[Message, Context], Message]) -> Message:
    """Messages of SecAgg+ get its answers, others the ordinary one."""
    if SECURE not in message.content.config_records:
        return answer(message, context)
    from ticketlab.federate.secure import answer_securely  # the older half of Flower takes long to load

    return answer_securely(message, context, answer)


@app.train(mods=[where_secure])
def train(message: Message, context: Context) -> Message:
    """One round; answers that it needs the mask where it does not have it."""
    tie_app()
    began = time.perf_counter()
    torch.set_num_threads(1)
    task = json.loads(str(message.content[TASK]["json"]))
    settings = FederateSection.model_validate(task["settings"])
    try:
        received = _receive(blobs_of(message.content)[NETWORK], context)
    except UnknownMask:
        return Message(RecordDict({TASK: ConfigRecord({NEEDS_MASK: True})}), reply_to=message)
    model = network_from(received.state, received.facts)
    _check(received, model.state_dict())
    own = examples_of(received.facts, settings, task, str(context.node_config.get("data", "")))
    before = judge(model, received.state, own.test)
    seed = derive_seed(settings.seed, "client", task["index"], task["round"])
    work = Work(model, received, own.train, own.validation, settings, task["rule"], seed)
    reply = works.find(task["work"])(work)
    network = _protected(reply.network, received, settings)
    parts = _answer(network, reply, received, settings, task["round"], context)
    metrics: dict[str, Any] = {"num-examples": len(own.train)}
    if settings.privacy is None or settings.privacy.kind != "local":
        after = judge(model, reply.network.state, own.test)
        metrics |= {"accuracy": before, "accuracy_after": after, "loss": reply.loss}
    metrics |= {"memory-mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    metrics |= {"seconds": time.perf_counter() - began}
    return Message(RecordDict({ARRAYS: blobs(parts), METRICS: MetricRecord(metrics)}), reply_to=message)


def _protected(network: Sparse, received: Sparse, settings: FederateSection) -> Sparse:
    """What may leave the client."""
    if settings.privacy is None:
        return network
    from ticketlab.federate.strategies import protect  # Flower's strategies take long to load

    return protect(network, received, settings.privacy)


def _receive(content: bytes, context: Context) -> Sparse:
    """The network that came; remembers its mask.

    Raises UnknownMask where it counts on a mask that is not remembered.
    """
    known = _kept(context, MEMORY)
    received = decode(content, known=known.mask if known else None)
    if known is None or mask_digest(known.mask) != mask_digest(received.mask):
        context.state[MEMORY] = ConfigRecord({NETWORK: content})  # as it came, for packing takes as long as an epoch
    return received


def _kept(context: Context, name: str) -> Sparse | None:
    if name not in context.state:
        return None
    return decode(bytes(context.state.config_records[name][NETWORK]))  # type: ignore[arg-type]


def _keep(context: Context, name: str, network: Sparse) -> None:
    context.state[name] = ConfigRecord({NETWORK: encode(network)})


def _check(received: Sparse, wanted: dict[str, torch.Tensor]) -> None:
    """Raise FormatError for a network that is not the one it says it is."""
    if not same_shapes(received.state, wanted):
        raise FormatError("the server's network has other layers than this client's")
    if not all_finite(received.state):
        raise FormatError("the server's network has numbers that are not finite")


def _answer(
    network: Sparse, reply: Reply, received: Sparse, settings: FederateSection, number: int, context: Context
) -> dict[str, bytes]:
    """The blobs of an answer; remembers a new mask, and what float16 cuts off where that is to be made good."""
    is_known = mask_digest(network.mask) == mask_digest(received.mask)
    left = _kept(context, RESIDUAL) if settings.error_feedback else None
    if left is not None:
        state = {name: value + left.state.get(name, 0) for name, value in network.state.items()}
        network = Sparse(network.mask, masked(state, network.mask), network.facts)
    told = Sparse(network.mask, network.state, {"round": number})
    content = encode(told, settings.precision, is_known=is_known)
    if settings.error_feedback:
        sent = decode(content, known=network.mask).state
        cut = {name: value - sent[name] for name, value in network.state.items() if value.is_floating_point()}
        _keep(context, RESIDUAL, Sparse({}, cut, {}))
    if not is_known:
        _keep(context, MEMORY, network)
    extra = {EXTRA: encode(reply.extra, settings.precision)} if reply.extra is not None else {}
    return {NETWORK: content, **extra}


def examples_of(facts: dict[str, Any], settings: FederateSection, task: Task, folder: str) -> Own:
    """This client's own examples: of its own folder, or its part of a data set that all know."""
    places = Places.default(Path(folder) if folder else None)
    seed = derive_seed(settings.seed, "holdout", task["index"])
    found = own_examples(places.root, facts) if places.root else None
    if found is not None:
        return _held_out(found, settings, seed, None)
    split_by = [facts["data"], facts["validation"], facts["split_seed"], facts.get("examples")]
    dealt_by = [settings.partition, task["clients"], settings.seed, settings.partition_options]
    shared = _shared(json.dumps([*split_by, *dealt_by]), places)
    mine = shared.examples.some(shared.parts[task["index"]])
    return _held_out(mine, settings, seed, _of_same_group(shared.test, mine))


@dataclass(frozen=True)
class Shared:
    """A data set that all clients of a federation know."""

    examples: Examples
    test: Examples
    parts: list[torch.Tensor]
    """Indices of each client's examples."""


# a device reads its data once for each message; where one process is many clients in turn, so would each of them
@lru_cache(maxsize=1)
def _shared(told: str, places: Places) -> Shared:
    """The data set and who has which part of it, both as `told` in JSON, on which alone they depend."""
    data, validation, split_seed, examples, partition, clients, seed, options = json.loads(told)
    splits = split(load_dataset(data, places), validation, split_seed, examples)
    parts = partitions.find(partition)(splits.of_clients, clients, seed, **options)
    return Shared(splits.of_clients, splits.test, parts)


def _of_same_group(test: Examples, mine: Examples) -> Examples | None:
    """Test examples of the person or hospital that all of a client's examples are of; None where there is no such."""
    if mine.groups is None or test.groups is None or len(mine.groups.unique()) != 1:
        return None
    same = (test.groups == mine.groups[0]).nonzero().flatten()
    return test.some(same) if len(same) else None


def _held_out(found: Examples, settings: FederateSection, seed: int, test: Examples | None) -> Own:
    """Examples to train on, to decide by, and to show accuracy on: of the share held out a half each, or all and
    `test`; where none are held out, those that it trains on."""
    order = permutation(len(found), seed)[: settings.examples_per_client]
    count = round(settings.holdout * len(order))
    judged, rest = order[:count], order[count:].sort().values
    if not len(rest):
        raise DataError(f"{len(order)} examples here are too few to hold {settings.holdout:g} of them out")
    train = found.some(rest)
    if test is not None:
        return Own(train, found.some(judged), test)
    decide, show = judged.tensor_split(2)
    return Own(train, found.some(decide), found.some(show) if len(show) else train)
