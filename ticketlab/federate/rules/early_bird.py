"""Federated early birds: dense rounds until the mask of the mean stops moving, then sparse ones.

Source: You et al. 2020, algorithm 1, with a round in place of an epoch. The mask is taken from the averaged network,
which is free; masks of the clients' own networks tell how far they disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ticketlab.codec import Sparse
from ticketlab.errors import TicketlabError
from ticketlab.federate.rules.fixed import Fixed
from ticketlab.federate.rules.rule import Answer, Memory, rules
from ticketlab.pruning.allocate import keep_at, make_pools, prune
from ticketlab.pruning.early_bird import has_settled, mask_distance, snapshot
from ticketlab.pruning.masks import Mask, masked
from ticketlab.recipe import FederateSection


@rules.register("early_bird")
class EarlyBird(Fixed):
    """`fixed`, whose mask is drawn on the way."""

    starts_dense = True

    def __init__(
        self,
        start: Sparse,
        settings: FederateSection,
        clients: Sequence[str],
        *,
        density: float = 0.1,
        epsilon: float = 0.1,
        window: int = 3,
        patience: int | None = None,
        rewind: bool = False,
    ) -> None:
        if not 0 < density < 1 or not epsilon > 0 or window < 2:
            raise TicketlabError("rule early_bird: density lies between 0 and 1, epsilon is above 0, window 2 or more")
        super().__init__(start, settings, clients)
        self.origin = start
        self.density, self.epsilon, self.window, self.patience, self.rewind = density, epsilon, window, patience, rewind
        self.masks: list[Mask] = []
        self.drawn: int | None = None

    def merge(self, number: int, answers: Sequence[Answer]) -> dict[str, Any]:
        """Average; while the network is dense, look at its mask and draw the ticket once it stays."""
        if self.drawn is not None:
            return {**super().merge(number, answers), "drawn": self.drawn}
        found = super().merge(number, answers)
        mask = magnitude_mask(self.network.state, self.network.mask, self.density)
        distances = [_apart(mask, earlier) for earlier in self.masks]
        own = [magnitude_mask(answer.network.state, answer.network.mask, self.density) for answer in answers]
        apart = [_apart(mask, other) for other in own]
        self.masks = [*self.masks, mask][1 - self.window :]  # with the next one they are the window
        if has_settled(distances, self.window, self.epsilon) or number == self.patience:
            self.drawn = number
            state = self.origin.state if self.rewind else self.network.state
            self.network = Sparse(mask, masked(state, mask), self.network.facts)
            self.averaging.begin_anew_()
        return {
            **found,
            "mask_distance": max(distances, default=None),
            "disagreement": sum(apart) / len(apart),
            "drawn": self.drawn,
        }

    def memory(self) -> Memory:
        """The masks of the window."""
        found = super().memory()
        found.facts["drawn"] = self.drawn
        found.tensors |= {f"{at}/{name}": kept for at, mask in enumerate(self.masks) for name, kept in mask.items()}
        return found

    def recall_(self, network: Sparse, memory: Memory) -> None:
        """Take up the window."""
        super().recall_(network, memory)
        self.drawn = memory.facts["drawn"]
        found: dict[int, Mask] = {}
        for key, kept in memory.tensors.items():
            at, _, name = key.partition("/")
            if name:
                found.setdefault(int(at), {})[name] = kept.bool()
        # files keep tensors in an order of their own
        self.masks = [{name: found[at][name] for name in network.mask} for at in sorted(found)]


def magnitude_mask(state: Mapping[str, Tensor], mask: Mask, density: float) -> Mask:
    """The largest weights of each layer: this fraction of all its weights, at most as many as are kept."""
    sizes = {name: kept.numel() for name, kept in mask.items()}
    pools = make_pools(sizes, "layer", 1 - density)
    keeps = [
        min(keep_at(pool, sizes, density, 1 - density), int(sum(mask[name].sum() for name in pool.layers)))
        for pool in pools
    ]
    return prune({name: state[name].abs() for name in mask}, mask, pools, keeps)


def _apart(one: Mask, other: Mask) -> float:
    return mask_distance(snapshot(one), snapshot(other), "chance")
