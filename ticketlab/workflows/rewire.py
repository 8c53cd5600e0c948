"""Weights are replaced while a level trains: as many remain, in places that change.

Sources: SET, Mocanu et al. 2018, algorithm 2 (grow: random); RigL, Evci et al. 2020, algorithm 1 (gradient); sparse
momentum, Dettmers & Zettlemoyer 2019, algorithm 1 (momentum); deep rewiring, Bellec et al. 2018, algorithm 1 (drop:
sign). Here weights that come start from zero in all of them, but for one that has just gone and keeps its value, and
the step at which they come is a step of the optimizer as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ticketlab.pruning.masks import Mask, State, pack, unpack
from ticketlab.pruning.rewire import anywhere, growth, moved_share, opposed, strongest, weakest
from ticketlab.runs.files import under
from ticketlab.runs.store import RunStore
from ticketlab.runs.tensorboard import LevelEvents
from ticketlab.runs.ticket import Ticket
from ticketlab.seeds import derive_seed
from ticketlab.training.trainable import Trainable
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.progress import Drawn, Notice
from ticketlab.workflows.trainer import LevelTask


class Rewire:
    """Replaces weights of one level while it trains."""

    name = "rewire"
    is_done = False

    def __init__(self, plan: Plan, store: RunStore, task: LevelTask, ticket_of: Callable[[Mask], Ticket]) -> None:
        """`ticket_of` makes the level's ticket of its mask at the end."""
        assert plan.rewiring is not None
        self.plan, self.store, self.task, self.ticket_of = plan, store, task, ticket_of
        self.section, self.times = plan.recipe.dynamic, plan.rewiring
        self.seen: State = {}
        """Gradients of all weights, or what is left of those before with sparse momentum."""

    def begin(self, net: Trainable, optimizer: torch.optim.Optimizer) -> None:
        """Prepare the network for losing and getting weights."""
        self.net, self.optimizer = net, optimizer
        net.shrinkable_()
        self.parameters = net.prunable()
        self.ever = {name: net.mask[name].clone() for name in self.parameters}
        self.signs = {name: parameter.detach().sign() for name, parameter in self.parameters.items()}
        if self.section.grow == "momentum":
            self.seen = {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}

    def see(self, step: int) -> None:
        """Remember the gradients that decide which weights come."""
        if self.section.grow == "momentum" and step <= self.times.last:
            for name, parameter in self.parameters.items():
                assert parameter.grad is not None
                self.seen[name].lerp_(parameter.grad, 1 - self.section.momentum)
        elif self.section.grow == "gradient" and self.times.is_due(step):
            self.seen = {name: p.grad.clone() for name, p in self.parameters.items() if p.grad is not None}

    def after_step(self, step: int, model: nn.Module, seconds: float, events: LevelEvents) -> Iterator[Notice | Drawn]:
        """Replace weights where it is time to."""
        if not self.times.is_due(step):
            return
        dropped = {name: self._dropped(name, step) for name in self.plan.competing}
        left = {name: self.net.mask[name] & ~gone for name, gone in dropped.items()}
        counts = {name: int(gone.sum()) for name, gone in dropped.items()}
        if not any(counts.values()):
            return
        if self.section.grow == "momentum":
            counts = growth(self.seen, left, counts)
        for name, kept in left.items():
            if not counts[name] and not dropped[name].any():
                continue
            # what has just gone may come back at once, with its value, as in the papers' codes
            grown = self._grown(name, ~kept, counts[name], step)
            if self.section.drop == "sign":  # from zero, with a sign of its own
                self.net.change_(name, kept, self.optimizer)
                signs = torch.randint(2, (counts[name],), generator=self._generator("sign", name, step)) * 2.0 - 1
                self.signs[name][grown] = signs.to(grown.device)
            self.net.change_(name, kept | grown, self.optimizer)
            self.ever[name] |= grown
        yield from ()  # nothing to tell

    def _dropped(self, name: str, step: int) -> Tensor:
        weight, mask = self.parameters[name], self.net.mask[name]
        if self.section.drop == "sign":
            return opposed(weight, self.signs[name], mask)
        share = moved_share(self.section.fraction, self.times.done(step), self.section.decay == "cosine")
        return weakest(weight, mask, int(share * int(mask.sum())))

    def _grown(self, name: str, allowed: Tensor, count: int, step: int) -> Tensor:
        """Where weights come."""
        if self.section.grow == "random":
            return anywhere(allowed, count, self._generator("grow", name, step))
        return strongest(self.seen[name].abs(), allowed, count)

    def _generator(self, what: str, name: str, step: int) -> torch.Generator:
        layer = list(self.parameters).index(name)
        return torch.Generator().manual_seed(derive_seed(self.task.seed, what, self.task.level, step, layer))

    def point(self, step: int) -> dict[str, float]:
        """Share of all weights that have ever been among those that remain (Liu et al. 2021, section 3)."""
        explored = sum(int(ever.sum()) for ever in self.ever.values())
        return {"explored": explored / sum(self.plan.sizes.values())}

    def state(self) -> tuple[State, dict[str, Any]]:
        """Masks, signs and gradients."""
        tensors = {f"mask/{name}": torch.from_numpy(pack(kept)) for name, kept in self.net.masks().items()}
        tensors |= {f"ever/{name}": torch.from_numpy(pack(ever.cpu())) for name, ever in self.ever.items()}
        if self.section.grow == "momentum":
            tensors |= {f"seen/{name}": value for name, value in self.seen.items()}
        if self.section.drop == "sign":
            tensors |= {f"sign/{name}": value for name, value in self.signs.items()}
        return tensors, {}

    def restore(self, tensors: State, facts: dict[str, Any]) -> None:
        """Go on where a checkpoint was made."""
        for name, parameter in self.parameters.items():
            mask, ever = (
                unpack(tensors[f"{kind}/{name}"].numpy(), parameter.shape).to(parameter.device)
                for kind in ("mask", "ever")
            )
            self.net.change_(name, mask, self.optimizer)
            self.ever[name] = ever
        self.seen |= {name: value.to(self.seen[name].device) for name, value in under("seen/", tensors).items()}
        self.signs |= {name: value.to(self.signs[name].device) for name, value in under("sign/", tensors).items()}

    def finish(self, step: int, events: LevelEvents) -> None:
        """The level's ticket: its starting weights under the mask of its end."""
        self.store.write_ticket(self.task.replicate, self.task.level, self.ticket_of(self.net.masks()))

    def record(self) -> dict[str, Any]:
        """Nothing beside the mask."""
        return {}
