"""Smaller dense networks for weak devices: fused from the ticket in every round, and mapped back to it.

Weak clients multiply fewer numbers; the others train the ticket. Each weight is averaged over those that train it, as
in HeteroFL (Diao et al. 2021, equation 2), whose networks are slices; these are fused, so that a unit stands for
those most like it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ticketlab.codec import Sparse
from ticketlab.errors import TicketlabError
from ticketlab.federate.averaging import overlap_mean
from ticketlab.federate.rules.fixed import same_mask
from ticketlab.federate.rules.rule import Answer, Memory, Order, rules
from ticketlab.fusion.fuse import Fused, Method, fuse
from ticketlab.fusion.groups import Group
from ticketlab.fusion.trace import trace
from ticketlab.fusion.widen import widen
from ticketlab.fusion.widths import uniform
from ticketlab.models.build import network_from
from ticketlab.pruning.masks import Mask, masked
from ticketlab.recipe import FederateSection

METHOD = Method("in_out", "neuron_merging")
"""Looks at no data, and keeps the rows of the units that stay."""


@rules.register("submodels")
class Submodels:
    """The ticket for all but the weak, who get it fused to a share of its units."""

    starts_dense = False
    work = "train"

    def __init__(
        self,
        start: Sparse,
        settings: FederateSection,
        clients: Sequence[str],
        *,
        weak: str | Sequence[str] = "",
        share: float = 0.25,
    ) -> None:
        named = weak.split(",") if isinstance(weak, str) else list(weak)
        self.weak = [str(name).strip() for name in named if str(name).strip()]
        unknown = [name for name in self.weak if name not in clients]
        if unknown or not self.weak or not 0 < share < 1:
            raise TicketlabError(
                f"rule submodels: weak names clients, commas between, of {', '.join(clients)} (got '{weak}'); share "
                "lies between 0 and 1"
            )
        self.share = share
        self.network = start
        model = network_from(start.state, start.facts)
        self.groups: list[Group] = trace(model, torch.zeros(1, *start.facts["input_shape"])).groups
        self.fused, self.small = self._fuse()

    def _fuse(self) -> tuple[Fused, Sparse]:
        model = network_from(self.network.state, self.network.facts)
        fused = fuse(model, self.groups, uniform(self.groups, self.share), METHOD)
        state = {name: value.detach().clone() for name, value in fused.model.state_dict().items()}
        return fused, Sparse({}, state, self.network.facts)

    def order(self, number: int, name: str) -> Order:
        """The ticket, or the fused network."""
        return Order(self._network_of(name))

    def _network_of(self, name: str) -> Sparse:
        return self.small if name in self.weak else self.network

    def accepts(self, name: str, answer: Sparse) -> str | None:
        """The mask that was sent, which the weak have none of."""
        return None if same_mask(answer, self._network_of(name)) else "another mask"

    def merge(self, number: int, answers: Sequence[Answer]) -> dict[str, Any]:
        """Mean of each weight over the clients that train it; then fuse anew."""
        whole = [self._whole(answer) for answer in answers]
        examples = [answer.examples for answer in answers]
        state = overlap_mean(self.network.state, [w for w, _ in whole], [m for _, m in whole], examples)
        self.network = Sparse(self.network.mask, masked(state, self.network.mask), self.network.facts)
        self.fused, self.small = self._fuse()
        return {"parameters_of_the_weak": sum(value.numel() for value in self.small.state.values())}

    def _whole(self, answer: Answer) -> tuple[dict[str, torch.Tensor], Mask]:
        """A client's network in the ticket's shape, and which of its numbers the client has trained."""
        before = self.network
        floats = [name for name, value in before.state.items() if value.is_floating_point()]
        if answer.name not in self.weak:
            full = {name: torch.ones_like(before.state[name], dtype=torch.bool) for name in floats}
            return answer.network.state, {**full, **before.mask}
        change = {name: answer.network.state[name] - self.small.state[name] for name in floats}
        wide, reached = widen(change, before.state, self.groups, self.fused.kept, self.fused.mixing)
        state = {name: value + wide[name] if name in wide else value for name, value in before.state.items()}
        trained = {name: reached[name] & before.mask[name] if name in before.mask else reached[name] for name in floats}
        return masked(state, before.mask), trained

    def memory(self) -> Memory:
        """The fused network follows from the ticket."""
        return Memory()

    def recall_(self, network: Sparse, memory: Memory) -> None:
        """Fuse anew."""
        self.network = network
        self.fused, self.small = self._fuse()
