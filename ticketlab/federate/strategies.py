"""Flower's strategies at work on the vector of surviving values: averages, medians, server momentum, privacy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp.mod import LocalDpMod, fixedclipping_mod
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedTrimmedAvg,
    Strategy,
)
from numpy.typing import NDArray
from torch import Tensor

from ticketlab.codec import Sparse
from ticketlab.federate.direct import Direct
from ticketlab.federate.rules.rule import Answer, Memory
from ticketlab.recipe import FederateSection, PrivacySection

VALUES = "values"
ALL = {"fraction_train": 1.0, "fraction_evaluate": 1.0, "min_train_nodes": 1, "min_available_nodes": 1}
"""The rounds choose the clients themselves: each strategy takes those it is shown."""


def to_vector(network: Sparse) -> NDArray[np.float32]:
    """All floating-point numbers that are not removed, tensor by tensor, as float32."""
    parts = [
        (value[network.mask[name]] if name in network.mask else value).reshape(-1).float()
        for name, value in network.state.items()
        if value.is_floating_point()
    ]
    return torch.cat(parts).numpy()


def from_vector(vector: NDArray[np.float32], like: Sparse) -> dict[str, Tensor]:
    """The inverse of `to_vector` for a network of this mask; other numbers are those of `like`."""
    state, left = {}, torch.from_numpy(np.ascontiguousarray(vector, np.float32))
    for name, value in like.state.items():
        kept = like.mask.get(name)
        count = (value.numel() if kept is None else int(kept.sum())) if value.is_floating_point() else 0
        values, left = left[:count].to(value.dtype), left[count:]
        if not value.is_floating_point():
            state[name] = value.clone()
        elif kept is None:
            state[name] = values.reshape(value.shape).clone()
        else:
            state[name] = torch.zeros_like(value)
            state[name][kept] = values
    assert not len(left), "more values than the network has"
    return state


def make_strategy(settings: FederateSection) -> Strategy:
    """The strategy of Flower that the settings describe, without privacy."""
    if settings.aggregate == "median":
        return FedMedian(**ALL)  # type: ignore[arg-type]
    if settings.aggregate == "trimmed_mean":
        return FedTrimmedAvg(**ALL, beta=0.2)  # type: ignore[arg-type]
    if settings.server_momentum or settings.server_lr != 1:
        rate, momentum = settings.server_lr, settings.server_momentum
        return FedAvgM(**ALL, server_learning_rate=rate, server_momentum=momentum)  # type: ignore[arg-type]
    return FedAvg(**ALL)  # type: ignore[arg-type]


def private(plain: Strategy, privacy: PrivacySection, clients: int) -> Strategy:
    """The strategy with Flower's central privacy around it, for a round in which so many clients answered."""
    if privacy.kind == "local":
        return plain
    on_server, on_client = DifferentialPrivacyServerSideFixedClipping, DifferentialPrivacyClientSideFixedClipping
    wrapper = on_server if privacy.kind == "central" else on_client
    return wrapper(plain, privacy.noise, privacy.clip, clients)


class Averaging:
    """One of Flower's strategies, round by round, without a grid of its own."""

    def __init__(self, settings: FederateSection) -> None:
        self.settings, self.privacy = settings, settings.privacy
        self.strategy = make_strategy(settings)
        self.releases = 0

    def merge(self, number: int, before: Sparse, answers: Sequence[Answer]) -> dict[str, Tensor]:
        """The state after a round; whole numbers, such as batch counters, are the largest client's."""
        strategy = private(self.strategy, self.privacy, len(answers)) if self.privacy else self.strategy
        list(strategy.configure_train(number, _record(before), ConfigRecord(), Direct(len(answers), _nobody, {})))
        replies = [self._reply(answer, before, node) for node, answer in enumerate(answers, 1)]
        arrays, _ = strategy.aggregate_train(number, replies)
        assert arrays is not None, "a strategy that does not use its answers"
        self.releases += 1
        largest = max(answers, key=lambda answer: answer.examples)
        return from_vector(arrays[VALUES].numpy(), Sparse(before.mask, largest.network.state, {}))

    def begin_anew_(self) -> None:
        """Forget momentum, whose vector is another one after the mask has changed; not what privacy cost."""
        self.strategy = make_strategy(self.settings)

    def _reply(self, answer: Answer, before: Sparse, node: int) -> Message:
        # under privacy all count the same: the noise is meant for that, and the number of examples would tell something
        weight = 1 if self.privacy else answer.examples
        record = _clippable(answer.network, before) if self.privacy else _record(answer.network)
        content = RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": weight})})
        return Message(content, dst_node_id=node, message_type=MessageType.TRAIN)

    def spent(self) -> dict[str, Any]:
        """ε and δ so far: of a client's part in all rounds (central), or of each of its answers (local)."""
        privacy = self.privacy
        if privacy is None:
            return {}
        from ticketlab.federate.privacy import epsilon  # scipy, which takes clients long to load

        found = privacy.epsilon if privacy.kind == "local" else epsilon(privacy.noise, self.releases, privacy.delta)
        of = "each answer" if privacy.kind == "local" else "all rounds"
        return {"kind": privacy.kind, "epsilon": found, "delta": privacy.delta, "of": of}

    def memory(self) -> Memory:
        """The server's momentum, where there is any, and what was released."""
        vector = self.strategy.momentum_vector if isinstance(self.strategy, FedAvgM) else None
        tensors = {} if vector is None else {"momentum": torch.from_numpy(np.ascontiguousarray(vector[0]))}
        return Memory(tensors, {"releases": self.releases})

    def recall_(self, network: Sparse, memory: Memory) -> None:
        """Go on from a round's end."""
        self.releases = memory.facts["releases"]
        if isinstance(self.strategy, FedAvgM):
            self.strategy.current_arrays = _record(network)
            vector = memory.tensors.get("momentum")
            self.strategy.momentum_vector = None if vector is None else [vector.numpy()]


def protect(network: Sparse, received: Sparse, privacy: PrivacySection) -> Sparse:
    """What a client sends under privacy: its update clipped, and for local privacy noised, by Flower's modifiers.

    Under `central` the server does both.
    """
    if privacy.kind == "central":
        return network
    # the strategy's message, which tells the modifier how far to clip
    on_client = privacy.model_copy(update={"kind": "central_client"})
    wrapper = private(FedAvg(**ALL), on_client, 1)  # type: ignore[arg-type]
    message = next(iter(wrapper.configure_train(1, _record(received), ConfigRecord(), Direct(1, _nobody, {}))))
    modifier = fixedclipping_mod
    if privacy.kind == "local":
        # two data sets of one client lead to updates that are 2 · clip apart at most
        modifier = LocalDpMod(privacy.clip, 2 * privacy.clip, privacy.epsilon, privacy.delta)
    context = Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config={})
    content = RecordDict({"arrays": _clippable(network, received)})
    out = modifier(message, context, lambda asked, _: Message(content, reply_to=asked))
    return Sparse(
        network.mask, from_vector(out.content.array_records["arrays"][VALUES].numpy(), network), network.facts
    )


def _record(network: Sparse) -> ArrayRecord:
    return ArrayRecord(array_dict={VALUES: Array(to_vector(network))})


def _clippable(network: Sparse, before: Sparse) -> ArrayRecord:
    """The network's values; where none has changed, one by a millionth: Flower's clipping divides by the update's
    norm."""
    vector = to_vector(network)
    if not np.linalg.norm(vector - to_vector(before)):
        vector[0] += 1e-6 * max(abs(float(vector[0])), 1.0)
    return ArrayRecord(array_dict={VALUES: Array(vector)})


def _nobody(message: Message, context: Context) -> Message:
    """Strategies ask a grid whom they may choose, and nothing else."""
    raise NotImplementedError
