"""Personal tickets: each client prunes its own network, and the server averages where they overlap.

Source: LotteryFL (Li et al. 2020, algorithm 1): where the network that comes is good enough here, the mask shrinks and
the ticket restarts from the first weights. Differs from it: that accuracy is read on the client's held-out examples,
never on test data; the weights that go are the smallest after the client's own training, not of the average, which
would give all clients one mask, and the restart is the next round's; means are weighted by examples unless `uniform`.
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
        self.restarting: set[str] = set()

    def order(self, number: int, name: str) -> Order:
        """The global network under the client's own mask, or the origin where that has just shrunk."""
        mask = self.masks[name]
        state = self.origin.state if name in self.restarting else self.network.state
        return Order(Sparse(mask, masked(state, mask), self.network.facts), self.gate)

    def accepts(self, name: str, answer: Sparse) -> str | None:
        """A mask may lose weights and gain none, and no layer may be empty."""
        before = self.masks[name]
        if set(answer.mask) != set(before) or any(bool((kept & ~before[n]).any()) for n, kept in answer.mask.items()):
            return "a mask that keeps weights which were removed"
        return None if all(bool(kept.any()) for kept in answer.mask.values()) else "a mask with an empty layer"

    def merge(self, number: int, answers: Sequence[Answer]) -> dict[str, Any]:
        """Mean of each weight over the clients that keep it."""
        for answer in answers:
            has_shrunk = remaining(answer.network.mask) < remaining(self.masks[answer.name])
            (self.restarting.add if has_shrunk else self.restarting.discard)(answer.name)
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
        masks = {f"{name}/{layer}": kept for name, mask in self.masks.items() for layer, kept in mask.items()}
        return Memory(masks, {"restarting": sorted(self.restarting)})

    def recall_(self, network: Sparse, memory: Memory) -> None:
        """Take up every client's mask."""
        self.network, self.restarting = network, set(memory.facts["restarting"])
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


@works.register("personal")
def personal(work: Work) -> Reply:
    """Train; where the network that came was good enough here, a share of the smallest weights goes then."""
    task, mask = work.task, work.received.mask
    if len(work.validation) == 0:
        raise TicketlabError("rule personal needs examples to judge by: raise federate.holdout")
    is_good = judge(work.model, work.received.state, work.validation) > task["accuracy"]
    done = fit(work, mask, work.received.state)
    if is_good and density(mask) > task["target"]:
        mask = pruned(done.state, mask, task["rate"], task["target"])
    return Reply(Sparse(mask, masked(done.state, mask), {}), done.loss)


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
