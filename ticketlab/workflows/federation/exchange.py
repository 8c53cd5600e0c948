"""One round's messages: orders out, answers in, each judged; who did not answer, and why."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from ticketlab.codec import Sparse, decode, encode, mask_digest
from ticketlab.federate.messages import ARRAYS, EXTRA, METRICS, NEEDS_MASK, NETWORK, TASK, blobs, blobs_of, said
from ticketlab.federate.rules.rule import Answer, Order, Rule
from ticketlab.models.compact import all_finite, same_shapes

POLL = 0.25  # seconds between looks for answers
GRACE = 5.0
"""Seconds that a round waits on for clients that missed the round before, once all others have answered."""
HEARTBEAT = 10.0
"""Seconds after which who looks on is told again, though nothing is new."""
METRICS_WANTED = ("num-examples", "seconds", "memory-mib")
MOST_EXAMPLES = 10**9
FAR = 100.0
"""Times the network's own norm; an update beyond that is a fault, not training."""


@dataclass
class Outcome:
    """What became of one client in one round; bytes are of the messages' blobs."""

    name: str
    state: str = "offline"
    """ok, timeout, offline, or what went wrong; online or waiting until it is known."""
    bytes_down: int = 0
    bytes_up: int = 0
    wire_down: int | None = None
    """Bytes of Flower's requests and answers with their headers; what is sent while nothing is asked counts too."""
    wire_up: int | None = None
    seconds: float = 0.0
    """Of the client's own work."""
    examples: int = 0
    accuracy: float | None = None
    """Of the network that came, on the client's held-out examples."""
    accuracy_after: float | None = None
    """Of the client's own network after its training, on the same."""
    loss: float | None = None
    memory_mib: float | None = None
    """Peak of the client's process."""


@dataclass
class Session:
    """What lasts from round to round of one federation."""

    grid: Grid
    request: Mapping[str, Any]
    tell: Callable[[Sequence[Outcome]], None]
    """Called whenever something is known of a client."""
    holders: dict[str, str] = field(default_factory=dict)
    """Client → digest of the mask that it has."""
    suspects: set[str] = field(default_factory=set)
    """Clients that missed the last round, having not been suspects in it."""
    started: bool = False
    """Whether a round has been finished here."""
    counted: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Client → bytes up and down that went through the gate before this round."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the last round's record should tell of how it was gathered."""
    told_at: float = -math.inf
    """When something was told last."""

    def say(self, outcomes: Iterable[Outcome]) -> None:
        """Tell who looks on how the clients stand."""
        self.told_at = time.monotonic()
        self.tell(list(outcomes))

    def remind(self, outcomes: Iterable[Outcome]) -> None:
        """Tell it again, though nothing is new, where nothing was told for a while."""
        if time.monotonic() - self.told_at > HEARTBEAT:
            self.say(outcomes)


def states(outcomes: Iterable[Outcome]) -> str:
    """What became of each client, for errors."""
    return ", ".join(f"{outcome.name}: {outcome.state}" for outcome in outcomes)


def exchange(
    session: Session, rule: Rule, number: int, nodes: Mapping[str, int], names: Sequence[str]
) -> tuple[list[Answer], list[Outcome]]:
    """Give the named clients their orders and collect what comes in time and is sound, in the order of names.

    Args:
        nodes: Node of each client that is online.
        names: All clients of the round.
    """
    outcomes = {name: Outcome(name, "waiting" if name in nodes else "offline") for name in names}
    orders = {name: rule.order(number, name) for name in names if name in nodes}
    answers: dict[str, Answer] = {}
    least = max(1, session.request["min_clients"])
    end = time.monotonic() + session.request["round_timeout"]
    pending = _send(session, number, orders, nodes, outcomes, end)
    quiet_since = time.monotonic()
    session.say(outcomes.values())
    while pending and time.monotonic() < end:
        again: list[str] = []
        for reply in session.grid.pull_messages(list(pending)):
            quiet_since = time.monotonic()
            name = pending.pop(reply.metadata.reply_to_message_id)
            if reply.has_error():
                outcomes[name].state = said(reply.error.reason)
            elif _needs_mask(reply.content):
                session.holders.pop(name, None)
                again.append(name)
            else:
                answer = read_answer(reply.content, outcomes[name], orders[name], rule, number)
                if answer is not None:
                    answers[name] = answer
                    session.holders[name] = mask_digest(answer.network.mask)
            session.say(outcomes.values())
        pending |= _send(session, number, {name: orders[name] for name in again}, nodes, outcomes, end)
        session.remind(outcomes.values())
        only_suspects = set(pending.values()) <= session.suspects
        if pending and only_suspects and len(answers) >= least and time.monotonic() - quiet_since > GRACE:
            break
        if pending:
            time.sleep(POLL)
    for name in pending.values():
        outcomes[name].state = "timeout"
    # suspect for one round only: a client that is merely slow has its whole time in the next
    session.suspects = {name for name in names if outcomes[name].state != "ok"} - session.suspects
    return [answers[name] for name in names if name in answers], list(outcomes.values())


def _send(
    session: Session,
    number: int,
    orders: Mapping[str, Order],
    nodes: Mapping[str, int],
    outcomes: Mapping[str, Outcome],
    end: float,
) -> dict[str, str]:
    """Push orders; returns message → client. Networks that several clients get are packed once."""
    packed: dict[tuple[int, bool], bytes] = {}
    messages = []
    for name, order in orders.items():
        is_known = session.holders.get(name) == mask_digest(order.network.mask)
        content = _packed(packed, order.network, session.request, is_known)
        outcomes[name].bytes_down += len(content)
        record = order_record(session.request, number, name, order, content)
        seconds = max(end - time.monotonic(), 1.0)  # what nobody fetches dies with its round
        messages.append(Message(record, dst_node_id=nodes[name], message_type=MessageType.TRAIN, ttl=seconds))
    return dict(zip(session.grid.push_messages(messages), orders, strict=True)) if messages else {}


def order_record(request: Mapping[str, Any], number: int, name: str, order: Order, content: bytes) -> RecordDict:
    """A client's order as a message holds it, its network packed."""
    task = _task(request, number, name, order.task)
    return RecordDict({ARRAYS: blobs({NETWORK: content}), TASK: ConfigRecord({"json": json.dumps(task)})})


def _packed(
    packed: dict[tuple[int, bool], bytes], network: Sparse, request: Mapping[str, Any], is_known: bool
) -> bytes:
    key = (id(network), is_known)
    if key not in packed:
        packed[key] = encode(network, request["settings"]["precision"], is_known=is_known)
    return packed[key]


def _task(request: Mapping[str, Any], number: int, name: str, of_rule: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "settings": request["settings"],
        "work": request["work"],
        "rule": dict(of_rule),
        "round": number,
        "index": request["clients"].index(name),
        "clients": len(request["clients"]),
    }


def _needs_mask(content: RecordDict) -> bool:
    return TASK in content.config_records and bool(content.config_records[TASK].get(NEEDS_MASK, False))


def read_answer(content: RecordDict, outcome: Outcome, order: Order, rule: Rule, number: int) -> Answer | None:
    """A client's answer; None, and why in the outcome, where it is not one of this round, network and rule."""
    try:
        parts = blobs_of(content)
        outcome.bytes_up += sum(map(len, parts.values()))
        limit = 2 * sum(value.nbytes for value in order.network.state.values()) + (1 << 20)
        found = decode(parts[NETWORK], limit, known=order.network.mask)
        extra = decode(parts[EXTRA], limit) if EXTRA in parts else None
        read_metrics(content.metric_records[METRICS], outcome)
        wrong = _wrong(found, order.network, number, outcome.examples) or rule.accepts(outcome.name, found)
        outcome.state = wrong or _wrong_extra(extra, order.network) or "ok"
    except Exception as error:
        # whatever one client sends must not end the others' round
        outcome.state = said(f"unreadable answer: {error}")
    if outcome.state != "ok":
        return None
    # vectors of all values depend on the order of tensors, which is the client's own
    ordered = Sparse(found.mask, {name: found.state[name] for name in order.network.state}, found.facts)
    return Answer(outcome.name, ordered, outcome.examples, extra)


def read_metrics(metrics: Mapping[str, Any], outcome: Outcome) -> None:
    """Take a client's numbers; raises ValueError for one that is not finite, KeyError for one that is missing."""
    told = {name: float(metrics[name]) for name in METRICS_WANTED}
    told |= {name: float(metrics[name]) for name in ("accuracy", "accuracy_after", "loss") if name in metrics}
    bad = [name for name, value in told.items() if not math.isfinite(value)]
    if bad or told["num-examples"] > MOST_EXAMPLES:
        raise ValueError(f"{', '.join(bad) or 'num-examples'} is not a number that can be")
    outcome.examples, outcome.seconds = int(told["num-examples"]), told["seconds"]
    outcome.memory_mib = told["memory-mib"]
    outcome.accuracy, outcome.accuracy_after, outcome.loss = map(told.get, ("accuracy", "accuracy_after", "loss"))


def _wrong(found: Sparse, sent: Sparse, number: int, examples: int) -> str | None:
    """Why an answer is not used, whatever the rule."""
    if found.facts.get("round") != number:
        return f"an answer to round {found.facts.get('round')}"
    kinds = [{name: value.dtype for name, value in network.state.items()} for network in (found, sent)]
    if not same_shapes(found.state, sent.state) or kinds[0] != kinds[1]:
        return "another network"
    if not all_finite(found.state):
        return "numbers that are not finite"
    floats = {name: value.double() for name, value in sent.state.items() if value.is_floating_point()}
    moved = norm(found.state[name].double() - value for name, value in floats.items())
    whole = norm(floats.values())
    if moved > FAR * (whole + 1):
        return f"an update of {moved / (whole + 1):.0f} times the network's own size"
    return None if examples > 0 else "no examples"


def _wrong_extra(extra: Sparse | None, sent: Sparse) -> str | None:
    if extra is None:
        return None
    fits = same_shapes(extra.state, sent.mask)
    return None if fits and all_finite(extra.state) else "an addition that does not fit"


def norm(tensors: Iterable[Any]) -> float:
    """L2 norm of tensors together."""
    return float(sum(float(value.square().sum()) for value in tensors)) ** 0.5
