"""One learned mask: train scores over fixed weights, choose on validation data, save on the way, read the test once.

RUN/supermask/edge_popup_init_density0.5_5ep_lr1/replicate_1/
  level_0/       checkpoint while training, ticket (the mask, and the weights that the network computes with), events
  scores.safetensors, mask.json
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ticketlab.data.batches import Examples, shuffled_batches
from ticketlab.errors import FailedRun, Interrupted, TicketlabError
from ticketlab.pruning.controls import constants
from ticketlab.pruning.learned_masks import (
    LEARNED,
    LearnedMask,
    attach_,
    draw_,
    expected_density,
    fixed_weights,
    seen_state,
    settle_,
)
from ticketlab.pruning.masks import State, full_mask
from ticketlab.registry import did_you_mean
from ticketlab.runs.files import under
from ticketlab.runs.store import RunStore
from ticketlab.runs.tensorboard import LevelEvents
from ticketlab.runs.ticket import Ticket
from ticketlab.seeds import derive_seed
from ticketlab.steps import Duration, parse_duration
from ticketlab.training.loop import Step, evaluate, train_steps
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.progress import Notice, Progress
from ticketlab.workflows.tickets import replicate_seed, ticket_facts, ticket_weights
from ticketlab.workflows.train_level import Settings
from ticketlab.workflows.trunk import Branch

WEIGHTS = ("init", "signed_constant")
"""What a mask is laid over: initial weights, or their signs times the deviation of their layer."""
STEPS, DENSITY, MOMENTUM = "5ep", 0.5, 0.9
LR = {"edge_popup": 1.0, "bernoulli": 100.0}
"""Learning rates that were good for LeNet-300-100 (docs/supermasks.md)."""
POINTS = 40
"""Times that validation accuracy is read in a training."""
MASK = "mask.json"


@dataclass(frozen=True)
class Learning:
    """How a mask is learned."""

    method: str
    weights: str
    density: float | None
    """Fraction of each layer that edge_popup keeps; None for bernoulli, which finds its own."""
    rescale: bool
    steps: Duration
    lr: float
    """At the start; it falls to 0 along half a cosine."""

    @property
    def folder(self) -> str:
        """Where it is kept in a run."""
        parts = [self.method, self.weights, *([f"density{self.density:g}"] if self.density else [])]
        parts += [*(["rescaled"] if self.rescale else []), str(self.steps), f"lr{self.lr:g}"]
        return "supermask/" + "_".join(parts)

    def record(self) -> dict[str, Any]:
        """The same in plain values."""
        return {**asdict(self), "steps": str(self.steps)}


def ask_learning(
    method: str | None, weights: str | None, density: float | None, rescale: bool, steps: str | None, lr: float | None
) -> Learning | None:
    """What the user asks of a learned mask, None for no such thing; raises TicketlabError for what cannot be."""
    if method is None:
        given = {"--weights": weights, "--density": density, "--rescale": rescale or None, "--steps": steps, "--lr": lr}
        wrong = [name for name, value in given.items() if value is not None]
        if wrong:
            raise TicketlabError(f"{', '.join(wrong)}: only with --learn {' or --learn '.join(LEARNED)}")
        return None
    if method not in LEARNED:
        raise TicketlabError(f"--learn {method}: no such way{did_you_mean(method, LEARNED)}")
    if weights is not None and weights not in WEIGHTS:
        raise TicketlabError(f"--weights {weights}: no such weights{did_you_mean(weights, WEIGHTS)}")
    if method == "bernoulli" and density is not None:
        raise TicketlabError("--density: bernoulli finds its own density; leave it out, or --learn edge_popup")
    if density is not None and not 0 < density < 1:
        raise TicketlabError(f"--density {density:g}: a fraction between 0 and 1, such as 0.5")
    if lr is not None and not 0 < lr < math.inf:
        raise TicketlabError(f"--lr {lr:g}: a number above 0")
    try:
        length = parse_duration(STEPS if steps is None else steps)
    except ValueError as error:
        raise TicketlabError(f"--steps {steps}: {error}") from error
    if not length.count:
        raise TicketlabError("--steps: a training needs at least 1it")
    kept = None if method == "bernoulli" else density or DENSITY
    return Learning(method, weights or WEIGHTS[0], kept, rescale, length, lr or LR[method])


@dataclass
class Learner:
    """The changing state of a training: all of it goes into a checkpoint."""

    model: nn.Module
    masks: dict[str, LearnedMask]
    optimizer: torch.optim.Optimizer
    seed: int
    stop: int
    """Step at which the training ends."""
    step: int = 0
    best: State = field(default_factory=dict)
    """Of the point with the highest validation accuracy, the first of several."""
    curve: list[dict[str, float]] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    """Of the steps since the last point of the curve."""
    seconds: float = 0.0

    def best_point(self) -> dict[str, float]:
        """The point of the curve with the highest validation accuracy; the first of several."""
        return max(self.curve, key=lambda point: point["val_accuracy"])

    def learning_rate(self, step: int) -> float:
        """Of a step; the first is 0."""
        lr: float = self.optimizer.defaults["lr"]
        return lr * (1 + math.cos(math.pi * step / self.stop)) / 2


def initial_weights(plan: Plan, store: RunStore, replicate: int) -> State:
    """The weights that a replicate drew before any training, whatever step it rewinds to."""
    ticket = store.read_ticket(replicate, 0)
    assert ticket is not None, "a finished level has its ticket"
    return ticket_weights(plan, ticket)


def weights_of_kind(kind: str, initial: State, plan: Plan) -> State:
    """Initial weights, or signed constants in their place (Zhou et al. 2019, section 5); the rest as it was drawn."""
    if kind == "init":
        return initial
    return {**initial, **constants(initial, full_mask(plan.build(0)))}


def learn_mask(
    learning: Learning, plan: Plan, store: RunStore, branch: Branch, settings: Settings
) -> Iterator[Progress | Notice]:
    """Train one mask over the weights of a replicate; take up a checkpoint if there is one.

    Raises Interrupted after saving when asked to stop, FailedRun when the loss is no longer a number.
    """
    part, replicate = store.part(branch.folder), branch.replicate
    if has_mask(part, replicate):
        return
    splits = plan.splits.to(settings.device)
    weights = weights_of_kind(learning.weights, initial_weights(plan, store, replicate), plan)
    learner = _make_learner(learning, plan, replicate, weights, settings.device)
    _restore(learner, part.read_checkpoint(replicate, 0))
    every = max(1, learner.stop // POINTS)
    saved_at = time.monotonic()
    with LevelEvents(part.level_dir(replicate, 0), learner.step) as events:
        began = time.perf_counter()
        for step in _steps(plan, learner, splits.train):
            learner.step = step.index
            learner.losses.append(step.loss)
            if step.index % every == 0 or step.index == learner.stop:
                point = _measure(learner, splits.validation, began)
                events.point(step.index, point)
                yield Progress(replicate, 0, 0, step.index, learner.stop, point["val_accuracy"])
                began = time.perf_counter()
            stopping = settings.should_stop()
            if stopping or time.monotonic() - saved_at >= settings.checkpoint_seconds:
                events.flush()
                _save(learner, part, replicate)
                saved_at = time.monotonic()
            if stopping:
                raise Interrupted(f"stopped at step {step.index} of {branch.name}; the state is saved")
    fixed = fixed_weights(learner.model, learner.masks)
    assert all(torch.equal(values.cpu(), weights[name]) for name, values in fixed.items()), "weights were trained"
    record = _finish(learning, plan, part, learner, replicate)
    yield Notice(f"test accuracy {100 * record['test_accuracy']:.2f} % at step {record['step']}")


def has_mask(part: RunStore, replicate: int) -> bool:
    """Whether a replicate's mask has been learned."""
    return part.has_result(f"{part.replicate_dir(replicate).name}/{MASK}")


def read_mask(part: RunStore, replicate: int) -> dict[str, Any]:
    """What came of a replicate's mask."""
    return part.read_result(f"{part.replicate_dir(replicate).name}/{MASK}")


def judge(learner: Learner, examples: Examples) -> tuple[float, float]:
    """Cross-entropy and accuracy, mean over the masks that the scores stand for: one, or ten drawn ones."""
    count = max(mask.samples for mask in learner.masks.values())
    found = []
    for number in range(count):
        # the same numbers at every point of a curve, so that points differ by their scores alone
        draw_(learner.masks, derive_seed(learner.seed, "judged mask", number))
        found.append(evaluate(learner.model, examples))
    return sum(loss for loss, _ in found) / count, sum(accuracy for _, accuracy in found) / count


def _make_learner(learning: Learning, plan: Plan, replicate: int, weights: State, device: torch.device) -> Learner:
    seed = replicate_seed(plan, replicate)
    model = plan.build(0)
    model.load_state_dict(weights)
    generator = torch.Generator().manual_seed(derive_seed(seed, "scores"))
    masks = attach_(model, learning.method, learning.density or 1.0, learning.rescale, generator)
    model.to(device)
    scores = [mask.scores for mask in masks.values()]
    optimizer = torch.optim.SGD(scores, lr=learning.lr, momentum=MOMENTUM, fused=True)
    return Learner(model, masks, optimizer, seed, learning.steps.steps(plan.steps_per_epoch))


def _steps(plan: Plan, learner: Learner, examples: Examples) -> Iterator[Step]:
    """Optimizer steps from where the learner stands, through the batches that the run's networks were trained with."""
    batches = shuffled_batches(
        examples, plan.recipe.train.batch_size, derive_seed(learner.seed, "order"), learner.step,
        plan.recipe.data.augment,
    )  # fmt: skip

    def drawing() -> Iterator[tuple[Tensor, Tensor]]:
        for step, batch in enumerate(batches, start=learner.step):
            draw_(learner.masks, derive_seed(learner.seed, "mask", step))
            # dropout's, likewise: what depends on the step alone needs no state in a checkpoint
            torch.manual_seed(derive_seed(learner.seed, "noise", step))
            yield batch

    rate = learner.learning_rate
    return train_steps(learner.model, drawing(), learner.optimizer, rate, {}, learner.step, learner.stop)


def _measure(learner: Learner, validation: Examples, began: float) -> dict[str, float]:
    """Add a point to the curve and keep the state if its validation accuracy is the highest so far."""
    train_loss = torch.stack(learner.losses).cpu().double().mean().item()
    if not math.isfinite(train_loss):
        raise FailedRun(f"training diverged before step {learner.step} (loss {train_loss}); try a lower --lr")
    val_loss, val_accuracy = judge(learner, validation)
    point = {
        "step": learner.step,
        "train_loss": train_loss,
        "val_loss": val_loss,
        "val_accuracy": val_accuracy,
        "density": expected_density(learner.masks),
        "lr": learner.learning_rate(learner.step - 1),
    }
    learner.curve.append(point)
    learner.losses.clear()
    learner.seconds += time.perf_counter() - began
    if learner.best_point() is point:
        learner.best = {name: value.clone() for name, value in learner.model.state_dict().items()}
    return point


def _finish(learning: Learning, plan: Plan, part: RunStore, learner: Learner, replicate: int) -> dict[str, Any]:
    """Read the test set at the best point; keep the scores, the ticket and, last, the record."""
    began = time.perf_counter()
    device = next(learner.model.parameters()).device
    test = plan.splits.test.to(device)
    learner.model.load_state_dict(learner.best)
    best = learner.best_point()
    test_loss, test_accuracy = judge(learner, test)
    settled = settle_(learner.masks)
    is_drawn = learning.method == "bernoulli"
    record = {
        **learning.record(),
        "replicate": replicate,
        "seed": learner.seed,
        "step": int(best["step"]),
        "val_accuracy": best["val_accuracy"],
        "val_loss": best["val_loss"],
        "test_accuracy": test_accuracy,
        "test_loss": test_loss,
        "kept_density": best["density"],
        "layers": {name: mask.density() for name, mask in learner.masks.items()},
        # of the one mask of the weights that are more likely to stay than to go
        "threshold_test_accuracy": evaluate(learner.model, test)[1] if is_drawn else None,
        "curve": learner.curve,
        "seconds": learner.seconds + time.perf_counter() - began,
    }
    facts = {**ticket_facts(plan, replicate, 0, 0), "learned": learning.record()}
    mask = {name: kept.cpu() for name, kept in settled.items()}
    part.write_ticket(replicate, 0, Ticket(mask, seen_state(learner.model, learner.masks), facts))
    part.write_scores(replicate, {name: mask.scores for name, mask in learner.masks.items()}, learning.record())
    folder = part.replicate_dir(replicate).name
    part.write_result(f"{folder}/{MASK}", record)
    part.forget(f"{folder}/level_0/checkpoint.safetensors")
    return record


def _save(learner: Learner, part: RunStore, replicate: int) -> None:
    """Everything that the next step depends on, and what will be reported; draws depend on the step alone."""
    tensors = {f"model/{name}": value for name, value in learner.model.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in learner.best.items()}
    for name, mask in learner.masks.items():
        tensors[f"momentum/{name}"] = learner.optimizer.state[mask.scores]["momentum_buffer"]
    if learner.losses:
        tensors["losses"] = torch.stack(learner.losses)
    facts = {"step": learner.step, "curve": learner.curve, "seconds": learner.seconds}
    part.write_checkpoint(replicate, 0, tensors, facts)


def _restore(learner: Learner, checkpoint: tuple[State, dict[str, Any]] | None) -> None:
    if checkpoint is None:
        return
    tensors, facts = checkpoint
    device = next(learner.model.parameters()).device
    learner.model.load_state_dict(under("model/", tensors))
    learner.best = {name: value.to(device) for name, value in under("best/", tensors).items()}
    for name, value in under("momentum/", tensors).items():
        learner.optimizer.state[learner.masks[name].scores]["momentum_buffer"] = value.to(device)
    learner.losses = list(tensors["losses"].to(device)) if "losses" in tensors else []
    learner.step, learner.curve, learner.seconds = facts["step"], facts["curve"], facts["seconds"]
