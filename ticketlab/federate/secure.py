"""Flower's SecAgg+ on the vector of surviving values: its numbers, and what a client adds to the sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, RECORD_KEY_STATE, Key, Stage
from flwr.compat.common.recorddict_compat import fitres_to_recorddict, recorddict_to_fitres
from flwr.server.workflow import SecAggPlusWorkflow

from ticketlab.codec import Sparse, decode
from ticketlab.errors import FailedRun
from ticketlab.federate.messages import METRICS, NETWORK, blobs_of
from ticketlab.federate.strategies import to_vector
from ticketlab.recipe import SECURE_CLIENTS, PrivacySection

CONFIGS, STAGE = RECORD_KEY_CONFIGS, Key.STAGE
"""Record of a message of the protocol, and where it says which of the four it is."""
COLLECT, UNMASK = Stage.COLLECT_MASKED_VECTORS, Stage.UNMASK

MODULUS = 1 << 32
"""Sums are taken modulo this; Flower documents no larger one."""
FINEST = 1 << 30  # Flower rounds values to int32, and allows powers of two
MARGIN = 16.0
"""How many times the network's largest value (1 at least) a client's value may be."""
SIGMAS = 10.0


@dataclass(frozen=True)
class Sum:
    """How so many clients' vectors become integers that can be summed."""

    clients: int
    most_examples: int
    """Weight of a client that has them all; no client may have more."""
    span: float
    """Largest size of a value that can be summed."""

    @property
    def threshold(self) -> int:
        """Clients that must last to the end: more than half."""
        return self.clients // 2 + 1

    @property
    def levels(self) -> int:
        """Integers that a value can become; so many that the largest sum stays below the modulus."""
        return min(FINEST, 1 << math.floor(math.log2((MODULUS - 1) / self.clients)))

    def error(self, summed: int, examples: int) -> float:
        """Bound of the mean's error, of each value: every client's is rounded by less than one level."""
        return summed * (2 * self.span / self.levels) * self.most_examples / examples

    def workflow(self) -> SecAggPlusWorkflow:
        """Flower's, in which every client shares its keys with every other."""
        return SecAggPlusWorkflow(
            self.clients,
            self.threshold,
            max_weight=float(self.most_examples),
            clipping_range=self.span,
            quantization_range=self.levels,
            modulus_range=MODULUS,
        )


def sum_of(network: Sparse, clients: int, most_examples: int, privacy: PrivacySection | None) -> Sum:
    """The numbers for a round that starts from a network; raises FailedRun for too few clients to hide among."""
    if clients < SECURE_CLIENTS:
        raise FailedRun(f"secure aggregation hides a client among {SECURE_CLIENTS} at least; {clients} are left")
    span = MARGIN * max(1.0, float(np.abs(to_vector(network)).max(initial=0)))
    if privacy is not None:
        span += SIGMAS * 2 * privacy.clip * math.sqrt(2 * math.log(1.25 / privacy.delta)) / privacy.epsilon
        most_examples = 1  # under privacy all count the same
    return Sum(clients, most_examples, span)


def answer_securely(message: Message, context: Context, answer: Callable[[Message, Context], Message]) -> Message:
    """What a client answers to a message of SecAgg+."""
    return secaggplus_mod(message, context, lambda asked, own: _summand(asked, answer(asked, own), own))


def _summand(asked: Message, answer: Message, context: Context) -> Message:
    """An ordinary answer as SecAgg+ wants it, which masks the values before they leave the client.

    Raises FailedRun for what it would cut off without a word.
    """
    known = decode(blobs_of(asked.content)[NETWORK]).mask
    vector = to_vector(decode(blobs_of(answer.content)[NETWORK], known=known)).astype(np.float64)
    metrics: dict[str, Any] = dict(answer.content.metric_records[METRICS])
    state: Any = context.state.config_records[RECORD_KEY_STATE]
    span, most = state[Key.CLIPPING_RANGE], state[Key.MAX_WEIGHT]
    # the noise of local privacy is meant for equal weights
    weight = 1 if most == 1 else int(metrics["num-examples"])
    if weight > most:
        raise FailedRun(f"{weight} examples are more than the {most:.0f} that a secure sum was made for")
    if not float(np.abs(vector).max(initial=0)) <= span:
        raise FailedRun(f"a value of {np.abs(vector).max():g} does not fit a secure sum of values up to {span:g}")
    told = FitRes(Status(Code.OK, ""), ndarrays_to_parameters([vector]), weight, metrics)
    return Message(fitres_to_recorddict(told, keep_input=True), reply_to=asked)


def metrics_of(content: RecordDict) -> Mapping[str, Any]:
    """The numbers that come with a client's masked vector; raises KeyError where there are none."""
    return recorddict_to_fitres(content, keep_input=True).metrics
