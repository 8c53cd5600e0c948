"""A round by Flower's SecAgg+: four messages a client, of which the server learns the weighted mean and no answer."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.common import FitIns, FitRes, Parameters, Scalar, parameters_to_ndarrays
from flwr.server import LegacyContext
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
from flwr.serverapp import Grid

from ticketlab.codec import Sparse, encode
from ticketlab.errors import FailedRun
from ticketlab.federate.messages import said
from ticketlab.federate.rules.rule import Answer, Rule
from ticketlab.federate.secure import COLLECT, CONFIGS, STAGE, UNMASK, Sum, metrics_of, sum_of
from ticketlab.federate.strategies import from_vector, to_vector
from ticketlab.recipe import FederateSection
from ticketlab.workflows.federation.exchange import POLL, Outcome, Session, order_record, read_metrics, states

ALL = "all together"
"""Whom the one answer of a round is from."""

EMPTY = Parameters([], "numpy.ndarray")


class LostEarlyError(Exception):
    """A client was lost before its keys were shared, which Flower's workflow does not get over."""


def exchange_securely(
    session: Session, rule: Rule, number: int, nodes: Mapping[str, int], names: Sequence[str]
) -> tuple[list[Answer], list[Outcome]]:
    """One answer, the mean of the named clients' networks, weighted by examples; and what became of each client.

    Clients that are lost before they share keys are left out, and the others begin again. Raises FailedRun where
    fewer are left than can hide each other or open the sum.
    """
    outcomes = {name: Outcome(name, "waiting" if name in nodes else "offline") for name in names}
    order = rule.order(number, names[0])
    content = encode(order.network)
    settings = FederateSection.model_validate(session.request["settings"])
    while True:
        there = {nodes[name]: name for name, outcome in outcomes.items() if outcome.state == "waiting"}
        try:
            how = sum_of(order.network, len(there), session.request["most_examples"], settings.privacy)
        except FailedRun as error:
            raise FailedRun(f"round {number}: {error} ({states(outcomes.values())})") from error
        records = {node: order_record(session.request, number, name, order, content) for node, name in there.items()}
        line = Line(session, there, records, outcomes, max(how.threshold, session.request["min_clients"]), number)
        try:
            strategy = Listening(there)
            how.workflow()(cast(Grid, line), _context(strategy))
        except LostEarlyError:
            continue
        if strategy.mean is None:
            raise FailedRun(f"round {number}: too few clients were left to open the sum ({states(outcomes.values())})")
        network = _network(strategy.mean, order.network, how)
        for proxy, _ in strategy.results:
            outcomes[there[proxy.node_id]].state = "ok"  # even of a client that was lost after its vector came
        examples = sum(outcome.examples for outcome in outcomes.values() if outcome.state == "ok")
        weights = examples if settings.privacy is None else len(strategy.results)
        session.facts = {"secure": _facts(how, len(strategy.results), weights)}
        session.say(outcomes.values())
        return [Answer(ALL, network, examples)], list(outcomes.values())


@dataclass
class Line:
    """What Flower's workflow talks through: adds orders, keeps time, and tells what becomes of each client."""

    session: Session
    there: Mapping[int, str]
    """Node → client."""
    records: Mapping[int, RecordDict]
    """Node → order, which goes with the message that asks for the vector."""
    outcomes: Mapping[str, Outcome]
    needed: int
    """Vectors without which the sum is not opened."""
    number: int

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Answers to one of the four messages, those that come in time."""
        sent = list(messages)
        stage = str(sent[0].content.config_records[CONFIGS][STAGE]) if sent else UNMASK
        if stage == UNMASK and len(sent) < self.needed:
            said = f"{len(sent)} of {self.needed} needed clients answered"
            raise FailedRun(f"round {self.number}: {said} ({states(self.outcomes.values())})")
        found = self._answers(sent, stage)
        if stage not in (COLLECT, UNMASK) and len(found) < len(sent):
            raise LostEarlyError
        return found

    def _answers(self, sent: Sequence[Message], stage: str) -> list[Message]:
        """Those that can be used."""
        patience = self.session.request["round_timeout"]
        for message in sent:
            name = self.there[message.metadata.dst_node_id]
            if stage == COLLECT:
                message.content.update(self.records[message.metadata.dst_node_id])
            message.metadata.ttl = patience  # what nobody fetches in time is of no use
            self.outcomes[name].bytes_down += _size(message.content)
        names = [self.there[message.metadata.dst_node_id] for message in sent]
        pending = dict(zip(self.session.grid.push_messages(sent), names, strict=True))
        found: list[Message] = []
        end = time.monotonic() + patience
        self.session.say(self.outcomes.values())
        while pending and time.monotonic() < end:
            new = list(self.session.grid.pull_messages(list(pending)))
            for reply in new:
                outcome = self.outcomes[pending.pop(reply.metadata.reply_to_message_id)]
                if _accept(reply, stage, outcome):
                    found.append(reply)
            if new:
                self.session.say(self.outcomes.values())
            elif pending:
                self.session.remind(self.outcomes.values())
                time.sleep(POLL)
        for name in pending.values():
            self.outcomes[name].state = "timeout"
        return found


def _accept(reply: Message, stage: str, outcome: Outcome) -> bool:
    """Note what a reply tells of its client; whether the reply can be used."""
    if reply.has_error():
        outcome.state = said(reply.error.reason)
        return False
    outcome.bytes_up += _size(reply.content)
    if stage == COLLECT:
        try:
            read_metrics(metrics_of(reply.content), outcome)
        except Exception as error:
            # whatever one client sends must not end the others' round
            outcome.state = said(f"unreadable answer: {error}")
            return False
    return True


class Listening(FedAvg):
    """The strategy in which Flower's workflow leaves the mean; it asks all clients of the round."""

    def __init__(self, there: Mapping[int, str]) -> None:
        super().__init__()
        self.there = there
        self.mean: np.ndarray[Any, Any] | None = None
        self.results: list[tuple[ClientProxy, FitRes]] = []

    def configure_fit(self, server_round: int, parameters: Parameters, client_manager: object) -> Any:
        """Every client; what it is to do goes with a message of ours."""
        return [(SimpleNamespace(node_id=node), FitIns(EMPTY, {})) for node in self.there]

    def aggregate_fit(
        self, server_round: int, results: Any, failures: Any
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """Flower calls this once the sum is open, and not at all where it is not."""
        self.results = list(results)
        if self.results:
            (self.mean,) = parameters_to_ndarrays(self.results[0][1].parameters)
        return None, {}


def _context(strategy: Listening) -> LegacyContext:
    state = RecordDict({MAIN_PARAMS_RECORD: ArrayRecord(), MAIN_CONFIGS_RECORD: ConfigRecord({Key.CURRENT_ROUND: 1})})
    plain = Context(run_id=0, node_id=0, node_config={}, state=state, run_config={})
    return LegacyContext(plain, strategy=strategy)


def _network(mean: np.ndarray[Any, Any], like: Sparse, how: Sum) -> Sparse:
    """The mean as a network; whole numbers, such as batch counters, stay as they were.

    Raises FailedRun where it cannot be one.
    """
    fits = mean.shape == to_vector(like).shape and bool(np.isfinite(mean).all())
    if not fits or float(np.abs(mean).max(initial=0)) > how.span * 1.001:
        raise FailedRun("the clients' sum is no network: one of them sent something else than its values")
    return Sparse(like.mask, from_vector(mean.astype(np.float32), like), like.facts)


def _facts(how: Sum, summed: int, weights: int) -> dict[str, Any]:
    return {
        "clients": how.clients,
        "summed": summed,
        "threshold": how.threshold,
        "values_up_to": how.span,
        "error_below": how.error(summed, weights),
    }


def _size(content: RecordDict) -> int:
    """Bytes of a message's values; Flower's own count refuses empty texts, of which the workflow sends one."""
    arrays = [array.data for record in content.array_records.values() for array in record.values()]
    settings = [value for record in content.config_records.values() for value in record.values()]
    numbers = [value for record in content.metric_records.values() for value in record.values()]
    return sum(map(_length, [*arrays, *settings, *numbers]))


def _length(value: object) -> int:
    if isinstance(value, list):
        return sum(map(_length, value))
    return len(value) if isinstance(value, (bytes, str)) else 8
