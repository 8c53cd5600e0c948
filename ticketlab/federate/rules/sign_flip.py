"""A vote of signs: small weights that change sign on most clients within a round are removed.

The clients send nothing for it: the server compares the signs of what it sent and what came back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ticketlab.codec import Sparse
from ticketlab.errors import TicketlabError
from ticketlab.federate.averaging import weighted_sum
from ticketlab.federate.rules.fixed import Fixed
from ticketlab.federate.rules.rule import Answer, rules
from ticketlab.pruning.allocate import lowest
from ticketlab.pruning.masks import density, masked
from ticketlab.recipe import FederateSection


@rules.register("sign_flip")
class SignFlip(Fixed):
    """`fixed`, whose mask loses weights by vote until a density is reached."""

    def __init__(
        self,
        start: Sparse,
        settings: FederateSection,
        clients: Sequence[str],
        *,
        vote: float = 0.5,
        smallest: float = 0.5,
        until: float = 0.05,
    ) -> None:
        if not (0 <= vote < 1 and 0 < smallest <= 1 and 0 < until < 1):
            raise TicketlabError("rule sign_flip: vote, smallest and until are shares between 0 and 1")
        super().__init__(start, settings, clients)
        self.vote, self.smallest, self.until = vote, smallest, until

    def merge(self, number: int, answers: Sequence[Answer]) -> dict[str, Any]:
        """Average, then count the votes."""
        before = self.network
        found = super().merge(number, answers)
        mask = {
            name: outvoted(before.state[name], [a.network.state[name] for a in answers],
                           [a.examples for a in answers], self.network.state[name], kept, self)
            for name, kept in before.mask.items()
        }  # fmt: skip
        if density(mask) != density(before.mask):
            self.network = Sparse(mask, masked(self.network.state, mask), before.facts)
            self.averaging.begin_anew_()
        return {**found, "density": density(mask)}


def outvoted(
    before: Tensor, after: Sequence[Tensor], examples: Sequence[int], mean: Tensor, kept: Tensor, rule: SignFlip
) -> Tensor:
    """A layer's mask without the weights that flipped on clients with more than `vote` of the examples.

    Only the `smallest` share of its remaining weights may go, by their mean's size, the smallest first, and no more
    than leave `until` of the layer and one weight. Zero counts as positive.
    """
    flipped = [((value < 0) != (before < 0)).float() for value in after]
    share = weighted_sum(flipped, examples) / sum(examples)
    alive = int(kept.sum())
    small = torch.zeros_like(kept)
    small[kept] = lowest(mean[kept].abs(), int(rule.smallest * alive))
    leaving = kept & small & (share > rule.vote)
    may_go = max(alive - max(round(rule.until * kept.numel()), 1), 0)
    if int(leaving.sum()) > may_go:
        order = torch.zeros_like(kept)
        order[leaving] = lowest(mean[leaving].abs(), may_go)
        leaving = order
    return kept & ~leaving
