"""How fast this machine trains a plan's network: real steps and evaluations, timed; nothing of them is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

import numpy as np
import torch

from ticketlab.errors import Interrupted, Stop
from ticketlab.pruning.allocate import prune
from ticketlab.pruning.masks import Mask, full_mask, masked
from ticketlab.recipe_file import RecipeFile
from ticketlab.runs.files import scratch
from ticketlab.runs.store import RunStore
from ticketlab.training.loop import evaluate
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.run import Machine, plan_on
from ticketlab.workflows.tickets import looks
from ticketlab.workflows.train_level import Settings, train_level
from ticketlab.workflows.trainer import LevelTask, level_steps, make_trainer
from ticketlab.workflows.workers import run_jobs

TIMED_SECONDS = 0.6
"""How long steps are timed; at least one, beside a first one that warms up."""
DOUBLE = 2.0
"""Double precision takes about so many times as long."""
TIMED_EXAMPLES = 1000
"""Examples whose evaluation is timed."""
TIMED_LEVELS = 4
"""Levels whose steps are timed beside level 0, where there are more."""
FEW = 5
"""Optimizer steps of a level that is trained for everything but its steps."""


@dataclass(frozen=True)
class Pace:
    """Seconds on this machine."""

    steps: Mapping[int, float]
    """One optimizer step, by level; levels between two of them lie between."""
    example: float
    """Evaluating one example."""
    level: float = 0.0
    """What a level takes beside its steps and evaluations."""
    start: float = 0.0
    """From the start of a process to its first step."""

    def level_seconds(self, plan: Plan, level: int, steps: int) -> float:
        """A level of so many steps, with what its mask takes, its evaluations on the grid and the test set twice."""
        points = -(-steps // plan.evaluate_every)
        examples = points * len(plan.splits.validation) + 2 * len(plan.splits.test)
        looking = DOUBLE * looks(plan, level) * self.step(0) / plan.recipe.train.batch_size
        return steps * self.step(level) + examples * self.example + self.level + looking

    def step(self, level: int) -> float:
        """One optimizer step at a level."""
        return float(np.interp(level, list(self.steps), list(self.steps.values())))


def measure(plan: Plan, device: torch.device, levels: Sequence[int] = (0,)) -> Pace:
    """Time some steps at these levels, and evaluation."""
    some = plan.splits.validation.first(TIMED_EXAMPLES).to(device)
    steps = {level: _step_seconds(plan, device, level) for level in levels}
    model = make_trainer(plan, _task(plan, 0, 1), device).model
    example = _timed(lambda: evaluate(model, some)) / len(some)
    return Pace(steps, example)


def timed_levels(plan: Plan) -> list[int]:
    """Levels over which the time of a step may change: the dense one, the last one, some between."""
    return sorted({round(share * plan.levels / TIMED_LEVELS) for share in range(TIMED_LEVELS + 1)})


def measure_at_work(plan: Plan, machine: Machine, device: torch.device, workers: int, should_stop: Stop) -> Pace:
    """The mean pace of so many processes that are timed at once, as they will work at once."""
    began = time.time()
    body = partial(_measured, plan.file, machine, str(device))
    jobs = {number: f"timing {number}" for number in range(workers)}
    found = [event for event in run_jobs(body, jobs, workers, should_stop) if isinstance(event, Pace)]
    return Pace(
        steps={level: fmean(one.steps[level] for one in found) for level in found[0].steps},
        example=fmean(one.example for one in found),
        level=fmean(one.level for one in found),
        start=fmean(one.start for one in found) - began,
    )


def _measured(file: RecipeFile, machine: Machine, device: str, _: int, should_stop: Stop) -> Iterator[Pace]:
    """The pace in this process; `start` is the time of day at which it was ready to train."""
    torch.set_num_threads(machine.threads)
    plan = plan_on(file, machine)
    where = torch.device(device)
    _level_seconds(plan, where)  # the first level loads what a process needs once
    ready = time.time()
    if should_stop():
        raise Interrupted("stopped; nothing was trained yet")
    pace = measure(plan, where, timed_levels(plan))
    whole = _level_seconds(plan, where)
    beside = whole - FEW * pace.step(0) - _examples_read(plan) * pace.example
    yield replace(pace, level=max(beside, 0.0), start=ready)


def _examples_read(plan: Plan) -> int:
    """Examples evaluated by a level with a single point on its curve."""
    return len(plan.splits.validation) + 2 * len(plan.splits.test)


def _level_seconds(plan: Plan, device: torch.device) -> float:
    """A whole level of a few steps, with all that it writes."""
    short = replace(plan, steps=FEW, rewind=0, evaluate_every=FEW)
    with scratch() as folder:
        return _timed(lambda: list(train_level(short, RunStore(folder), _task(plan, 0, FEW), Settings(device))))


def _step_seconds(plan: Plan, device: torch.device, level: int) -> float:
    trainer = make_trainer(plan, _task(plan, level, 10**6), device)
    steps = level_steps(plan, _task(plan, level, 10**6), trainer, plan.splits.train.to(device), 10**6)
    next(steps)
    began, count = time.perf_counter(), 0
    while not count or time.perf_counter() - began < TIMED_SECONDS:
        next(steps).loss.item()  # waits for a device that works on its own
        count += 1
    return (time.perf_counter() - began) / count


def _task(plan: Plan, level: int, steps: int) -> LevelTask:
    """A level with the right number of weights; which ones makes no difference to its time."""
    weights = plan.build(plan.recipe.seed).state_dict()
    mask = _mask(plan, level)
    moves = plan.rewiring is not None and level > 0
    return LevelTask(1, plan.recipe.seed, level, mask, masked(weights, mask), 0, steps, may_grow=moves)


def _mask(plan: Plan, level: int) -> Mask:
    model = plan.build(plan.recipe.seed)
    whole = full_mask(model)
    if not level:
        return whole
    weights = model.state_dict()
    return prune({name: weights[name].abs() for name in whole}, whole, plan.pools, plan.keeps(level))


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
