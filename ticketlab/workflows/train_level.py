"""One level: train a ticket, watch validation loss, save on the way, read the test set at the end."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ticketlab.cost import layer_macs, masked_flops, shares, training_flops
from ticketlab.data.batches import Examples, Splits, shuffled_batches
from ticketlab.errors import FailedRun, Interrupted, RunError
from ticketlab.fusion.paths import effective_density
from ticketlab.models.compact import rebuild
from ticketlab.pruning.masks import Mask, State, remaining
from ticketlab.runs.files import under
from ticketlab.runs.store import Level, RunStore
from ticketlab.runs.tensorboard import LevelEvents, log_level
from ticketlab.runs.ticket import Ticket
from ticketlab.seeds import derive_seed
from ticketlab.training.frozen import keep_frozen_
from ticketlab.training.gates import without_gates
from ticketlab.training.loop import Adjust, Step, evaluate, revived, train_steps
from ticketlab.training.optim import learning_rate, make_optimizer, numbered
from ticketlab.training.sparsify import Drift, Sparsify, make_sparsify
from ticketlab.training.trainable import Trainable, make_trainable
from ticketlab.workflows.plan import Plan

SEEN = 1000
"""Training images whose mean is shown behind the first layer's mask."""


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
    _restore(trainer, watches, store.read_checkpoint(task.replicate, task.level))
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
                point = _measure(trainer, splits.validation, watches, began)
                events.point(step.index, point)
                yield Progress(task.replicate, task.level, task.start, step.index, task.stop, point["val_accuracy"])
                began = time.perf_counter()
            stopping = settings.should_stop()
            if stopping or time.monotonic() - saved_at >= settings.checkpoint_seconds:
                events.flush()
                _save(trainer, watches, store, task)
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


def _is_done(watches: Sequence[Watch]) -> bool:
    return any(watch.is_done for watch in watches)


def _seer(watches: Sequence[Watch]) -> Callable[[int], None] | None:
    """Who looks at the gradients of all weights, if anyone does."""
    return next((watch.see for watch in watches if isinstance(watch, Seer)), None)


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


def _measure(trainer: Trainer, validation: Examples, watches: Sequence[Watch], began: float) -> dict[str, float]:
    """Add a point to the curve and keep the weights if their validation loss is the smallest so far."""
    train_loss = torch.stack(trainer.losses).cpu().double().mean().item()
    trained = time.perf_counter() - began
    if not math.isfinite(train_loss):
        raise FailedRun(f"training diverged before step {trainer.step} (loss {train_loss}); try a lower train.lr")
    assert not revived(trainer.model, trainer.net.mask), "a removed weight came back to life"
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


def _save(trainer: Trainer, watches: Sequence[Watch], store: RunStore, task: LevelTask) -> None:
    """Everything that the next step depends on, and what the level will report."""
    tensors = {f"model/{name}": value for name, value in trainer.model.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in trainer.best.items()}
    for index, state in trainer.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{n}": v for n, v in state.items() if isinstance(v, Tensor)}
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


def _restore(trainer: Trainer, watches: Sequence[Watch], checkpoint: tuple[State, dict[str, Any]] | None) -> None:
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
    groups = trainer.optimizer.state_dict()["param_groups"]
    trainer.optimizer.load_state_dict({"state": numbered(under("optimizer/", tensors)), "param_groups": groups})
    trainer.sparsify.restore(under("sparsify/", tensors))
    torch.set_rng_state(tensors["random/cpu"])
    if torch.cuda.is_available() and "random/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random/cuda"])
    trainer.losses = list(tensors["losses"].to(device)) if "losses" in tensors else []
    trainer.step, trainer.curve, trainer.seconds = facts["step"], facts["curve"], facts["seconds"]
