"""Instability analysis: copies of a network at step k are trained apart; does the error rise between their ends?

    dense network    trained to step k; each copy goes on with its weights and with what the optimizer remembers
    ticket           weights at step k ⊙ a mask found with rewinding to step k; the optimizer starts empty
    both             every copy to the end of training, with an order of data and an augmentation of its own; then
                     the error at points of the line between each two ends

Source: Frankle, Dziugaite, Roy & Carbin 2020, "Linear mode connectivity and the lottery ticket hypothesis", sections 2
to 4, algorithms 1 and 2. Differs from it in what decides: the error on validation examples. The test set is read where
a training ends, that of a copy or of the dense network to step k; no verdict looks at it.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ticketlab.data.batches import Examples
from ticketlab.errors import Interrupted, Stop
from ticketlab.pruning.connectivity import STABLE_BELOW, barrier, distance, interpolate, positions
from ticketlab.report import Estimate, estimate
from ticketlab.runs.store import RunStore
from ticketlab.seeds import derive_seed
from ticketlab.training.loop import evaluate
from ticketlab.training.recalibrate import recalibrate_
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.progress import Notice, Progress
from ticketlab.workflows.run import Machine
from ticketlab.workflows.tickets import dense_ticket, replicate_seed, ticket_weights
from ticketlab.workflows.train_level import Settings, train_level
from ticketlab.workflows.trainer import LevelTask
from ticketlab.workflows.trunk import Branch, Branched, run_branches, train_sample

SPLITS = ("validation", "train")


@dataclass(frozen=True)
class Interpolation:
    """How many copies of a network there are, and points of the line between each two."""

    copies: int = 2
    points: int = 30
    """Points of each line, both ends among them; the paper's 30."""

    def pairs(self) -> list[tuple[int, int]]:
        """Copies that are joined by a line, counted from 1."""
        return list(itertools.combinations(range(1, self.copies + 1), 2))


@dataclass(frozen=True)
class BranchPoint:
    """A level of a run at a step of its training, where copies begin."""

    store: RunStore
    level: int
    step: int
    replicates: tuple[int, ...]
    """Those that are looked at."""

    @property
    def folder(self) -> str:
        """In the run."""
        return f"stability/level_{self.level}/at_{self.step}"

    @property
    def title(self) -> str:
        """What it is called."""
        return f"level {self.level} at step {self.step}"

    @property
    def part(self) -> RunStore:
        """Where its copies are kept."""
        return self.store.part(self.folder)

    def copy(self, number: int) -> RunStore:
        """The store of one copy."""
        return self.part.part(f"copy_{number}")


@dataclass(frozen=True)
class Line:
    """The error between the ends of two copies is known."""

    replicate: int
    level: int
    barrier: float
    """On validation examples, a fraction of 1."""
    distance: float


def analyse(
    points: Sequence[BranchPoint], interpolation: Interpolation, machine: Machine, should_stop: Stop
) -> Iterator[Branched | Notice]:
    """Train the copies of branch points of one run and walk the lines between them, as far as that is not done yet."""
    store = points[0].store
    with store.lock():
        copies = [
            Branch(f"{point.folder}/copy_{number}", replicate, point.level, f"{point.title}, copy {number}")
            for point, replicate in _replicated(points)
            for number in range(1, interpolation.copies + 1)
            if not point.copy(number).has_level(replicate, point.level)
        ]
        waiting = {(branch.folder.rpartition("/")[0], branch.replicate) for branch in copies}
        trunks = [
            Branch(f"{point.folder}/trunk", replicate, 0, f"dense network to step {point.step}")
            for point, replicate in _replicated(points)
            if point.level == 0 and point.step and (point.folder, replicate) in waiting
        ]
        lines = [
            Branch(point.folder, replicate, point.level, f"{point.title}, line")
            for point, replicate in _replicated(points)
            if not _is_walked(point.part, replicate, interpolation)
        ]
        yield from run_branches(store, trunks, train_trunk, machine, should_stop)
        yield from run_branches(store, copies, train_copy, machine, should_stop)
        yield from run_branches(store, lines, partial(walk_lines, interpolation=interpolation), machine, should_stop)


def _replicated(points: Sequence[BranchPoint]) -> list[tuple[BranchPoint, int]]:
    return [(point, replicate) for point in points for replicate in point.replicates]


def train_trunk(plan: Plan, store: RunStore, branch: Branch, settings: Settings) -> Iterator[object]:
    """The run's dense network once more, up to the step in the folder's name, with what the optimizer remembers there.

    The same seeds give the same weights as in the run.
    """
    part = store.part(branch.folder)
    if part.has_level(branch.replicate, 0):
        return
    ticket = dense_ticket(plan, branch.replicate)
    task = LevelTask(
        replicate=branch.replicate,
        seed=replicate_seed(plan, branch.replicate),
        level=0,
        mask=ticket.mask,
        weights=ticket_weights(plan, ticket),
        start=0,
        stop=_step(branch),
    )
    yield from train_level(_without_rewind_point(plan), part, task, settings)


def train_copy(plan: Plan, store: RunStore, branch: Branch, settings: Settings) -> Iterator[object]:
    """One copy to the end of training; the same number means the same noise at every level and step."""
    part = store.part(branch.folder)
    if part.has_level(branch.replicate, branch.level):
        return
    task = copy_task(plan, store, branch)
    yield from train_level(_without_rewind_point(plan), part, task, settings)


def copy_task(plan: Plan, store: RunStore, branch: Branch) -> LevelTask:
    """What a copy starts from: the same for each but the seed."""
    replicate, step = branch.replicate, _step(branch)
    number = int(branch.folder.rpartition("_")[2])
    ticket = store.read_ticket(replicate, branch.level)
    assert ticket is not None, "a finished level has its ticket"
    weights, optimizer = ticket_weights(plan, ticket), None
    if branch.level == 0 and step:
        trunk = store.part(f"{branch.folder.rpartition('/')[0]}/trunk")
        weights, optimizer = trunk.read_weights(replicate, 0, "final"), trunk.read_optimizer(replicate, 0)
    return LevelTask(
        replicate=replicate,
        seed=derive_seed(replicate_seed(plan, replicate), "copy", number),
        level=branch.level,
        mask=ticket.mask,
        weights=weights,
        start=step,
        stop=plan.steps,
        optimizer=optimizer,
    )


def _step(branch: Branch) -> int:
    return int(branch.folder.split("/")[2].removeprefix("at_"))


def _without_rewind_point(plan: Plan) -> Plan:
    """Nothing is rewound to weights on the way of a copy, so none are kept."""
    return replace(plan, rewind=plan.steps + 1)


def walk_lines(
    plan: Plan, store: RunStore, branch: Branch, settings: Settings, *, interpolation: Interpolation
) -> Iterator[Progress | Line]:
    """The errors between each two copies of a replicate; each point is kept as soon as it is known."""
    part, device = store.part(branch.folder), settings.device
    model = plan.build(0).to(device)
    trained = [name for name, _ in model.named_parameters()]
    splits = {"validation": plan.splits.validation.to(device), "train": train_sample(plan).to(device)}
    for pair in interpolation.pairs():
        name = _line_name(branch.replicate, pair, interpolation)
        one, other = (part.part(f"copy_{n}").read_weights(branch.replicate, branch.level, "final") for n in pair)
        line = (
            part.read_result(name) if part.has_result(name) else _new_line(interpolation, distance(one, other, trained))
        )
        for alpha in line["alphas"][len(line["train"]) :]:
            if settings.should_stop():
                raise Interrupted("stopped between two copies; the points so far are saved")
            errors = errors_of(model, interpolate(one, other, alpha), splits)
            line = {**line, **{split: [*line[split], errors[split]] for split in SPLITS}}
            part.write_result(name, line)
            done = len(line["train"])
            yield Progress(branch.replicate, branch.level, 0, done, interpolation.points, 1 - errors["validation"])
        yield Line(branch.replicate, branch.level, barrier(line["validation"]), line["distance"])


def _new_line(interpolation: Interpolation, apart: float) -> dict[str, Any]:
    return {"alphas": positions(interpolation.points), "distance": apart, **{split: [] for split in SPLITS}}


def errors_of(model: nn.Module, weights: dict[str, Tensor], splits: dict[str, Examples]) -> dict[str, float]:
    """Error on each split with these weights, batch norms given the statistics of the training sample."""
    model.load_state_dict(weights)
    recalibrate_(model, splits["train"])
    return {name: 1 - evaluate(model, examples)[1] for name, examples in splits.items()}


def _line_name(replicate: int, pair: tuple[int, int], interpolation: Interpolation) -> str:
    return f"replicate_{replicate}/line_{pair[0]}_{pair[1]}_of_{interpolation.points}.json"


def _is_walked(part: RunStore, replicate: int, interpolation: Interpolation) -> bool:
    names = [_line_name(replicate, pair, interpolation) for pair in interpolation.pairs()]
    return all(part.has_result(name) and len(part.read_result(name)["train"]) == interpolation.points for name in names)


def verdict(found: Estimate) -> str:
    """`stable` where the mean barrier is below two points, else `unstable`."""
    return "stable" if found.mean < STABLE_BELOW else "unstable"


def is_clear(found: Estimate) -> bool | None:
    """Whether the interval leaves the verdict no doubt; None where there is no interval."""
    if found.low is None or found.high is None:
        return None
    return found.high < STABLE_BELOW or found.low >= STABLE_BELOW


def branch_point_row(point: BranchPoint, interpolation: Interpolation, steps: int) -> dict[str, Any]:
    """What was found at a branch point; a replicate's figures are means over pairs of copies, `n` counts replicates.

    Args:
        steps: Of the whole training.
    """
    lines = [_lines(point, number, interpolation) for number in point.replicates]
    tests = [
        statistics.fmean(
            1 - point.copy(number).read_level(replicate, point.level).final_test_accuracy
            for number in range(1, interpolation.copies + 1)
        )
        for replicate in point.replicates
    ]
    barriers = {split: [_mean_barrier(own, split) for own in lines] for split in SPLITS}
    ends = {split: [statistics.fmean((line[split][0] + line[split][-1]) / 2 for line in own) for own in lines]
            for split in SPLITS} | {"test": tests}  # fmt: skip
    decisive = estimate(barriers["validation"])
    return {
        "run": point.store.name,
        "level": point.level,
        "density": point.store.read_level(point.replicates[0], point.level).density,
        "step": point.step,
        "share": point.step / steps,
        "replicates": list(point.replicates),
        "verdict": verdict(decisive),
        "is_clear": is_clear(decisive),
        "barrier": {split: asdict(estimate(found)) for split, found in barriers.items()},
        "error": {split: asdict(estimate(found)) for split, found in ends.items()},
        "distance": asdict(estimate([statistics.fmean(line["distance"] for line in own) for own in lines])),
        "alphas": positions(interpolation.points),
        "curves": {split: _curve(lines, split) for split in SPLITS},
    }


def barriers_by_seed(point: BranchPoint, interpolation: Interpolation) -> dict[int, float]:
    """Seed → barrier on validation examples, a mean over the pairs of copies; of replicates that have it."""
    numbers = [number for number in point.replicates if _is_walked(point.part, number, interpolation)]
    return {
        point.store.read_level(number, point.level).seed: _mean_barrier(
            _lines(point, number, interpolation), "validation"
        )
        for number in numbers
    }


def _lines(point: BranchPoint, replicate: int, interpolation: Interpolation) -> list[dict[str, Any]]:
    return [point.part.read_result(_line_name(replicate, pair, interpolation)) for pair in interpolation.pairs()]


def _mean_barrier(lines: Sequence[dict[str, Any]], split: str) -> float:
    return statistics.fmean(barrier(line[split]) for line in lines)


def _curve(lines: Sequence[Sequence[dict[str, Any]]], split: str) -> dict[str, list[float]]:
    """Error at each point: mean, smallest and largest over replicates."""
    each = torch.tensor([[line[split] for line in own] for own in lines], dtype=torch.float64).mean(dim=1)
    return {"mean": each.mean(dim=0).tolist(), "low": each.amin(dim=0).tolist(), "high": each.amax(dim=0).tolist()}
