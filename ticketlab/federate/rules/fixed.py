"""One ticket for all: clients train its surviving weights, and Flower's strategy makes one network of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ticketlab.codec import Sparse, mask_digest
from ticketlab.errors import TicketlabError
from ticketlab.federate.local import fit
from ticketlab.federate.rules.rule import Answer, Memory, Order, Reply, Work, rules, works
from ticketlab.recipe import FederateSection


@rules.register("fixed")
class Fixed:
    """FedAvg on the surviving weights (McMahan et al. 2017, algorithm 1), or another strategy of Flower's."""

    starts_dense = False
    work = "train"

    def __init__(self, start: Sparse, settings: FederateSection, clients: Sequence[str]) -> None:
        from ticketlab.federate.strategies import Averaging  # not on clients, where it takes long to load

        steps = settings.server_momentum or settings.server_lr != 1 or settings.aggregate != "mean" or settings.privacy
        if steps and any(name.endswith("running_var") for name in start.state):
            raise TicketlabError(
                "federate: leave server_lr, server_momentum, aggregate and privacy out; this network has batch norm, "
                "whose running variances cannot be stepped or noised"
            )
        self.network = start
        self.averaging = Averaging(settings)

    def order(self, number: int, name: str) -> Order:
        """The same network for all."""
        return Order(self.network)

    def accepts(self, name: str, answer: Sparse) -> str | None:
        """The mask is everybody's."""
        return None if same_mask(answer, self.network) else "another mask"

    def merge(self, number: int, answers: Sequence[Answer]) -> dict[str, Any]:
        """Average; tells what privacy it cost."""
        state = self.averaging.merge(number, self.network, answers)
        self.network = Sparse(self.network.mask, state, self.network.facts)
        spent = self.averaging.spent()
        return {"privacy": spent} if spent else {}

    def memory(self) -> Memory:
        """Of the strategy."""
        return self.averaging.memory()

    def recall_(self, network: Sparse, memory: Memory) -> None:
        """Take up the strategy where it stood."""
        self.network = network
        self.averaging.recall_(network, memory)


def same_mask(one: Sparse, other: Sparse) -> bool:
    """Whether two networks keep the same weights."""
    return mask_digest(one.mask) == mask_digest(other.mask)


@works.register("train")
def train(work: Work) -> Reply:
    """Train under the mask that came."""
    done = fit(work, work.received.mask, work.received.state)
    return Reply(Sparse(work.received.mask, done.state, {}), done.loss)
