"""Train a fused network on with labels, and its control: the same widths from scratch, as long in all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor, nn

from ticketlab.pruning.masks import full_mask
from ticketlab.recipe import TrainSection
from ticketlab.runs.store import RunStore
from ticketlab.seeds import derive_seed
from ticketlab.steps import Duration
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.progress import Seen
from ticketlab.workflows.source import Source
from ticketlab.workflows.tickets import fresh_weights
from ticketlab.workflows.train_level import Settings, train_level
from ticketlab.workflows.trainer import LevelTask

FINE = {"sgd": 0.1, "adam": 1.0, "adamw": 1.0}
"""Learning rate of retraining against the recipe's: sgd's would throw away what was kept."""
DECAY = (0.4, 0.6, 0.8)
"""Shares of retraining after which the learning rate falls to 3/10."""
LEVEL = 1  # level 0 would leave a rewind point behind


def retrain(source: Source, model: nn.Module, store: RunStore, length: Duration, settings: Settings) -> Iterator[Seen]:
    """Train a compact network on; takes up what was interrupted."""
    plan = source.plan
    steps = length.steps(plan.steps_per_epoch)
    section = fine_tuning(plan.recipe.train, steps)
    yield from _train(source, model, store, section, steps, model.state_dict(), settings)


def fine_tuning(train: TrainSection, steps: int) -> TrainSection:
    """How a fused network is trained on: no warm-up, a learning rate that falls three times."""
    return train.model_copy(
        update={
            "lr": train.lr * FINE[train.optimizer],
            "warmup": Duration(0, "it"),
            "milestones": tuple(Duration(max(1, round(share * steps)), "it") for share in DECAY),
            "gamma": 0.3,
        }
    )


def scratch(
    source: Source, model: nn.Module, store: RunStore, length: Duration, extra: int, settings: Settings
) -> Iterator[Seen]:
    """Train a network of the same widths from fresh weights: as long as the source, `retrain` and `extra` steps."""
    plan = source.plan
    steps = plan.steps + length.steps(plan.steps_per_epoch) + extra
    state = fresh_weights(plan, model, derive_seed(plan.recipe.seed, "scratch"))
    yield from _train(source, model, store, plan.recipe.train, steps, state, settings)


def _train(
    source: Source,
    model: nn.Module,
    store: RunStore,
    train: TrainSection,
    steps: int,
    state: dict[str, Tensor],
    settings: Settings,
) -> Iterator[Seen]:
    """One level with a full mask, in a store of its own."""
    if store.has_level(1, LEVEL):
        yield store.read_level(1, LEVEL)
        return
    recipe = source.plan.recipe.model_copy(update={"train": train})
    plan: Plan = replace(
        source.plan,
        file=source.plan.file.with_recipe(recipe),
        steps=steps,
        rewind=0,
        evaluate_every=max(1, min(source.plan.evaluate_every, steps // 5)),
    )
    weights = {name: value.clone() for name, value in state.items()}
    task = LevelTask(1, recipe.seed, LEVEL, full_mask(model), weights, start=0, stop=steps)
    with store.lock_replicate(1):
        yield from train_level(plan, store, task, settings)
