"""What every rule answers, on the server and on a client; rules by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from ticketlab.codec import Sparse
from ticketlab.data.batches import Examples
from ticketlab.recipe import FederateSection
from ticketlab.registry import Registry


@dataclass(frozen=True)
class Order:
    """What the server wants one client to do in a round."""

    network: Sparse
    task: dict[str, Any] = field(default_factory=dict)
    """What the client's part of the rule needs to know, as JSON."""


@dataclass(frozen=True)
class Answer:
    """What one client sent back, judged by `accepts`."""

    name: str
    network: Sparse
    examples: int
    extra: Sparse | None = None
    """What else the rule asked for."""


@dataclass
class Memory:
    """What a rule must know again when a federation goes on, beside the network."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


class Rule(Protocol):
    """The server's side of a rule."""

    starts_dense: bool
    """Whether the rule begins with a dense network."""
    work: str
    """Name of the client's side."""
    network: Sparse
    """The global network as it stands."""

    def __init__(self, start: Sparse, settings: FederateSection, clients: Sequence[str], **options: Any) -> None:
        """Stand before the first round, for clients of these names; raises TicketlabError for options out of range."""

    def order(self, number: int, name: str) -> Order:
        """What a client gets in a round."""
        ...

    def accepts(self, name: str, answer: Sparse) -> str | None:
        """Why a client's mask is not one that the rule allows; None where it is."""
        ...

    def merge(self, number: int, answers: Sequence[Answer]) -> dict[str, Any]:
        """Make the next network of answers, at least one; returns what the round's record should tell."""
        ...

    def memory(self) -> Memory:
        """What `recall_` needs."""
        ...

    def recall_(self, network: Sparse, memory: Memory) -> None:
        """Stand as after the round that left this network and memory."""
        ...


rules: Registry[type[Rule]] = Registry("rule")
"""Name → class of the server's side."""


@dataclass(frozen=True)
class Work:
    """What a client works with in a round."""

    model: nn.Module
    """Built for the network that came."""
    received: Sparse
    train: Examples
    validation: Examples
    """The client's own examples held out to judge by; may be empty."""
    settings: FederateSection
    task: Mapping[str, Any]
    """As the order said."""
    seed: int


@dataclass(frozen=True)
class Reply:
    """What a client answers."""

    network: Sparse
    loss: float
    """Mean of the last epoch's batches."""
    extra: Sparse | None = None


works: Registry[Callable[[Work], Reply]] = Registry("client's side of a rule")
"""Name → what a client does."""
