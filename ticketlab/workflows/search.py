"""The search for early-bird tickets: masks of a network in training, their distances, and the draws.

Looks on while level 0 trains. Every mask is compared with the earlier ones; a ticket is written at the moment in
which it is drawn. All of it goes into level 0's checkpoint, so that a search taken up again draws at the same step.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ticketlab.draws import SEARCH, VERSION
from ticketlab.errors import FailedRun, PruningError
from ticketlab.pruning.early_bird import (
    Snapshot,
    decides_nothing,
    has_settled,
    layer_distances,
    mask_distance,
    nearly_empty,
    snapshot,
    window_distance,
)
from ticketlab.pruning.masks import Mask, State
from ticketlab.runs.store import RunStore
from ticketlab.runs.tensorboard import LevelEvents
from ticketlab.runs.ticket import Ticket
from ticketlab.seeds import derive_seed
from ticketlab.training.trainable import Trainable
from ticketlab.workflows.draw import draw_ticket
from ticketlab.workflows.flips import FlipWatch
from ticketlab.workflows.operations import operations, rungs
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.progress import Drawn, Notice
from ticketlab.workflows.targets import Target
from ticketlab.workflows.tickets import Observed, cut, replicate_seed, saliencies, wants_initial

MEMORY = 64 * 2**20
"""Bytes of masks that are kept for each density; beyond, the oldest outside the window are forgotten."""
ALARM = 0.1
"""A layer that keeps less than this share of the average density is about to be empty."""
PICTURE_SECONDS = 15.0


@dataclass
class Track:
    """The masks of one density."""

    density: float
    snapshots: list[Snapshot] = field(default_factory=list)
    distances: list[list[float]] = field(default_factory=list)
    """Of each mask to the earlier ones, the latest last."""
    layers: list[dict[str, float]] = field(default_factory=list)
    """Of each mask to the one before it, layer by layer."""

    def add(self, mask: Mask, plan: Plan) -> None:
        """Compare a new mask with the earlier ones."""
        assert plan.early_bird is not None
        measure, newest = plan.early_bird.measure, snapshot(mask)
        self.distances.append([mask_distance(newest, earlier, measure) for earlier in self.snapshots])
        self.layers.append(layer_distances(newest, self.snapshots[-1], measure) if self.snapshots else {})
        self.snapshots.append(newest)
        room = max(plan.early_bird.window, MEMORY // max(1, newest.nbytes))
        del self.snapshots[:-room]

    def to_window(self, window: int) -> float | None:
        """Largest distance from the newest mask to the others of its window; None before it is full."""
        return window_distance(self.distances[-1], window) if self.distances else None


class Search:
    """What looks on while level 0 of one replicate trains."""

    name = "search"

    def __init__(
        self, plan: Plan, store: RunStore, replicate: int, device: torch.device, flips: FlipWatch | None = None
    ) -> None:
        assert plan.early_bird is not None
        self.flips = flips
        self.plan, self.store, self.replicate, self.device = plan, store, replicate, device
        self.search = plan.early_bird
        self.steps: list[int] = []
        self.tracks = {target.density: Track(target.density) for target in self.search.targets}
        self.draws: dict[int, dict[str, Any]] = {}
        self.told: list[str] = []
        self.mask_seconds = 0.0
        self.aside_seconds = 0.0
        """Spent on tickets' files, on counting operations and on pictures."""
        self._pictured_at = time.monotonic()

    @property
    def is_done(self) -> bool:
        """Whether every ticket is drawn."""
        return len(self.draws) == len(self.search.targets)

    def after_step(self, step: int, model: nn.Module, seconds: float, events: LevelEvents) -> Iterator[Notice | Drawn]:
        """Make masks where one is due, and draw what has settled or must be drawn now."""
        is_due = step % self.search.every == 0
        forced = [level for level, target in self._open() if step == (target.at or self.search.patience)]
        if (not is_due and not forced) or (step < self.plan.rewind and wants_initial(self.plan)):
            return
        began = time.perf_counter()
        state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
        saliency = self._saliency(state, step)
        masks = self._masks(saliency, step)
        if not masks:
            if forced:
                raise FailedRun(
                    f"no ticket can be drawn at step {step}: all that criterion "
                    f"'{self.plan.recipe.pruning.criterion}' judges is still equal; draw later or train faster"
                )
            return
        if is_due:
            yield from self._compare(step, masks, events)
        settled = [level for level, target in self._open() if is_due and self._has_settled(target)]
        spent = time.perf_counter() - began
        self.mask_seconds += spent
        for level in sorted({*forced, *settled}):
            ticket = self._ticket(level, step, masks, state)
            counted = self._operations(level, masks, saliency)
            yield self._draw(level, step, ticket, counted, seconds + spent, is_settled=level in settled)
        if time.monotonic() - self._pictured_at > PICTURE_SECONDS:
            events.picture("mask_distance", self._pictures("png")["png"], step)
            self._pictured_at = time.monotonic()
        self.aside_seconds += time.perf_counter() - began - spent

    def _open(self) -> list[tuple[int, Target]]:
        """Tickets that are not drawn yet, each with its level."""
        return [(n, target) for n, target in enumerate(self.search.targets, start=1) if n not in self.draws]

    def _has_settled(self, target: Target) -> bool:
        distances = self.tracks[target.density].distances
        if target.at is not None or not distances:
            return False
        return has_settled(distances[-1], self.search.window, self.search.epsilon)

    def _masks(self, saliency: State, step: int) -> dict[float, Mask]:
        """The mask of each density; none where the numbers cannot decide."""
        if decides_nothing(saliency, self.plan.pools):
            return {}
        try:
            return {density: self._mask(saliency, density) for density in self.tracks}
        except PruningError as error:
            raise FailedRun(f"criterion '{self.plan.recipe.pruning.criterion}' at step {step}: {error}") from error

    def _saliency(self, state: State, step: int) -> State:
        numbers = self.search.judged(state, self.plan.sizes)
        initial = self.search.judged(self._rewind, self.plan.sizes) if wants_initial(self.plan) else {}
        observed = Observed(
            seed=derive_seed(replicate_seed(self.plan, self.replicate), "criterion", step),
            initial=initial,
            progress=(step - self.plan.rewind) / (self.plan.steps - self.plan.rewind),
            flips=self.flips.evidence() if self.flips else {},
        )
        return saliencies(self.plan, numbers, _full(numbers), observed, f"step {step}")

    @cached_property
    def _rewind(self) -> State:
        """The dense network at the rewind step; only after that step."""
        return self.store.read_rewind(self.replicate)

    def _mask(self, saliency: State, density: float) -> Mask:
        return cut(self.plan, saliency, _full(saliency), self.plan.keeps_at(density))

    def _compare(self, step: int, masks: dict[float, Mask], events: LevelEvents) -> Iterator[Notice]:
        """Add masks to their tracks; tells of layers that are about to be empty, once each."""
        self.steps.append(step)
        for density, track in self.tracks.items():
            track.add(masks[density], self.plan)
            distance = track.to_window(self.search.window)
            if distance is not None:
                events.scalars("mask_distance", {f"keep_{density:g}": distance}, step)
            events.scalars(f"mask_distance_keep_{density:g}", track.layers[-1], step)
            for name in nearly_empty(masks[density], ALARM):
                kept = masks[density][name]
                events.scalars("nearly_empty", {f"{name}_keep_{density:g}": float(kept.sum())}, step)
                if (key := f"{name} {density:g}") not in self.told:
                    self.told.append(key)
                    yield Notice(
                        f"replicate {self.replicate}, step {step}: layer '{name}' is about to be empty at density "
                        f"{density:g}: it keeps {int(kept.sum())} of {kept.numel()} (never fewer than one)"
                    )

    def _ticket(self, level: int, step: int, masks: dict[float, Mask], state: State) -> Ticket:
        """Write the ticket of a level as of now."""
        mask = masks[self.search.targets[level - 1].density]
        rewind = self._rewind if 0 < self.plan.rewind <= step else None
        ticket = draw_ticket(self.plan, self.replicate, level, step, mask, state, rewind)
        self.store.write_ticket(self.replicate, level, ticket)
        return ticket

    def _draw(
        self, level: int, step: int, ticket: Ticket, counted: dict[str, Any], seconds: float, is_settled: bool
    ) -> Drawn:
        """Write down a draw and what its training costs."""
        target = self.search.targets[level - 1]
        distance = self.tracks[target.density].to_window(self.search.window) if step in self.steps[-1:] else None
        self.draws[level] = {
            "level": level,
            "density": target.density,
            "step": step,
            "settled": is_settled,
            "distance": distance,
            "chosen": target.at is None,
            "start": ticket.facts["rewind_step"],
            "seconds": seconds - self.aside_seconds,
            "mask_seconds": self.mask_seconds,
            "operations": counted,
        }
        return Drawn(self.replicate, target.density, step, self.plan.steps, target.at is None, is_settled, distance)

    def _operations(self, level: int, masks: dict[float, Mask], saliency: State) -> dict[str, Any]:
        """What training costs; the ladder's masks are those that the present saliency would give."""
        density, rate = self.search.targets[level - 1].density, self.plan.recipe.pruning.rate
        ladder = [self._mask(saliency, rung) for rung in rungs(density, rate)]
        return operations(self.plan, self.device, masks[density], ladder)

    def state(self) -> tuple[State, dict[str, Any]]:
        """Masks and distances so far."""
        tensors = {
            f"{density}/{index}/{name}": torch.from_numpy(bits)
            for density, track in self.tracks.items()
            for index, snap in enumerate(track.snapshots)
            for name, bits in snap.bits.items()
        }
        return tensors, {**self._seen(), "told": self.told}

    def _seen(self) -> dict[str, Any]:
        tracks = [{"density": t.density, "distances": t.distances, "layers": t.layers} for t in self.tracks.values()]
        draws = [self.draws[level] for level in sorted(self.draws)]
        spent = {"mask_seconds": self.mask_seconds, "aside_seconds": self.aside_seconds}
        return {"steps": self.steps, **spent, "tracks": tracks, "draws": draws}

    def restore(self, tensors: State, facts: dict[str, Any]) -> None:
        """Go on where a checkpoint was made."""
        self.steps, self.told = facts["steps"], facts["told"]
        self.mask_seconds, self.aside_seconds = facts["mask_seconds"], facts["aside_seconds"]
        self.draws = {draw["level"]: draw for draw in facts["draws"]}
        shapes = self._shapes()
        for seen in facts["tracks"]:
            track = self.tracks[seen["density"]]
            track.distances, track.layers = seen["distances"], seen["layers"]
            track.snapshots = _unpacked(tensors, f"{track.density}/", shapes)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        state = self.plan.build(0).state_dict()
        return {name: tuple(v.shape) for name, v in self.search.judged(state, self.plan.sizes).items()}

    def begin(self, net: Trainable, optimizer: torch.optim.Optimizer) -> None:
        """Nothing to prepare: masks are made from the network as it is."""

    def point(self, step: int) -> dict[str, float]:
        """Distances have their own curves."""
        return {}

    def record(self) -> dict[str, Any]:
        """Nothing: the search has a record of its own."""
        return {}

    def finish(self, step: int, events: LevelEvents) -> None:
        """Write the search's record and its pictures."""
        folder = f"replicate_{self.replicate}"
        pictures = self._pictures("png", "svg")
        for kind, content in pictures.items():
            self.store.write_file(f"{folder}/mask_distance.{kind}", content)
        if self.steps:
            events.picture("mask_distance", pictures["png"], self.steps[-1])
        self.store.write_result(f"{folder}/{SEARCH}", self._record())

    def _record(self) -> dict[str, Any]:
        search = self.search
        return {
            "version": VERSION,
            "granularity": self.plan.recipe.early_bird.granularity,
            "measure": search.measure,
            "epsilon": search.epsilon,
            "window": search.window,
            "every": search.every,
            "total_steps": self.plan.steps,
            "again": self.plan.steps - (0 if self.plan.recipe.pruning.after == "reinit" else self.plan.rewind),
            "batch_size": self.plan.recipe.train.batch_size,
            **self._seen(),
        }

    def _pictures(self, *kinds: str) -> dict[str, bytes]:
        from ticketlab.figures import encode, mask_distances  # matplotlib takes half a second to load

        return encode(mask_distances(self._record()), *kinds)


def _full(numbers: State) -> Mask:
    return {name: torch.ones_like(values, dtype=torch.bool) for name, values in numbers.items()}


def _unpacked(tensors: State, prefix: str, shapes: dict[str, tuple[int, ...]]) -> list[Snapshot]:
    """Snapshots of one density from a checkpoint, in order."""
    found: dict[int, dict[str, Tensor]] = {}
    for key, bits in tensors.items():
        if key.startswith(prefix):
            index, _, name = key.removeprefix(prefix).partition("/")
            found.setdefault(int(index), {})[name] = bits
    return [Snapshot({name: found[index][name].numpy() for name in shapes}, shapes) for index in sorted(found)]
