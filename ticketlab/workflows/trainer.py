"""A level in training: what it starts from, its optimizer steps, who looks on, and its checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ticketlab.data.batches import Examples, shuffled_batches
from ticketlab.errors import RunError
from ticketlab.models.compact import rebuild
from ticketlab.pruning.masks import Mask, State
from ticketlab.runs.files import under
from ticketlab.runs.store import RunStore
from ticketlab.runs.tensorboard import LevelEvents
from ticketlab.seeds import derive_seed
from ticketlab.training.frozen import keep_frozen_
from ticketlab.training.loop import Adjust, Step, train_steps
from ticketlab.training.optim import learning_rate, make_optimizer, memory, restore_memory_
from ticketlab.training.sparsify import Drift, Sparsify, make_sparsify
from ticketlab.training.trainable import Trainable, make_trainable
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.progress import Drawn, Notice


@dataclass(frozen=True)
class LevelTask:
    """What a level starts from."""

    replicate: int
    seed: int
    level: int
    mask: Mask
    weights: State
    """Values and sizes: a network of another width than the recipe's is trained at its own."""
    start: int
    stop: int
    final_lr: bool = False
    """Train at the schedule's last learning rate throughout."""
    settled: int = 0
    """Step from which the level has its density; weights of before are never its best ones."""
    optimizer: State | None = None
    """What the optimizer remembers from the level before; None: it starts empty."""
    frozen: State = field(default_factory=dict)
    """Values that removed weights keep instead of zero."""
    may_grow: bool = False
    """Removed weights may come back while the level trains."""
    dense_gradients: float = 0.0
    """Examples whose gradients are needed of all weights, removed ones among them."""
    looks: float = 0.0
    """Forward and backward passes of one example that the mask took."""
    spent: float = 0.0
    """Seconds that the mask took, if it was made just now."""


class Watch(Protocol):
    """Who looks on while a level trains, and may end it early."""

    name: str
    """Of its part of a checkpoint."""

    @property
    def is_done(self) -> bool:
        """Whether training may end here."""

    def begin(self, net: Trainable, optimizer: torch.optim.Optimizer) -> None:
        """See the network as training starts or is taken up."""

    def after_step(self, step: int, model: nn.Module, seconds: float, events: LevelEvents) -> Iterator[Notice | Drawn]:
        """Look at the network after a step, so many seconds into the level."""

    def point(self, step: int) -> dict[str, float]:
        """What to add to a point of the curve."""

    def state(self) -> tuple[State, dict[str, Any]]:
        """What a checkpoint has to keep."""

    def restore(self, tensors: State, facts: dict[str, Any]) -> None:
        """Go on from what `state` gave."""

    def finish(self, step: int, events: LevelEvents) -> None:
        """Write down what was seen; the level is about to be finished."""

    def record(self) -> dict[str, Any]:
        """What to add to the level's record."""


@runtime_checkable
class Seer(Protocol):
    """A watch that looks at the gradients of all weights, too; one at most."""

    def see(self, step: int) -> None:
        """Look at them before that step is done, those of removed weights among them."""


@dataclass
class Trainer:
    """The changing state of one level: all of it goes into a checkpoint."""

    whole: nn.Module
    """The network before layers became sparse; its weights stay those of the start."""
    net: Trainable
    optimizer: torch.optim.Optimizer
    sparsify: Sparsify
    step: int
    settled: int
    """As the task's."""
    best: State = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    """Of the steps since the last point of the curve."""
    seconds: float = 0.0

    @property
    def model(self) -> nn.Module:
        """The network that is trained."""
        return self.net.model

    def best_point(self) -> dict[str, float] | None:
        """The point of the curve with the smallest validation loss; the first of several, None before any counts."""
        counting = (point for point in self.curve if point["step"] >= self.settled)
        return min(counting, key=lambda point: point["val_loss"], default=None)


def make_trainer(plan: Plan, task: LevelTask, device: torch.device) -> Trainer:
    """A level before its first step."""
    whole = rebuild(plan.build(0), task.weights)
    net = make_trainable(whole, task.weights, task.mask, device, task.may_grow)
    keep_frozen_(net.model, {name: value.to(device) for name, value in task.frozen.items()})
    optimizer = make_optimizer(net.parameters(), plan.recipe.train)
    if task.optimizer is not None:
        net.restore_optimizer_(optimizer, task.optimizer)
    sparsify = _sparsify(plan, task, net, optimizer)
    return Trainer(whole, net, optimizer, sparsify, task.start, task.settled, seconds=task.spent)


def level_steps(
    plan: Plan,
    task: LevelTask,
    trainer: Trainer,
    examples: Examples,
    stop: int,
    see: Callable[[int], None] | None = None,
) -> Iterator[Step]:
    """Optimizer steps from where the trainer stands to `stop`."""
    train = plan.recipe.train
    order = derive_seed(task.seed, "order")
    batches = shuffled_batches(examples, train.batch_size, order, trainer.step, plan.recipe.data.augment)

    def rate(step: int) -> float:
        return learning_rate(train, plan.steps - 1 if task.final_lr else step, plan.steps_per_epoch)

    net = trainer.net
    adjust = Adjust(
        bfloat16=train.precision == "bf16",
        channels_last=train.channels_last,
        slimming=train.slimming,
        noise=net.noise(train.gradient_noise),
        frozen=net.frozen,
        sparsify=trainer.sparsify,
        see=see,
    )
    return train_steps(net.model, batches, trainer.optimizer, rate, net.mask, trainer.step, stop, adjust)


def _sparsify(plan: Plan, task: LevelTask, net: Trainable, optimizer: torch.optim.Optimizer) -> Sparsify:
    """What draws weights to zero as the level trains: the dense network's, or with dynamic masks those that remain."""
    asked, dynamic = plan.recipe.train.sparsify, plan.recipe.dynamic
    if asked and task.level == 0:
        return make_sparsify(asked, net, plan.competing)
    if task.may_grow and (dynamic.l1 or dynamic.temperature):
        weights = net.prunable()
        return Drift([weights[name] for name in plan.competing], optimizer, dynamic.l1, dynamic.temperature)
    return Sparsify()


def keep_checkpoint(trainer: Trainer, watches: Sequence[Watch], store: RunStore, task: LevelTask) -> None:
    """Everything that the next step depends on, and what the level will report."""
    tensors = {f"model/{name}": value for name, value in trainer.model.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in trainer.best.items()}
    tensors |= {f"optimizer/{name}": value for name, value in memory(trainer.optimizer).items()}
    tensors |= {f"sparsify/{name}": value for name, value in trainer.sparsify.state().items()}
    tensors["random/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    if trainer.losses:
        tensors["losses"] = torch.stack(trainer.losses)
    facts = {"step": trainer.step, "curve": trainer.curve, "seconds": trainer.seconds}
    for watch in watches:
        seen, facts[f"watch/{watch.name}"] = watch.state()
        tensors |= {f"watch/{watch.name}/{name}": value for name, value in seen.items()}
    store.write_checkpoint(task.replicate, task.level, tensors, facts)


def restore(trainer: Trainer, watches: Sequence[Watch], checkpoint: tuple[State, dict[str, Any]] | None) -> None:
    """Put a checkpoint's state in place, and let the watches begin."""
    tensors, facts = checkpoint or ({}, {})
    if checkpoint is not None:
        _restore_trainer(trainer, tensors, facts)
    for watch in watches:
        watch.begin(trainer.net, trainer.optimizer)
        if checkpoint is not None and f"watch/{watch.name}" not in facts:
            raise RunError("the unfinished level was saved by another version of ticketlab; delete its checkpoint")
        if checkpoint is not None:
            watch.restore(under(f"watch/{watch.name}/", tensors), facts[f"watch/{watch.name}"])


def _restore_trainer(trainer: Trainer, tensors: State, facts: dict[str, Any]) -> None:
    device = next(trainer.model.parameters()).device
    trainer.model.load_state_dict(under("model/", tensors))
    trainer.best = {name: value.to(device) for name, value in under("best/", tensors).items()}
    restore_memory_(trainer.optimizer, under("optimizer/", tensors))
    trainer.sparsify.restore(under("sparsify/", tensors))
    torch.set_rng_state(tensors["random/cpu"])
    if torch.cuda.is_available() and "random/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random/cuda"])
    trainer.losses = list(tensors["losses"].to(device)) if "losses" in tensors else []
    trainer.step, trainer.curve, trainer.seconds = facts["step"], facts["curve"], facts["seconds"]
