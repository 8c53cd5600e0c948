"""Sign flips of a level in training: counted after every step, shown at every point of the curve, kept at the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ticketlab.pruning.masks import Mask, State
from ticketlab.pruning.sign_flips import SignFlips
from ticketlab.runs.store import RunStore
from ticketlab.runs.tensorboard import LevelEvents
from ticketlab.training.trainable import Trainable
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.progress import Drawn, Notice
from ticketlab.workflows.trainer import LevelTask


class FlipWatch:
    """Counts sign flips while one level trains.

    Args:
        carried: Flips of the level before, as the store keeps them; counting goes on from there.
    """

    name = "sign_flips"
    is_done = False

    def __init__(self, plan: Plan, store: RunStore, task: LevelTask, carried: State) -> None:
        self.plan, self.store, self.task, self.carried = plan, store, task, carried
        self.flips: SignFlips
        self.flipped: Tensor
        """1 for each weight that flipped in the last step."""
        self._seen: dict[str, int] = {}
        self._seen_at = task.start

    def begin(self, net: Trainable, optimizer: torch.optim.Optimizer) -> None:
        """Take the signs of the weights as they stand."""
        self.net = net
        trained = {name: parameter.detach() for name, parameter in net.prunable().items()}
        self.flips = SignFlips(trained, self.plan.steps, self.plan.half_life)
        if self.carried:
            self.flips.go_on_from_(
                self._gathered("counts"), self._gathered("recent" if self.plan.half_life else "counts")
            )
        self._seen = self._sums()

    def _gathered(self, kind: str) -> dict[str, Tensor]:
        return {name: self.net.gather(name, self.carried[f"{kind}/{name}"]) for name in self.flips.weights}

    def after_step(self, step: int, model: nn.Module, seconds: float, events: LevelEvents) -> Iterator[Notice | Drawn]:
        """Count the flips of the step."""
        self.flipped = self.flips.update_()
        return iter(())

    def point(self, step: int) -> dict[str, float]:
        """Flips per remaining weight and step since the last point, layer by layer."""
        sums, steps = self._sums(), step - self._seen_at
        rates = {
            f"sign_flip_rate/{name}": (sums[name] - self._seen[name]) / max(1, steps * int(kept.sum()))
            for name, kept in self.net.masks().items()
        }
        self._seen, self._seen_at = sums, step
        return rates

    def _sums(self) -> dict[str, int]:
        return {name: int(counts.sum()) for name, counts in self.flips.counts().items()}

    def reached(self, limit: int) -> dict[str, Tensor]:
        """Weights, as they are trained but in a row, that flipped in the last step and so often in all."""
        flipped = self.flipped.bool()
        if limit > 1:
            flipped &= torch.cat(list(self.flips.counts().values())) >= limit
        return self.flips.named(flipped)

    def evidence(self) -> State:
        """Flips of each weight as criteria see them, in the weights' shapes."""
        return {name: self.net.spread(name, values) for name, values in self.flips.recent().items()}

    def state(self) -> tuple[State, dict[str, Any]]:
        """Counts so far."""
        return self.flips.state(), {"seen": self._seen, "seen_at": self._seen_at}

    def restore(self, tensors: State, facts: dict[str, Any]) -> None:
        """Go on where a checkpoint was made."""
        self.flips.restore_(tensors)
        self._seen, self._seen_at = facts["seen"], facts["seen_at"]

    def finish(self, step: int, events: LevelEvents) -> None:
        """Write counts, histograms and, where they are to be looked at, flips against magnitude."""
        counts = self.flips.counts()
        kept = {f"counts/{name}": self.net.spread(name, values) for name, values in counts.items()}
        if self.plan.half_life:
            kept |= {f"recent/{name}": self.net.spread(name, values) for name, values in self.flips.recent().items()}
        self.store.write_flips(self.task.replicate, self.task.level, kept, {"half_life": self.plan.half_life})
        masks = self.net.masks()
        for name in counts:
            events.histogram(f"sign_flips/{name}", kept[f"counts/{name}"][masks[name]], step)
        if "sign_flips" in self.plan.recipe.watch:
            self._picture(kept, masks, step, events)

    def _picture(self, kept: State, masks: Mask, step: int, events: LevelEvents) -> None:
        from ticketlab.figures import encode, flips_by_magnitude  # matplotlib takes half a second to load

        layers = {
            name: (self.net.spread(name, parameter)[masks[name]].abs(), kept[f"counts/{name}"][masks[name]])
            for name, parameter in self.net.prunable().items()
            if bool(masks[name].any())
        }
        pictures = encode(flips_by_magnitude(layers, self.task.level, step))
        events.picture("sign_flips", pictures["png"], step)
        for kind, content in pictures.items():
            where = f"replicate_{self.task.replicate}/level_{self.task.level}/sign_flips.{kind}"
            self.store.write_file(where, content)

    def record(self) -> dict[str, Any]:
        """Of each layer: flips per remaining weight, and the share of them that never flipped."""
        found: dict[str, dict[str, float]] = {}
        masks = self.net.masks()
        for name, counts in self.flips.counts().items():
            of_kept = self.net.spread(name, counts)[masks[name]].double()
            found[name] = {"per_weight": float(of_kept.mean()), "never": float((of_kept == 0).double().mean())}
        return {"sign_flips": found}
