"""Masks that move while clients train: FedDST (clients regrow) and PruneFL (the server chooses by gradients)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ticketlab.codec import Sparse
from ticketlab.errors import TicketlabError
from ticketlab.federate.averaging import overlap_mean, weighted_sum
from ticketlab.federate.local import dense_gradient, fit
from ticketlab.federate.rules.fixed import same_mask, train
from ticketlab.federate.rules.rule import Answer, Memory, Order, Reply, Work, rules, works
from ticketlab.pruning.allocate import Pool, allocate, lowest, prune
from ticketlab.pruning.early_bird import mask_distance, snapshot
from ticketlab.pruning.masks import Mask, density, masked, remaining
from ticketlab.recipe import FederateSection


class _Moving:
    """What both rules share: one mask for all, which some rounds change."""

    starts_dense = False

    def __init__(self, start: Sparse, every: int, until: int) -> None:
        if every < 1 or until < 0:
            raise TicketlabError("adaptive masks: every is 1 or more, until 0 or more")
        self.network, self.every, self.until = start, every, until

    def moves(self, number: int) -> bool:
        """Whether a round changes the mask."""
        return number % self.every == 0 and number <= self.until

    def replace(self, mask: Mask, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Make this the network; returns what became of the mask."""
        moved = mask_distance(snapshot(self.network.mask), snapshot(mask), "hamming")
        self.network = Sparse(mask, masked(state, mask), self.network.facts)
        return {"density": density(mask), "mask_distance": moved}

    def memory(self) -> Memory:
        """The network's mask, which is kept with it, is all."""
        return Memory()

    def recall_(self, network: Sparse, memory: Memory) -> None:
        """Stand where the network stands."""
        self.network = network


@rules.register("feddst")
class FedDst(_Moving):
    """Clients drop their smallest weights and regrow by gradient; the server averages and prunes back.

    Source: Bibikar et al. 2022, algorithm 1. Differs from it: the mask changes in the middle of the local steps, so
    that regrown weights are trained before they are judged; each layer keeps its count.
    """

    work = "feddst"

    def __init__(
        self,
        start: Sparse,
        settings: FederateSection,
        clients: Sequence[str],
        *,
        alpha: float = 0.05,
        every: int = 2,
        until: int = 100,
    ) -> None:
        if not 0 < alpha < 1:
            raise TicketlabError(f"rule feddst: alpha lies between 0 and 1 (got {alpha:g})")
        super().__init__(start, every, until)
        self.alpha = alpha

    def share(self, number: int) -> float:
        """Share of a layer's weights that move: α/2 · (1 + cos(π · round / until)), 0 where none do."""
        return self.alpha / 2 * (1 + math.cos(math.pi * number / self.until)) if self.moves(number) else 0.0

    def order(self, number: int, name: str) -> Order:
        """The network, and how many weights to move."""
        return Order(self.network, {"share": self.share(number)})

    def accepts(self, name: str, answer: Sparse) -> str | None:
        """A mask of the same counts."""
        here = {name: int(kept.sum()) for name, kept in self.network.mask.items()}
        return (
            None if {name: int(kept.sum()) for name, kept in answer.mask.items()} == here else "a mask of other counts"
        )

    def merge(self, number: int, answers: Sequence[Answer]) -> dict[str, Any]:
        """Mean over the clients that keep a weight, then the largest, so many as each layer keeps."""
        states, masks = [a.network.state for a in answers], [a.network.mask for a in answers]
        state = overlap_mean(self.network.state, states, masks, [answer.examples for answer in answers])
        union = {name: torch.stack([mask[name] for mask in masks]).any(0) for name in self.network.mask}
        pools = [Pool((name,), 0.0) for name in union]
        keeps = [int(kept.sum()) for kept in self.network.mask.values()]
        return self.replace(prune({name: state[name].abs() for name in union}, union, pools, keeps), state)


@works.register("feddst")
def feddst(work: Work) -> Reply:
    """Train; half-way drop the smallest weights of each layer and regrow as many by the size of their gradient."""
    share = work.task["share"]
    if share == 0:
        return train(work)
    half = fit(work, work.received.mask, work.received.state, part=(0.0, 0.5))
    gradient = dense_gradient(work.model, half.state, work.train, work.settings.batch_size)
    mask = {
        name: moved(half.state[name], kept, gradient[name], round(share * int(kept.sum())))
        for name, kept in work.received.mask.items()
    }
    done = fit(work, mask, masked(half.state, mask), part=(0.5, 1.0), anchor=work.received.state)
    return Reply(Sparse(mask, done.state, {}), done.loss)


def moved(weight: Tensor, kept: Tensor, gradient: Tensor, count: int) -> Tensor:
    """A layer's mask with its `count` smallest weights removed and as many of the others added, by largest gradient.

    Never more than are removed already; of equal ones the later are added.
    """
    count = min(count, int((~kept).sum()), int(kept.sum()) - 1)
    if count <= 0:
        return kept
    left = allocate({"": weight.abs()}, {"": kept}, Pool(("",), 0.0), int(kept.sum()) - count)[""]
    away = ~kept
    grown = kept.clone()
    grown[away] = ~lowest(gradient[away].abs(), int(away.sum()) - count)
    return left | (grown & away)


@rules.register("prunefl")
class PruneFl(_Moving):
    """The server keeps the weights whose squared gradients are worth their cost.

    Source: Jiang et al. 2022, section IV. Differs from it: every weight costs the same, and `overhead` stands for the
    time that a round takes without any weight, in weights.
    """

    work = "prunefl"

    def __init__(
        self,
        start: Sparse,
        settings: FederateSection,
        clients: Sequence[str],
        *,
        every: int = 2,
        until: int = 1000,
        share: float = 0.3,
        halving: int = 10_000,
        overhead: float = 1000.0,
    ) -> None:
        if not (0 < share < 1 and halving > 0 and overhead >= 0):
            raise TicketlabError("rule prunefl: share lies between 0 and 1, halving and overhead are not negative")
        super().__init__(start, every, until)
        self.share, self.halving, self.overhead = share, halving, overhead

    def order(self, number: int, name: str) -> Order:
        """The network, and whether squared gradients are wanted."""
        return Order(self.network, {"gradients": self.moves(number)})

    def accepts(self, name: str, answer: Sparse) -> str | None:
        """The mask is everybody's."""
        return None if same_mask(answer, self.network) else "another mask"

    def merge(self, number: int, answers: Sequence[Answer]) -> dict[str, Any]:
        """Average; then choose the mask anew, where gradients came."""
        mask = self.network.mask
        weights = [answer.examples for answer in answers]
        state = overlap_mean(self.network.state, [a.network.state for a in answers], [mask] * len(answers), weights)
        told = [(answer.extra.state, answer.examples * scale_of(answer.extra)) for answer in answers if answer.extra]
        if not self.moves(number) or not told:
            return self.replace(mask, state)
        worth = {name: weighted_sum([extra[name] for extra, _ in told], [n for _, n in told]) for name in mask}
        free = self.share * 0.5 ** (number / self.halving)
        return self.replace(worthwhile(state, mask, worth, free, self.overhead), state)


@works.register("prunefl")
def prunefl(work: Work) -> Reply:
    """Train; where it is asked for, tell the squared gradients of all weights at the network that came."""
    done = train(work)
    if not work.task["gradients"]:
        return done
    gradient = dense_gradient(work.model, work.received.state, work.train, None)
    squares = {name: gradient[name].square() for name in work.received.mask}
    # as shares of the largest, so that small squares do not vanish where values travel as float16
    largest = max(float(value.max()) for value in squares.values()) or 1.0
    shares = {name: value / largest for name, value in squares.items()}
    return Reply(done.network, done.loss, Sparse({}, shares, {"largest": largest}))


def scale_of(extra: Sparse) -> float:
    """What squared gradients were divided by; 0, which leaves them out, where that is no number that can be."""
    told = extra.facts.get("largest")
    return float(told) if isinstance(told, int | float) and 0 < told < math.inf else 0.0


def worthwhile(
    state: Mapping[str, Tensor], mask: Mask, worth: Mapping[str, Tensor], free: float, overhead: float
) -> Mask:
    """The mask of largest Γ = (worth of what is kept) / (overhead + number kept).

    The largest weights stay; the `free` share of the remaining ones that are smallest, and all removed ones, are added
    from the most worthy on, as long as each is worth more than Γ so far (Jiang et al. 2022, algorithm 2). Every layer
    keeps one weight at least.
    """
    flat = torch.cat([worth[name].flatten().double() for name in mask])
    kept = torch.cat([mask[name].flatten() for name in mask])
    sizes = torch.cat([state[name].abs().flatten() for name in mask])
    loose = kept.clone()
    loose[kept] = lowest(sizes[kept], math.floor(free * remaining(mask)))
    stays = kept & ~loose
    order = torch.where(stays, -torch.inf, flat).argsort(descending=True, stable=True)[: int((~stays).sum())]
    total, count = float(flat[stays].sum()), float(stays.sum()) + overhead
    gains = flat[order]
    # Γ before each is added: sums of those before it
    gamma = (total + gains.cumsum(0) - gains) / (count + torch.arange(len(gains), dtype=torch.float64)).clamp(
        min=1e-300
    )
    ends = (gains <= gamma).nonzero()
    taken = int(ends[0]) if len(ends) else len(gains)
    chosen = stays.clone()
    chosen[order[:taken]] = True
    found = dict(zip(mask, chosen.split([kept.numel() for kept in mask.values()]), strict=True))
    return {name: _not_empty(part.view_as(mask[name]), state[name], mask[name]) for name, part in found.items()}


def _not_empty(chosen: Tensor, weight: Tensor, before: Tensor) -> Tensor:
    """The layer's mask; where it would be empty, its largest weight alone."""
    return chosen if chosen.any() else allocate({"": weight.abs()}, {"": before}, Pool(("",), 0.0), 1)[""]
