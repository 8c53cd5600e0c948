"""Personal tickets: each client prunes its own network, and the server averages where they overlap.

Source: LotteryFL (Li et al. 2020, algorithm 1). Differs from it: accuracy that decides about pruning is read on the
client's own held-out examples, never on test data; the weights that go are the smallest of its own training, not of
the average, which would give all clients one mask; means are weighted by examples unless `uniform`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ticketlab.codec import Sparse
from ticketlab.errors import TicketlabError
from ticketlab.federate.averaging import overlap_mean
from ticketlab.federate.local import fit, judge
from ticketlab.federate.rules.rule import Answer, Memory, Order, Reply, Work, rules, works
from ticketlab.pruning.allocate import keep_count, make_pools, prune
from ticketlab.pruning.masks import Mask, density, masked, remaining
from ticketlab.recipe import FederateSection


@rules.register("personal")
class Personal:
    """A mask for each client, which only shrinks; one global network under all of them."""

    starts_dense = True
    work = "personal"

    def __init__(
        self,
        start: Sparse,
        settings: FederateSection,
        clients: Sequence[str],
        *,
        accuracy: float = 0.5,
        rate: float = 0.2,
        target: float = 0.1,
        uniform: bool = False,
    ) -> None:
        if not (0 <= accuracy <= 1 and 0 < rate < 1 and 0 < target <= 1):
            raise TicketlabError("rule personal: accuracy lies in 0…1, rate between 0 and 1, target above 0")
        self.network, self.origin, self.uniform = start, start, uniform
        self.gate = {"accuracy": accuracy, "rate": rate, "target": target}
        self.masks: dict[str, Mask] = dict.fromkeys(clients, start.mask)

    def order(self, number: int, name: str) -> Order:
        """The global network under the client's own mask."""
        mask = self.masks[name]
        if self.network is self.origin:
            return Order(self.origin, self.gate, origin=self.origin)
        own = Sparse(mask, masked(self.network.state, mask), self.network.facts)
        return Order(own, self.gate, origin=self.origin)

    def accepts(self, name: str, answer: Sparse) -> str | None:
        """A mask may lose weights and gain none."""
        before = self.masks[name]
        if set(answer.mask) != set(before) or any(bool((kept & ~before[n]).any()) for n, kept in answer.mask.items()):
            return "a mask that keeps weights which were removed"
        return None

    def merge(self, number: int, answers: Sequence[Answer]) -> dict[str, Any]:
        """Mean of each weight over the clients that keep it."""
        for answer in answers:
            self.masks[answer.name] = answer.network.mask
        weights = [1 if self.uniform else answer.examples for answer in answers]
        states, masks = [a.network.state for a in answers], [a.network.mask for a in answers]
        state = overlap_mean(self.network.state, states, masks, weights)
        self.network = Sparse(self.network.mask, state, self.network.facts)
        return {
            "densities": {name: density(mask) for name, mask in self.masks.items()},
            "overlap": overlap(list(self.masks.values())),
        }

    def memory(self) -> Memory:
        """Every client's mask."""
        return Memory({f"{name}/{layer}": kept for name, mask in self.masks.items() for layer, kept in mask.items()})

    def recall_(self, network: Sparse, memory: Memory) -> None:
        """Take up every client's mask."""
        self.network = network
        for name, mask in self.masks.items():
            self.masks[name] = {layer: memory.tensors[f"{name}/{layer}"].bool() for layer in mask}


def overlap(masks: Sequence[Mask]) -> float | None:
    """Mean over pairs of masks of the share that both keep of what either keeps (Jaccard); None for a single one."""
    pairs = [(one, other) for index, one in enumerate(masks) for other in masks[index + 1 :]]
    if not pairs:
        return None
    return sum(_shared(one, other) for one, other in pairs) / len(pairs)


def _shared(one: Mask, other: Mask) -> float:
    both = sum(int((kept & other[name]).sum()) for name, kept in one.items())
    return both / sum(int((kept | other[name]).sum()) for name, kept in one.items())


@works.register("personal", needs={"last"})
def personal(work: Work) -> Reply:
    """Where the network that came is good enough here, prune a fifth more and restart; then train.

    The smallest of the weights that were trained here last go; a client that remembers none goes by those that came.
    """
    mask: Mask = work.received.mask
    state: dict[str, Tensor] = work.received.state
    task = work.task
    if len(work.validation) == 0:
        raise TicketlabError("rule personal needs examples to judge by: raise federate.holdout")
    if density(mask) > task["target"] and judge(work.model, state, work.validation) > task["accuracy"]:
        assert work.origin is not None, "an origin travels with the mask"
        mask = pruned(state if work.last is None else work.last.state, mask, task["rate"], task["target"])
        state = masked(work.origin.state, mask)
    done = fit(work, mask, state)
    return Reply(Sparse(mask, done.state, {}), done.loss)


def pruned(state: dict[str, Tensor], mask: Mask, rate: float, target: float) -> Mask:
    """The mask without `rate` of what remains in each layer, the smallest; never below `target` of the layer."""
    alive = {name: int(kept.sum()) for name, kept in mask.items()}
    pools = make_pools(alive, "layer", rate)
    least = [max(1, round(target * mask[pool.layers[0]].numel())) for pool in pools]
    keeps = [
        min(alive[pool.layers[0]], max(keep_count(pool, alive, 1), low)) for pool, low in zip(pools, least, strict=True)
    ]
    assert sum(keeps) <= remaining(mask)
    return prune({name: state[name].abs() for name in mask}, mask, pools, keeps)
