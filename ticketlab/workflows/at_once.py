"""First flip: a weight that changes its sign is removed at once, until its pool is down to the level's size.

Source: our own; FlipOut (Apostol, Stol & Forré 2020) starts from the same observation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ticketlab.pruning.allocate import lowest
from ticketlab.pruning.masks import Mask, State, masked, pack, unpack
from ticketlab.runs.store import RunStore
from ticketlab.runs.tensorboard import LevelEvents
from ticketlab.runs.ticket import Ticket
from ticketlab.training.trainable import Trainable
from ticketlab.workflows.flips import FlipWatch
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.progress import Drawn, Notice
from ticketlab.workflows.tickets import next_mask, ticket_facts
from ticketlab.workflows.trainer import LevelTask


class AtOnce:
    """Removes weights of one level while it trains. The counts are the flip watch's, which looks before this one."""

    name = "at_once"
    is_done = False

    def __init__(self, plan: Plan, store: RunStore, task: LevelTask, flips: FlipWatch) -> None:
        assert plan.schedule is not None and plan.schedule.at_once is not None
        self.plan, self.store, self.task, self.flips = plan, store, task, flips
        self.limit, self.completed_at = plan.schedule.at_once, plan.schedule.completed(task.level)
        self.keeps = plan.keeps(task.level)
        self.told: list[str] = []

    def begin(self, net: Trainable, optimizer: torch.optim.Optimizer) -> None:
        """Prepare the network for losing weights."""
        self.net, self.optimizer = net, optimizer
        self.parameters = net.prunable()
        net.shrinkable_()
        self._count()

    def _count(self) -> None:
        masks = self.net.masks()
        self.left = {name: int(kept.sum()) for name, kept in masks.items()}

    def after_step(self, step: int, model: nn.Module, seconds: float, events: LevelEvents) -> Iterator[Notice | Drawn]:
        """Remove what has flipped too often; at the middle of the level remove what is still missing."""
        if step > self.completed_at:
            return
        removed = self._complete(model) if step == self.completed_at else self._flipped()
        for name, gone in removed.items():
            if bool(gone.any()):
                self.net.remove_(name, gone, self.optimizer)
                self.left[name] -= int(gone.sum())
        if removed:
            self.flips.flips.look_()  # a negative weight that became zero did not flip
        for name in [name for name, count in self.left.items() if count == 1 and name not in self.told]:
            self.told.append(name)
            yield Notice(f"replicate {self.task.replicate}, step {step}: layer '{name}' is down to its last weight")

    def _flipped(self) -> dict[str, Tensor]:
        """Weights to remove now, as each is trained; of several pools only those with too many weights."""
        due = self.flips.reached(self.limit)
        removed: dict[str, Tensor] = {}
        for pool, keep in zip(self.plan.pools, self.keeps, strict=True):
            budget = sum(self.left[name] for name in pool.layers) - keep
            if budget <= 0:
                continue
            sizes = {name: self.parameters[name].detach().abs().reshape(-1) for name in pool.layers}
            # what is zero is removed already; the last and largest weight of a layer stays
            going = {
                name: due[name]
                & (size > 0)
                & ((size < size.max()) if self.left[name] <= int(due[name].sum()) else True)
                for name, size in sizes.items()
            }
            found = torch.cat([going[name] for name in pool.layers])
            if int(found.sum()) > budget:
                among = torch.cat([sizes[name] for name in pool.layers]).masked_fill(~found, torch.inf)
                found = lowest(among, budget)
            parts = found.split([len(sizes[name]) for name in pool.layers])
            removed |= {n: part.view_as(self.parameters[n]) for n, part in zip(pool.layers, parts, strict=True)}
        return removed if any(bool(gone.any()) for gone in removed.values()) else {}

    def _complete(self, model: nn.Module) -> dict[str, Tensor]:
        """What the criterion removes beside, for the level's exact count."""
        before = self.net.masks()
        trained = self.net.whole(model.state_dict())
        initial = self.store.read_rewind(self.task.replicate)
        after = next_mask(
            self.plan, self.task.replicate, self.task.level, trained, before, self.flips.evidence(), initial
        )
        return {name: self.net.gather(name, before[name] & ~after[name]) for name in before}

    def point(self, step: int) -> dict[str, float]:
        """Density as it falls."""
        return {"density/remaining": sum(self.left.values()) / sum(self.plan.sizes.values())}

    def state(self) -> tuple[State, dict[str, Any]]:
        """What has been removed."""
        masks = self.net.masks()
        return {name: torch.from_numpy(pack(kept)) for name, kept in masks.items()}, {"told": self.told}

    def restore(self, tensors: State, facts: dict[str, Any]) -> None:
        """Go on where a checkpoint was made."""
        self.told = facts["told"]
        for name, before in self.net.masks().items():
            kept = unpack(tensors[name].numpy(), before.shape)
            self.net.remove_(name, self.net.gather(name, before & ~kept), self.optimizer)
        self._count()

    def finish(self, step: int, events: LevelEvents) -> None:
        """The level's ticket: its starting weights under the mask of its end."""
        mask: Mask = self.net.masks()
        facts = ticket_facts(self.plan, self.task.replicate, self.task.level, self.task.start)
        ticket = Ticket(mask, masked(self.task.weights, mask), facts)
        self.store.write_ticket(self.task.replicate, self.task.level, ticket)

    def record(self) -> dict[str, Any]:
        """Nothing beside the mask."""
        return {}
