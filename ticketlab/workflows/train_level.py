"""One level: train a ticket, watch validation loss, save on the way, read the test set at the end."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ticketlab.data.batches import Examples, Splits, shuffled_batches
from ticketlab.errors import FailedRun, Interrupted
from ticketlab.pruning.masks import Mask, density, layer_densities, remaining, total
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
    start: int
    final_lr: bool
    """Train at the schedule's last learning rate throughout."""


@dataclass(frozen=True)
class Progress:
    """How far a level is."""

    replicate: int
    level: int
    step: int
    stop: int
    val_accuracy: float


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


def train_level(plan: Plan, store: RunStore, task: LevelTask, settings: Settings) -> Iterator[Progress | Level]:
    """Train one ticket from its start to the end of the schedule; take up a checkpoint if there is one.

    Raises Interrupted after saving when asked to stop, FailedRun when the loss is no longer a number.
    """
    splits = plan.splits.to(settings.device)
    net = make_trainable(plan.build(0), task.weights, task.mask, settings.device)
    trainer = Trainer(net.model, make_optimizer(net.model.parameters(), plan.recipe.train), task.start)
    torch.manual_seed(derive_seed(task.seed, "noise", task.level))
    _restore(trainer, store.read_checkpoint(task.replicate, task.level))
    saved_at = time.monotonic()
    with LevelEvents(store.level_dir(task.replicate, task.level), trainer.step) as events:
        if trainer.step == task.start:
            _keep_rewind_point(plan, store, task, trainer)
        began = time.perf_counter()
        for step in _steps(plan, task, trainer, splits.train, net.mask):
            trainer.step = step.index
            trainer.losses.append(step.loss)
            if (step.index - task.start) % plan.evaluate_every == 0 or step.index == plan.steps:
                point = _measure(trainer, splits.validation, net.mask, began)
                events.point(step.index, point)
                yield Progress(task.replicate, task.level, step.index, plan.steps, point["val_accuracy"])
                began = time.perf_counter()
            _keep_rewind_point(plan, store, task, trainer)
            stopping = settings.should_stop()
            if stopping or time.monotonic() - saved_at >= settings.checkpoint_seconds:
                events.flush()
                _save(trainer, store, task)
                saved_at = time.monotonic()
            if stopping:
                raise Interrupted(f"stopped in level {task.level} at step {step.index}; the state is saved")
        final = net.whole(trainer.model.state_dict())
        events.weights(final, task.mask, trainer.step)
    level = _finish(task, trainer, splits)
    log_level(store.replicate_dir(task.replicate), level)
    store.write_level(level, net.whole(trainer.best), final)
    yield level


def _steps(plan: Plan, task: LevelTask, trainer: Trainer, examples: Examples, mask: Mask) -> Iterator[Step]:
    """Optimizer steps from where the trainer stands to the end of the schedule."""
    train = plan.recipe.train
    order = derive_seed(task.seed, "order")
    batches = shuffled_batches(examples, train.batch_size, order, trainer.step, plan.recipe.data.augment)

    def rate(step: int) -> float:
        return learning_rate(train, plan.steps - 1 if task.final_lr else step, plan.steps_per_epoch)

    return train_steps(trainer.model, batches, trainer.optimizer, rate, mask, trainer.step, plan.steps)


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


def _finish(task: LevelTask, trainer: Trainer, splits: Splits) -> Level:
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
        density=density(task.mask),
        remaining=remaining(task.mask),
        total=total(task.mask),
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
        layers=layer_densities(task.mask),
        curve=tuple(trainer.curve),
    )


def _save(trainer: Trainer, store: RunStore, task: LevelTask) -> None:
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
    store.write_checkpoint(task.replicate, task.level, tensors, facts)


def _restore(trainer: Trainer, checkpoint: tuple[State, dict[str, Any]] | None) -> None:
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


def _under(prefix: str, tensors: State) -> State:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
