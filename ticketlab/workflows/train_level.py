"""One level: train a ticket, watch validation loss, save on the way, read the test set at the end."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from ticketlab.cost import layer_macs, masked_flops, shares, training_flops
from ticketlab.data.batches import Examples, Splits
from ticketlab.errors import FailedRun, Interrupted, Stop
from ticketlab.fusion.paths import effective_density
from ticketlab.pruning.masks import Mask, remaining
from ticketlab.runs.store import Level, RunStore
from ticketlab.runs.tensorboard import LevelEvents, log_level
from ticketlab.runs.ticket import Ticket
from ticketlab.seeds import derive_seed
from ticketlab.training.gates import without_gates
from ticketlab.training.loop import evaluate, revived
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.progress import Progress, Seen
from ticketlab.workflows.trainer import (
    LevelTask,
    Seer,
    Trainer,
    Watch,
    keep_checkpoint,
    level_steps,
    make_trainer,
    restore,
)

SEEN = 1000
"""Training images whose mean is shown behind the first layer's mask."""


@dataclass(frozen=True)
class Settings:
    """How a run is carried out; none of it changes what is asked of it."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    checkpoint_seconds: float = 15.0
    """Time between checkpoints inside a level."""
    should_stop: Stop = lambda: False
    """Asked after each step and while examples are looked at; once true, the state is saved and Interrupted raised."""


def train_level(
    plan: Plan, store: RunStore, task: LevelTask, settings: Settings, watches: Sequence[Watch] = ()
) -> Iterator[Seen]:
    """Train one ticket from its start to its stop; take up a checkpoint if there is one.

    Raises Interrupted after saving when asked to stop, FailedRun when the loss is no longer a number.
    """
    splits = plan.splits.to(settings.device)
    trainer = make_trainer(plan, task, settings.device)
    net = trainer.net
    torch.manual_seed(derive_seed(task.seed, "noise", task.level))
    restore(trainer, watches, store.read_checkpoint(task.replicate, task.level))
    saved_at = time.monotonic()
    with LevelEvents(store.level_dir(task.replicate, task.level), trainer.step) as events:
        if trainer.step == task.start:
            _keep_rewind_point(plan, store, task, trainer)
        began = time.perf_counter()
        stop = trainer.step if _is_done(watches) else task.stop
        for step in level_steps(plan, task, trainer, splits.train, stop, _seer(watches)):
            trainer.step = step.index
            trainer.losses.append(step.loss)
            _keep_rewind_point(plan, store, task, trainer)
            for watch in watches:
                spent = trainer.seconds + time.perf_counter() - began
                yield from watch.after_step(step.index, trainer.model, spent, events)
            is_last = step.index == task.stop or _is_done(watches)
            if (step.index - task.start) % plan.evaluate_every == 0 or is_last:
                point = _measure(plan, trainer, splits.validation, watches, began)
                events.point(step.index, point)
                yield Progress(task.replicate, task.level, task.start, step.index, task.stop, point["val_accuracy"])
                began = time.perf_counter()
            stopping = settings.should_stop()
            if stopping or time.monotonic() - saved_at >= settings.checkpoint_seconds:
                events.flush()
                keep_checkpoint(trainer, watches, store, task)
                saved_at = time.monotonic()
            if stopping:
                raise Interrupted(f"stopped in level {task.level} at step {step.index}; the state is saved")
            if is_last:
                break
        for watch in watches:
            watch.finish(trainer.step, events)
        final = net.whole(trainer.model.state_dict())
        events.weights(final, net.masks(), trainer.step)
    if task.stop < plan.steps:
        store.write_optimizer(task.replicate, task.level, net.optimizer_state(trainer.optimizer))
    level = _finish(plan, task, trainer, watches, splits)
    seen = splits.train.images[:SEEN].float().mean(dim=(0, 1)).cpu().numpy()
    # a method that prunes in training may have written another mask than the level began with
    masks = [ticket.mask if ticket else {} for ticket in _tickets(store, task)]
    log_level(store.replicate_dir(task.replicate), level, masks[1], masks[0], seen)
    store.write_level(level, net.whole(trainer.best), final)
    yield level


def _is_done(watches: Sequence[Watch]) -> bool:
    return any(watch.is_done for watch in watches)


def _seer(watches: Sequence[Watch]) -> Callable[[int], None] | None:
    """Who looks at the gradients of all weights, if anyone does."""
    return next((watch.see for watch in watches if isinstance(watch, Seer)), None)


def _strengths(plan: Plan) -> str:
    """Fields of the recipe with which training can diverge."""
    recipe = plan.recipe
    fields = {
        "train.sparsify.strength": recipe.train.sparsify,
        "train.gradient_noise": recipe.train.gradient_noise,
        "dynamic.l1": recipe.dynamic.l1,
        "dynamic.temperature": recipe.dynamic.temperature,
    }
    return " or ".join(["train.lr", *(name for name, value in fields.items() if value)])


def _measure(
    plan: Plan, trainer: Trainer, validation: Examples, watches: Sequence[Watch], began: float
) -> dict[str, float]:
    """Add a point to the curve and keep the weights if their validation loss is the smallest so far."""
    train_loss = torch.stack(trainer.losses).cpu().double().mean().item()
    trained = time.perf_counter() - began
    if not math.isfinite(train_loss):
        raise FailedRun(
            f"training diverged before step {trainer.step} (loss {train_loss}); try a lower {_strengths(plan)}"
        )
    assert not revived(trainer.model, trainer.net.mask), "a removed weight came back to life"
    val_loss, val_accuracy = evaluate(trainer.model, validation)
    if not math.isfinite(val_loss):
        raise FailedRun(f"validation loss is {val_loss} at step {trainer.step}; try a lower {_strengths(plan)}")
    point = {
        "step": trainer.step,
        "train_loss": train_loss,
        "val_loss": val_loss,
        "val_accuracy": val_accuracy,
        "lr": trainer.optimizer.param_groups[0]["lr"],
        "step_ms": 1e3 * trained / len(trainer.losses),
    }
    point |= trainer.sparsify.point()
    for watch in watches:
        point |= watch.point(trainer.step)
    trainer.curve.append(point)
    trainer.losses.clear()
    trainer.seconds += time.perf_counter() - began
    if trainer.best_point() is point:
        trainer.best = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    return point


def _keep_rewind_point(plan: Plan, store: RunStore, task: LevelTask, trainer: Trainer) -> None:
    """Level 0 leaves the weights at the rewind step behind for the levels after it."""
    if task.level == 0 and trainer.step == plan.rewind:
        # those that later levels train have no gates
        store.write_rewind(task.replicate, without_gates(trainer.model.state_dict()), plan.rewind)


def _tickets(store: RunStore, task: LevelTask) -> list[Ticket | None]:
    """Of the level before, and of this one."""
    return [store.read_ticket(task.replicate, level) for level in (task.level - 1, task.level)]


def _finish(plan: Plan, task: LevelTask, trainer: Trainer, watches: Sequence[Watch], splits: Splits) -> Level:
    """Read the test set at the end and at the early-stop step, once each."""
    began = time.perf_counter()
    early, last = trainer.best_point(), trainer.curve[-1]
    assert early is not None, "a level ends after it has its density"
    final_loss, final_accuracy = evaluate(trainer.model, splits.test)
    trainer.model.load_state_dict(trainer.best)
    test_loss, test_accuracy = evaluate(trainer.model, splits.test)
    mask, total, shape = trainer.net.masks(), sum(plan.sizes.values()), plan.data.dataset.input_shape
    examples = (trainer.step - task.start) * plan.recipe.train.batch_size
    dense = training_flops(trainer.whole, shape)
    looking = sum(dense.values()) * task.looks
    products = trainer.sparsify.products
    step = {layer: count * products.get(f"{layer}.weight", 1) for layer, count in dense.items()}
    executed, left = masked_flops(step, _mean_shares(plan, task, mask), shares(trainer.net.sparse))
    extra = {name: value for watch in watches for name, value in watch.record().items()}
    return Level(
        replicate=task.replicate,
        seed=task.seed,
        level=task.level,
        density=remaining(mask) / total,
        remaining=remaining(mask),
        total=total,
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
        layers={name: int(mask[name].sum()) / plan.sizes[name] for name in task.mask},
        curve=tuple(trainer.curve),
        # frozen weights make paths and operations of their own
        effective_density=None if task.frozen else effective_density(trainer.whole, shape, mask, total),
        flops=None if task.frozen else executed * examples + looking,
        remaining_flops=None if task.frozen else left * examples + looking + _growing(trainer.whole, shape, task),
        looking_flops=looking,
        looking_seconds=task.spent,
        **extra,
    )


def _growing(model: nn.Module, shape: Sequence[int], task: LevelTask) -> float:
    """Operations of the gradients of weights that were removed."""
    if not task.dense_gradients:
        return 0.0
    kept = {name.removesuffix(".weight"): share for name, share in shares(task.mask).items()}
    removed = sum(count * (1 - kept.get(layer, 1.0)) for layer, count in layer_macs(model, shape).items())
    return 2.0 * removed * task.dense_gradients


def _mean_shares(plan: Plan, task: LevelTask, end: Mask) -> dict[str, float]:
    """Share of each layer's weights that a level had on average; taken as falling evenly where they go at once."""
    lost = (task.settled - task.start) / (2 * (task.stop - task.start)) if task.settled else 0.0
    first, last = shares(task.mask), shares(end)
    return {name: first[name] * lost + last[name] * (1 - lost) for name in last}
