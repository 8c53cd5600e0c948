"""The fusion study: methods × widths × sparsities × replicates, cell by cell; finished cells are never repeated.

Three stages: what each method keeps without training; what training adds to the best of them, against the same widths
from scratch; and convolutional networks. The grid is fixed beforehand, as are the hypotheses (`fusion_findings.py`).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ticketlab.cost import latencies, size
from ticketlab.data.batches import normalise, shuffled_batches
from ticketlab.errors import Interrupted, RunError, Stop
from ticketlab.fusion.widths import Widths, error_curves, uniform, within
from ticketlab.fusion_findings import (
    findings,
    levels,
    lost_per_halving,
    method_name,
    of_run,
    points,
    runs,
    smallest_within,
)
from ticketlab.pruning.masks import full_mask
from ticketlab.recipe import TrainSection
from ticketlab.runs.manifest import short_hash
from ticketlab.runs.results import STUDY
from ticketlab.runs.rows import append_row, csv_bytes, read_rows
from ticketlab.runs.store import RunStore
from ticketlab.seeds import derive_seed
from ticketlab.training.distil import distil_steps
from ticketlab.training.loop import evaluate, train_steps
from ticketlab.training.optim import learning_rate, make_optimizer
from ticketlab.workflows.fuse_request import Request
from ticketlab.workflows.fuse_widths import Workbench, fuse_to, prepare
from ticketlab.workflows.progress import Notice
from ticketlab.workflows.retrain import fine_tuning
from ticketlab.workflows.run import Machine, death_notice, outcome
from ticketlab.workflows.source import Source, from_run
from ticketlab.workflows.tickets import fresh_weights
from ticketlab.workflows.workers import Died, run_jobs

SPARSITIES = (0.0, 0.8, 0.9, 0.95, 0.98)
"""Levels nearest to these are fused."""
SHARES = (0.75, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05)
"""Of units kept."""
IMAGES = 4_096
"""For networks without convolutions; the others as many as `fuse` itself would take."""
OPTIONS = {"neuron_merging": {"threshold": 0.0}}
"""At its published threshold of 0.45 it would do nothing for sparse networks, whose units have nothing in common."""
DISTIL_STEPS = 1_500
TRAINED_SHARES = (0.25, 0.1, 0.05)
TRAINED_EPOCHS = (1, 5)
TRAINED_SPARSITIES = (0.0, 0.95)


@dataclass(frozen=True)
class Cell:
    """One network to be made and measured."""

    run: str
    replicate: int
    level: int
    select: str
    combine: str
    share: float
    """Of units; with `curves`, widths of as many parameters as the same share everywhere would have."""
    allocation: str = "uniform"
    refit: bool = False
    distil: int = 0
    """Steps of label-free distillation."""
    epochs: int = 0
    """Of training with labels."""

    def key(self) -> str:
        """Identity of the cell."""
        return json.dumps(asdict(self), sort_keys=True)


LEAST_SQUARES = ("greedy", "least_squares")
UNTRAINED = [
    *((select, "drop") for select in ("random", "l1", "in_out", "activation_out", "greedy")),
    ("l1", "mean_bias"), ("in_out", "neuron_merging"), ("l1", "fold"), ("l1", "fold_directions"),
    ("in_out", "optimal_transport"), ("l1", "correlation"), ("l1", "least_squares_channel"),
    *((select, "least_squares") for select in ("random", "l1", "pivoted_qr", "greedy")),
]  # fmt: skip
ALLOCATED = [("l1", "drop"), ("l1", "fold"), LEAST_SQUARES]
TRAINED = [("l1", "drop"), ("in_out", "neuron_merging"), ("l1", "fold"), LEAST_SQUARES]
CONVOLUTIONAL = [
    ("l1", "drop"), ("l1", "fold"), ("l1", "least_squares_channel"), ("greedy", "least_squares_channel"), LEAST_SQUARES,
]  # fmt: skip
CONVOLUTIONAL_SHARES = (0.75, 0.5, 0.25)


def cells(run: str, replicate: int, fused: Sequence[int], trained: Sequence[int], is_linear: bool) -> list[Cell]:
    """The grid of one replicate; `trained` are the levels whose fused networks are trained on, too."""
    made: list[Cell] = []
    for level in fused:
        cell = partial(Cell, run, replicate, level)
        if not is_linear:
            made += [cell(*method, share) for method in CONVOLUTIONAL for share in CONVOLUTIONAL_SHARES]
            made += [
                cell(*LEAST_SQUARES, share, a, True) for a in ("uniform", "curves") for share in CONVOLUTIONAL_SHARES
            ]
            continue
        made += [cell(*method, share) for method in UNTRAINED for share in SHARES]
        made += [cell(*method, share, "curves") for method in ALLOCATED for share in SHARES]
        made += [cell(*LEAST_SQUARES, share, "curves", True) for share in SHARES]
        made += [cell(*LEAST_SQUARES, share, "curves", True, DISTIL_STEPS) for share in SHARES]
        if level in trained:
            made += [
                cell(*method, share, epochs=epochs)
                for method in TRAINED
                for share in TRAINED_SHARES
                for epochs in TRAINED_EPOCHS
            ]
            made += [cell(*LEAST_SQUARES, s, "curves", True, epochs=e) for s in TRAINED_SHARES for e in TRAINED_EPOCHS]
        if level == 0:
            made += [
                cell("none", "scratch", share, a, epochs=epochs)
                for a in ("uniform", "curves")
                for share in TRAINED_SHARES
                for epochs in TRAINED_EPOCHS
            ]
    return made


@dataclass(frozen=True)
class Study:
    """A finished study; `record` is what `--json` prints."""

    store: RunStore
    record: dict[str, Any]


def study_run(
    stores: Sequence[RunStore], machine: Machine, should_stop: Stop
) -> Iterator[Notice | dict[str, Any] | Study]:
    """Work through the grid of all runs; yields each new row, and at the end the study.

    Raises Interrupted when asked to stop; rows that are finished stay.
    """
    for store in stores:
        if store.kind != "prune" or not store.replicates() or not store.levels(1):
            raise RunError(f"{store.path}: not a run of prune with finished levels; a study fuses tickets")
    study = RunStore(machine.runs / f"{stores[0].name.rpartition('-')[0]}-study-{_hash(stores)}")
    replicates = sorted({replicate for store in stores for replicate in store.replicates()})
    with study.lock():
        study.begin(_manifest(stores))
        yield Notice(f"{study.path}: {len(stores)} runs, replicates {', '.join(map(str, replicates))}")
        with outcome(study):
            body = partial(_replicate, [store.path for store in stores], machine, study.path)
            workers = min(len(replicates), machine.workers or 2)
            jobs = {replicate: f"replicate {replicate}" for replicate in replicates}
            for event in run_jobs(body, jobs, workers, should_stop):
                if isinstance(event, dict):
                    yield event
                elif isinstance(event, Died):
                    yield death_notice(event)
            rows = [row for replicate in replicates for row in read_rows(_file(study, replicate))]
            record = publish(study, stores[0], machine, rows)
    yield Study(study, record)


def _replicate(
    runs: Sequence[Path], machine: Machine, study: Path, replicate: int, should_stop: Stop
) -> Iterator[dict[str, Any]]:
    """All cells of one replicate, run by run, level by level."""
    torch.set_num_threads(machine.threads)
    path = _file(RunStore(study), replicate)
    done = {row["key"] for row in read_rows(path)}
    for store in map(RunStore, runs):
        if replicate not in store.replicates():
            continue
        fused = nearest(store, replicate, SPARSITIES)
        dense = from_run(store, machine.places, 0, replicate, ())
        is_linear = not any(isinstance(layer, nn.Conv2d) for layer in dense.model.modules())
        grid = cells(store.name, replicate, fused, nearest(store, replicate, TRAINED_SPARSITIES), is_linear)
        for level in fused:
            todo = [cell for cell in grid if cell.level == level and cell.key() not in done]
            if not todo:
                continue
            bench = Bench(from_run(store, machine.places, level, replicate, ()))
            for cell in todo:
                if should_stop():
                    raise Interrupted("stopped; finished cells are kept")
                row = bench.measure(cell)
                append_row(path, row)
                yield row


def publish(study: RunStore, first: RunStore, machine: Machine, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Write table, figures and verdicts beside the rows; returns the record."""
    from ticketlab import figures
    from ticketlab.runs.tensorboard import write_pictures

    grid = of_run(rows, first.name)
    bench = Bench(from_run(first, machine.places, 0, 1, ()))
    chosen = bench.widths(Cell(first.name, 1, 0, *LEAST_SQUARES, 0.25, "curves"))
    halving = {
        name: lost_per_halving(points([row for row in grid if method_name(row) == name and not row["epochs"]]))
        for name in dict.fromkeys(method_name(row) for row in grid if not row["epochs"])
    }
    drawn = {
        "accuracy_against_size": figures.accuracy_against_size(grid),
        "error_curves": figures.error_curves({n: c.tolist() for n, c in bench.curves.items()}, chosen),
        "points_lost": figures.bars(halving, "points lost, mean over sizes (logarithmic)"),
    }
    pictures = {name: figures.encode(figure) for name, figure in drawn.items()}
    for name, picture in pictures.items():
        for kind, content in picture.items():
            study.write_file(f"{name}.{kind}", content)
    cells = [{k: v for k, v in row.items() if k != "key"} for row in rows]
    study.write_file("cells.csv", csv_bytes(cells))
    write_pictures(study.path, {name: picture["png"] for name, picture in pictures.items()})
    record = {
        "run": str(study.path),
        "sources": runs(rows),
        "cells": len(rows),
        "findings": [asdict(finding) for finding in findings(rows)],
        "smallest_within_one_point": {run: smallest_within(of_run(rows, run)) for run in runs(rows)},
        "points_lost": halving,
        "sparsity": {level: _mean_sparsity(grid, level) for level in levels(grid)},
    }
    study.write_result(STUDY, record)
    return record


def _mean_sparsity(rows: Sequence[Mapping[str, Any]], level: int) -> float:
    same = [row["sparsity"] for row in rows if row["level"] == level]
    return round(sum(same) / len(same), 4)


def nearest(store: RunStore, replicate: int, sparsities: Sequence[float]) -> list[int]:
    """The finished levels nearest to these sparsities."""
    finished = store.levels(replicate)
    found = {min(finished, key=lambda level: abs(1 - level.density - s)).level for s in sparsities}
    return sorted(found)


class Bench:
    """One source, looked at once for all of its cells."""

    def __init__(self, source: Source) -> None:
        self.source = source
        is_deep = any(isinstance(layer, nn.Conv2d) for layer in source.model.modules())
        self.request = Request(images=None if is_deep else IMAGES, refit=False)
        self.bench: Workbench = prepare(source, self.request)
        self.curves: dict[str, Tensor] = error_curves(self.bench.model, self.bench.groups, self.bench.images)
        self.given = size(source.model, self.bench.images.shape[1:])
        self.accuracy = self._accuracy(source.model)
        self.logits = self._logits(source.model)

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Make the cell's network and measure it."""
        began = time.perf_counter()
        widths = self.widths(cell)
        model = self.make(cell, widths)
        seconds = time.perf_counter() - began
        accuracy, logits = self._accuracy(model), self._logits(model)
        cost = size(model, self.bench.images.shape[1:])
        return {
            **asdict(cell),
            "key": cell.key(),
            "model": self.source.plan.recipe.model.name,
            "data": self.source.plan.data.dataset.name,
            "sparsity": self._sparsity(),
            "source_params": self.given.params,
            "source_nonzeros": self.given.nonzeros,
            "source_accuracy": self.accuracy,
            "widths": widths,
            "params": cost.params,
            "macs": cost.macs,
            "latency_us": round(latencies({"fused": model}, self.bench.images[:1])["fused"], 2),
            "images": len(self.bench.images),
            "logit_error": float((logits - self.logits).norm() / self.logits.norm()),
            "accuracy": accuracy,
            "seconds": round(seconds, 3),
        }

    def widths(self, cell: Cell) -> Widths:
        """The cell's widths: the same share everywhere, or what the curves make of the same parameters."""
        even = uniform(self.bench.trace.groups, cell.share)
        units = {group.name: group.units for group in self.bench.groups}
        even = {name: min(even[name], units[name]) for name in units}
        if cell.allocation == "uniform":
            return even
        cost = self.bench.costs.parameters
        return within(self.bench.groups, self.curves, cost, cost(even))

    def make(self, cell: Cell, widths: Widths) -> nn.Module:
        """The cell's network: fused or fresh, distilled, trained."""
        plan, source = self.source.plan, self.source
        seed = derive_seed(plan.recipe.seed + cell.replicate, "study")
        if cell.combine == "scratch":
            shape = fuse_to(self.bench, replace(self.request, select="l1", combine="drop"), widths)[0].model
            shape.load_state_dict(fresh_weights(source.plan, shape, seed))
            steps = plan.steps + cell.epochs * plan.steps_per_epoch
            return self._train(shape, plan.recipe.train, steps, seed)
        options = OPTIONS.get(cell.combine, {})
        request = replace(self.request, select=cell.select, combine=cell.combine, options=options, refit=cell.refit)
        model = fuse_to(self.bench, request, widths)[0].model
        if cell.distil:
            model = deepcopy(model)
            for _ in distil_steps(model, source.model, plan.splits.train, cell.distil, seed):
                pass
        if cell.epochs:
            steps = cell.epochs * plan.steps_per_epoch
            model = self._train(model, fine_tuning(plan.recipe.train, steps), steps, seed)
        return model

    def _train(self, model: nn.Module, section: TrainSection, steps: int, seed: int) -> nn.Module:
        plan = self.source.plan
        model = deepcopy(model).train()
        for parameter in model.parameters():
            parameter.requires_grad_()
        batches = shuffled_batches(plan.splits.train, section.batch_size, seed, 0, plan.recipe.data.augment)
        optimizer = make_optimizer(model.parameters(), section)
        rate = partial(learning_rate, section, steps_per_epoch=plan.steps_per_epoch)
        for step in train_steps(model, batches, optimizer, rate, full_mask(model), 0, steps):
            assert step.index == steps or math.isfinite(float(step.loss)), "training diverged"
        return model.eval()

    def _accuracy(self, model: nn.Module) -> float:
        accuracy = evaluate(model, self.source.plan.splits.test)[1]
        model.eval()
        return accuracy

    @torch.inference_mode()
    def _logits(self, model: nn.Module) -> Tensor:
        held = self.source.plan.splits.validation
        return model.eval()(normalise(held.images[:1000], held))

    def _sparsity(self) -> float:
        weights = [value for value in self.source.model.parameters() if value.dim() > 1]
        return 1 - sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)


def _file(study: RunStore, replicate: int) -> Path:
    return study.path / "cells" / f"replicate_{replicate}.jsonl"


def _manifest(stores: Sequence[RunStore]) -> dict[str, Any]:
    first = stores[0].read_manifest()
    return {
        "kind": "study",
        "recipe": first.get("recipe"),
        "method": "fuse --study",
        "data": first.get("data"),
        "stand_in_for": first.get("stand_in_for"),
        "sources": [store.name for store in stores],
    }


def _hash(stores: Sequence[RunStore]) -> str:
    """What decides the first run's rows; a study can be extended by further runs."""
    facts = [stores[0].name, stores[0].read_manifest().get("init_digest")]
    return short_hash(facts)
