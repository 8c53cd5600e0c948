"""One level: train a ticket, watch validation loss, save on the way, read the test set at the end."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ticketlab.data.batches import Examples, Splits, shuffled_batches
from ticketlab.errors import FailedRun, Interrupted
from ticketlab.models.compact import rebuild
from ticketlab.pruning.masks import Mask, remaining
from ticketlab.runs.store import Level, RunStore
from ticketlab.runs.tensorboard import LevelEvents, log_level
from ticketlab.seeds import derive_seed
from ticketlab.training.loop import Step, evaluate, revived, train_steps
from ticketlab.training.optim import learning_rate, make_optimizer
from ticketlab.training.sparse import make_trainable
from ticketlab.workflows.plan import Plan

State = dict[str, Tensor]


@dataclass(frozen=True)
class Settings:
    """How a run is carried out; none of it changes what is asked of it."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    checkpoint_seconds: float = 15.0
    """Time between checkpoints inside a level."""
    should_stop: Callable[[], bool] = lambda: False
    """Asked after each step; once true, the state is saved and Interrupted is raised."""


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
    final_lr: bool = False
    """Train at the schedule's last learning rate throughout."""


@dataclass(frozen=True)
class Notice:
    """Something that the user should know and that is no result."""

    text: str


@dataclass(frozen=True)
class Drawn:
    """A ticket was drawn from a network in training."""

    replicate: int
    density: float
    step: int
    stop: int
    chosen: bool
    """Whether the search chose the step; False where the recipe fixed it."""
    settled: bool
    """Whether its mask had stopped moving; False where patience or the training ended first."""
    distance: float | None
    """Largest one to the other masks of the window; None before the window is full."""


@dataclass(frozen=True)
class Progress:
    """How far a level is."""

    replicate: int
    level: int
    start: int
    step: int
    stop: int
    val_accuracy: float


Seen = Progress | Notice | Drawn | Level
"""What a level lets be seen of itself."""


class Watch(Protocol):
    """Who looks on while a level trains, and may end it early."""

    @property
    def is_done(self) -> bool:
        """Whether training may end here."""

    def after_step(self, step: int, model: nn.Module, seconds: float, events: LevelEvents) -> Iterator[Notice | Drawn]:
        """Look at the network after a step, so many seconds into the level."""

    def state(self) -> tuple[State, dict[str, Any]]:
        """What a checkpoint has to keep."""

    def restore(self, tensors: State, facts: dict[str, Any]) -> None:
        """Go on from what `state` gave."""

    def finish(self, events: LevelEvents) -> None:
        """Write down what was seen; the level is about to be finished."""


@dataclass
class Trainer:
    """The changing state of one level: all of it goes into a checkpoint."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int
    best: State = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    """Of the steps since the last point of the curve."""
    seconds: float = 0.0

    def best_point(self) -> dict[str, float]:
        """The point of the curve with the smallest validation loss; the first of several."""
        return min(self.curve, key=lambda point: point["val_loss"])


def train_level(
    plan: Plan, store: RunStore, task: LevelTask, settings: Settings, watch: Watch | None = None
) -> Iterator[Seen]:
    """Train one ticket from its start to the end of the schedule; take up a checkpoint if there is one.

    Raises Interrupted after saving when asked to stop, FailedRun when the loss is no longer a number.
    """
    splits = plan.splits.to(settings.device)
    net = make_trainable(rebuild(plan.build(0), task.weights), task.weights, task.mask, settings.device)
    trainer = Trainer(net.model, make_optimizer(net.model.parameters(), plan.recipe.train), task.start)
    torch.manual_seed(derive_seed(task.seed, "noise", task.level))
    _restore(trainer, watch, store.read_checkpoint(task.replicate, task.level))
    saved_at = time.monotonic()
    with LevelEvents(store.level_dir(task.replicate, task.level), trainer.step) as events:
        if trainer.step == task.start:
            _keep_rewind_point(plan, store, task, trainer)
        began = time.perf_counter()
        stop = trainer.step if watch and watch.is_done else plan.steps
        for step in _steps(plan, task, trainer, splits.train, net.mask, stop):
            trainer.step = step.index
            trainer.losses.append(step.loss)
            _keep_rewind_point(plan, store, task, trainer)
            if watch:
                spent = trainer.seconds + time.perf_counter() - began
                yield from watch.after_step(step.index, trainer.model, spent, events)
            is_last = step.index == plan.steps or (watch is not None and watch.is_done)
            if (step.index - task.start) % plan.evaluate_every == 0 or is_last:
                point = _measure(trainer, splits.validation, net.mask, began)
                events.point(step.index, point)
                yield Progress(task.replicate, task.level, task.start, step.index, plan.steps, point["val_accuracy"])
                began = time.perf_counter()
            stopping = settings.should_stop()
            if stopping or time.monotonic() - saved_at >= settings.checkpoint_seconds:
                events.flush()
                _save(trainer, watch, store, task)
                saved_at = time.monotonic()
            if stopping:
                raise Interrupted(f"stopped in level {task.level} at step {step.index}; the state is saved")
            if is_last:
                break
        if watch:
            watch.finish(events)
        final = net.whole(trainer.model.state_dict())
        events.weights(final, task.mask, trainer.step)
    level = _finish(plan, task, trainer, splits)
    log_level(store.replicate_dir(task.replicate), level)
    store.write_level(level, net.whole(trainer.best), final)
    yield level


def _steps(plan: Plan, task: LevelTask, trainer: Trainer, examples: Examples, mask: Mask, stop: int) -> Iterator[Step]:
    """Optimizer steps from where the trainer stands to `stop`."""
    train = plan.recipe.train
    order = derive_seed(task.seed, "order")
    batches = shuffled_batches(examples, train.batch_size, order, trainer.step, plan.recipe.data.augment)

    def rate(step: int) -> float:
        return learning_rate(train, plan.steps - 1 if task.final_lr else step, plan.steps_per_epoch)

    return train_steps(trainer.model, batches, trainer.optimizer, rate, mask, trainer.step, stop, train.slimming)


def _measure(trainer: Trainer, validation: Examples, mask: Mask, began: float) -> dict[str, float]:
    """Add a point to the curve and keep the weights if their validation loss is the smallest so far."""
    train_loss = torch.stack(trainer.losses).cpu().double().mean().item()
    trained = time.perf_counter() - began
    if not math.isfinite(train_loss):
        raise FailedRun(f"training diverged before step {trainer.step} (loss {train_loss}); try a lower train.lr")
    assert not revived(trainer.model, mask), "a removed weight came back to life"
    val_loss, val_accuracy = evaluate(trainer.model, validation)
    if not math.isfinite(val_loss):
        raise FailedRun(f"validation loss is {val_loss} at step {trainer.step}; try a lower train.lr")
    point = {
        "step": trainer.step,
        "train_loss": train_loss,
        "val_loss": val_loss,
        "val_accuracy": val_accuracy,
        "lr": trainer.optimizer.param_groups[0]["lr"],
        "step_ms": 1e3 * trained / len(trainer.losses),
    }
    trainer.curve.append(point)
    trainer.losses.clear()
    trainer.seconds += time.perf_counter() - began
    if trainer.best_point() is point:
        trainer.best = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    return point


def _keep_rewind_point(plan: Plan, store: RunStore, task: LevelTask, trainer: Trainer) -> None:
    """Level 0 leaves the weights at the rewind step behind for the levels after it."""
    if task.level == 0 and trainer.step == plan.rewind:
        store.write_rewind(task.replicate, trainer.model.state_dict(), plan.rewind)


def _finish(plan: Plan, task: LevelTask, trainer: Trainer, splits: Splits) -> Level:
    """Read the test set at the end and at the early-stop step, once each."""
    began = time.perf_counter()
    early, last = trainer.best_point(), trainer.curve[-1]
    final_loss, final_accuracy = evaluate(trainer.model, splits.test)
    trainer.model.load_state_dict(trainer.best)
    test_loss, test_accuracy = evaluate(trainer.model, splits.test)
    return Level(
        replicate=task.replicate,
        seed=task.seed,
        level=task.level,
        density=remaining(task.mask) / sum(plan.sizes.values()),
        remaining=remaining(task.mask),
        total=sum(plan.sizes.values()),
        val_accuracy=early["val_accuracy"],
        val_loss=early["val_loss"],
        test_accuracy=test_accuracy,
        test_loss=test_loss,
        early_stop_step=int(early["step"]),
        final_val_accuracy=last["val_accuracy"],
        final_test_accuracy=final_accuracy,
        final_test_loss=final_loss,
        steps=trainer.step - task.start,
        seconds=trainer.seconds + time.perf_counter() - began,
        step_ms=statistics.median(point["step_ms"] for point in trainer.curve),
        layers={name: int(kept.sum()) / plan.sizes[name] for name, kept in task.mask.items()},
        curve=tuple(trainer.curve),
    )


def _save(trainer: Trainer, watch: Watch | None, store: RunStore, task: LevelTask) -> None:
    """Everything that the next step depends on, and what the level will report."""
    tensors = {f"model/{name}": value for name, value in trainer.model.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in trainer.best.items()}
    for index, state in trainer.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{n}": v for n, v in state.items() if isinstance(v, Tensor)}
    tensors["random/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    if trainer.losses:
        tensors["losses"] = torch.stack(trainer.losses)
    facts = {"step": trainer.step, "curve": trainer.curve, "seconds": trainer.seconds}
    if watch:
        seen, facts["watch"] = watch.state()
        tensors |= {f"watch/{name}": value for name, value in seen.items()}
    store.write_checkpoint(task.replicate, task.level, tensors, facts)


def _restore(trainer: Trainer, watch: Watch | None, checkpoint: tuple[State, dict[str, Any]] | None) -> None:
    """Put a checkpoint's state in place."""
    if checkpoint is None:
        return
    tensors, facts = checkpoint
    device = next(trainer.model.parameters()).device
    trainer.model.load_state_dict(_under("model/", tensors))
    trainer.best = {name: value.to(device) for name, value in _under("best/", tensors).items()}
    state: dict[int, State] = {}
    for name, value in _under("optimizer/", tensors).items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = value
    groups = trainer.optimizer.state_dict()["param_groups"]
    trainer.optimizer.load_state_dict({"state": state, "param_groups": groups})
    torch.set_rng_state(tensors["random/cpu"])
    if torch.cuda.is_available() and "random/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random/cuda"])
    trainer.losses = list(tensors["losses"].to(device)) if "losses" in tensors else []
    trainer.step, trainer.curve, trainer.seconds = facts["step"], facts["curve"], facts["seconds"]
    if watch:
        watch.restore(_under("watch/", tensors), facts["watch"])


def _under(prefix: str, tensors: State) -> State:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
