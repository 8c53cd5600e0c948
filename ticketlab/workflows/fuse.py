"""Sparse network → smaller dense network: prove and reduce, choose widths, fuse, refit; distil or train on."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ticketlab.cost import latencies, size
from ticketlab.data.batches import Splits
from ticketlab.errors import FusionError, Stop
from ticketlab.fusion.exact import fold_norms
from ticketlab.fusion.trace import LOGITS
from ticketlab.fusion.widths import error_curves
from ticketlab.models.compact import layer_widths, rebuild
from ticketlab.runs.manifest import short_hash
from ticketlab.runs.network import read_network, write_network
from ticketlab.runs.results import FUSED, FUSED_NETWORK
from ticketlab.runs.store import Level, RunStore
from ticketlab.steps import parse_duration
from ticketlab.training.distil import BATCH
from ticketlab.training.loop import evaluate
from ticketlab.workflows.fuse_request import Request
from ticketlab.workflows.fuse_widths import Workbench, choose_widths, distil_, fuse_to, prepare
from ticketlab.workflows.progress import Notice, Seen
from ticketlab.workflows.retrain import retrain, scratch
from ticketlab.workflows.run import Machine, outcome, stand_in_notice, told
from ticketlab.workflows.source import Source
from ticketlab.workflows.train_level import Settings

LABEL_FREE = "label_free.safetensors"
"""The network before retraining, from which an interrupted fusion goes on."""


@dataclass(frozen=True)
class Fusion:
    """A finished fusion; `record` is what `--json` prints."""

    store: RunStore
    record: dict[str, Any]


@dataclass(frozen=True)
class Made:
    """A network that was fused without labels, and how."""

    model: nn.Module
    facts: dict[str, Any]
    """refit, groups (their widths), stages, error_curves: parts of the record."""
    unit_map: dict[str, Tensor]


Event = Seen | Fusion


def fuse_run(source: Source, request: Request, machine: Machine, should_stop: Stop = lambda: False) -> Iterator[Event]:
    """Fuse a network; yields notices, progress of training, and at the end the finished fusion.

    A fusion that is finished already is read, not computed. Raises Interrupted when asked to stop.
    """
    request.check()
    torch.set_num_threads(machine.threads)
    store = RunStore(machine.runs / f"{source.plan.file.path.stem}-fused-{_hash(source, request)}")
    yield from (Notice(text) for text in source.notices)
    if source.plan.data.stand_in_for is not None:
        yield Notice(stand_in_notice(source.plan))
    if store.has_result(FUSED):
        yield Notice(f"{store.name} is finished already; this is its result")
        yield Fusion(store, store.read_result(FUSED))
        return
    with store.lock():
        with told(store):
            bench = prepare(source, request)
        for group in bench.trace.frozen:
            if group.reason != LOGITS:
                yield Notice(f"left alone: {group.units} units of {group.name}: {group.reason}")
        _open(store, source, request)
        try:
            with outcome(store):
                yield from _fuse(bench, request, store, machine, should_stop)
        except FusionError:
            store.discard()  # the request cannot be met, so there is no run
            raise


def _fuse(bench: Workbench, request: Request, store: RunStore, machine: Machine, should_stop: Stop) -> Iterator[Event]:
    source = bench.source
    if (store.path / LABEL_FREE).exists():
        made = _read_made(store, source)
        yield Notice(f"{store.name}: the fusion itself is done; training goes on")
    else:
        made = yield from _label_free(bench, request, should_stop)
    model, stages = made.model, list(made.facts["stages"])
    if request.retrain is not None:
        write_network(store.path / LABEL_FREE, {**model.state_dict(), **_prefixed(made.unit_map)}, made.facts)
        settings = Settings(torch.device("cpu"), machine.checkpoint_seconds, should_stop)
        length = parse_duration(request.retrain)
        trained = store.part("retrained")
        yield Notice(f"training on for {request.retrain}")
        for event in retrain(source, model, trained, length, settings):
            stages += _stages("retrained", event)
            yield event
        model = deepcopy(model)
        model.load_state_dict(trained.read_weights(1, 1, "early_stop"))
        if request.control:
            for event in scratch(
                source, model, store.part("scratch"), length, _distilled_steps(source, stages), settings
            ):
                stages += _stages("scratch", event)
                yield event
    record = _record(bench, request, store, model, {**made.facts, "stages": stages})
    if record["after"]["params"] == size(source.model, bench.images.shape[1:]).params:
        yield Notice("nothing was removed: the network is as large as before")
    _write(store, bench, model, record, made.unit_map)
    yield Fusion(store, record)


def _label_free(bench: Workbench, request: Request, should_stop: Stop) -> Generator[Notice, None, Made]:
    """Fuse, refit and distil: everything that needs no label."""
    began = time.perf_counter()
    splits = bench.source.plan.splits
    curves: dict[str, Tensor] = {}
    widths = {group.name: group.units for group in bench.groups}
    model, refitted, unit_map = bench.model, "none", _unit_map(bench, {}, {})
    if not request.exact:
        if request.uses_curves():
            curves = error_curves(bench.model, bench.groups, bench.images, request.seed)
        for tried in choose_widths(bench, request, curves, should_stop):
            if isinstance(tried, str):
                yield Notice(tried)
            else:
                widths = tried
        fused, refitted = fuse_to(bench, request, widths)
        model, unit_map = fused.model, _unit_map(bench, fused.kept, fused.mixing)
    if request.fold_norms:
        model = fold_norms(model, bench.trace.norm_of)
    seconds = time.perf_counter() - began
    stages = [{"stage": "fused", **accuracies(model, splits), "seconds": round(seconds, 3)}]
    if request.distil is not None:
        model = deepcopy(model)
        began = time.perf_counter()
        steps = distil_(model, bench.source, request, should_stop)
        took = round(time.perf_counter() - began, 3)
        stages.append({"stage": "distilled", **accuracies(model, splits), "steps": steps, "seconds": took})
    facts = {"refit": refitted, "groups": widths, "stages": stages, "error_curves": _plain_curves(curves)}
    return Made(model, facts, unit_map)


def accuracies(model: nn.Module, splits: Splits) -> dict[str, float]:
    """Validation and test accuracy of a network, which is left in evaluation mode."""
    found = {"val_accuracy": evaluate(model, splits.validation)[1], "test_accuracy": evaluate(model, splits.test)[1]}
    model.eval()
    return found


def _distilled_steps(source: Source, stages: Iterable[Mapping[str, Any]]) -> int:
    """Distillation in steps of the recipe's batch size, so that the control sees as many images."""
    images = sum(stage["steps"] for stage in stages if stage["stage"] == "distilled") * BATCH
    return round(images / source.plan.recipe.train.batch_size)


def _stages(name: str, event: Seen) -> list[dict[str, Any]]:
    """The record of a stage of training, once it is finished."""
    if not isinstance(event, Level):
        return []
    taken = ("val_accuracy", "test_accuracy", "steps", "seconds")
    return [{"stage": name, **{key: getattr(event, key) for key in taken}}]


def _plain_curves(curves: Mapping[str, Tensor]) -> dict[str, list[float]]:
    return {name: [round(float(error), 6) for error in curve] for name, curve in curves.items()}


# --- the map of units


def _unit_map(bench: Workbench, kept: Mapping[str, Tensor], mixing: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For each group that shrank: which old units the new ones stand in for, and how old ones are read from them."""
    found = {}
    for group in bench.trace.groups:
        alive = bench.reduced.kept.get(group.name, torch.arange(group.units))
        stay = kept.get(group.name, torch.arange(len(alive)))
        if len(stay) < group.units:
            found[f"{group.name}/units"] = alive[stay]
        if group.name in mixing:
            found[f"{group.name}/mixing"] = mixing[group.name].float()
            found[f"{group.name}/mixed"] = alive  # the old units that the rows of `mixing` stand for
    return found


def _prefixed(unit_map: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"map:{name}": value for name, value in unit_map.items()}


def _read_made(store: RunStore, source: Source) -> Made:
    """What an interrupted fusion had finished before training."""
    tensors, facts = read_network(store.path / LABEL_FREE)
    unit_map = {name.removeprefix("map:"): value for name, value in tensors.items() if name.startswith("map:")}
    state = {name: value for name, value in tensors.items() if not name.startswith("map:")}
    return Made(rebuild(source.plan.build(0), state).eval(), facts, unit_map)


# --- the record


def _record(
    bench: Workbench, request: Request, store: RunStore, model: nn.Module, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything about the fusion that is a number, as `--json` prints it."""
    source, stages = bench.source, facts["stages"]
    given = _measured(source.model, source)
    is_sparse = source.dense is not None or given["nonzeros"] < 0.9 * given["params"]
    dense = source.dense if source.dense is not None else source.model
    last = [stage for stage in stages if stage["stage"] != "scratch"][-1]
    networks = {"dense": dense, "masked": source.model, "fused": model}
    return {
        "run": str(store.path),
        "source": source.facts,
        "data": source.plan.data.dataset.name,
        "stand_in_for": source.plan.data.stand_in_for,
        "method": "exact" if request.exact else f"{request.select} + {request.combine}",
        "widths": layer_widths(model),
        "before": given if source.dense is None else _measured(source.dense, source),
        "sparse": given if is_sparse else None,
        "after": {
            **asdict(size(model, bench.images.shape[1:])),
            "val_accuracy": last["val_accuracy"],
            "test_accuracy": last["test_accuracy"],
        },
        "exact": bench.reduced.removed,
        "left_alone": {group.name: group.reason for group in bench.trace.frozen},
        "permutation_error": bench.permutation_error,
        "images": len(bench.images) if _looks(request) else 0,
        **facts,
        "latency_us": _microseconds(networks, bench.images[:1]),
        "latency_us_64": _microseconds(networks, bench.images[:64]),
        "seconds": round(sum(stage["seconds"] for stage in stages), 3),
    }


def _looks(request: Request) -> bool:
    """Whether anything of the request looked at images."""
    return not request.exact and (bool(request.needs()) or request.uses_curves() or request.wants_refit())


def _measured(model: nn.Module, source: Source) -> dict[str, Any]:
    return {**asdict(size(model, source.plan.data.dataset.input_shape)), **accuracies(model, source.plan.splits)}


def _microseconds(networks: Mapping[str, nn.Module], images: Tensor) -> dict[str, float]:
    return {name: round(value, 2) for name, value in latencies(networks, images).items()}


def _write(
    store: RunStore, bench: Workbench, model: nn.Module, record: Mapping[str, Any], unit_map: Mapping[str, Tensor]
) -> None:
    """The compact network, the map of units, the events; the record last, which finishes the fusion."""
    from ticketlab.runs.tensorboard import write_fusion

    facts = {**bench.source.network_facts(), "widths": record["widths"], "method": record["method"]}
    write_network(store.path / FUSED_NETWORK, model.state_dict(), facts)
    store.write_map(unit_map)
    write_fusion(store.path, record)
    store.write_result(FUSED, record)


def _open(store: RunStore, source: Source, request: Request) -> None:
    """Write the manifest of a new fusion."""
    dataset = source.plan.data.dataset
    facts = {
        "kind": "fuse",
        "recipe": source.plan.file.path.stem,
        "method": "fuse",
        "data": dataset.name,
        "data_checksum": dataset.checksum(),
        "stand_in_for": source.plan.data.stand_in_for,
        "source": source.facts,
        "request": request.asked(),
    }
    store.begin(facts)


def _hash(source: Source, request: Request) -> str:
    """Short hash of what decides the result: weights, data and its normalisation, model, request."""
    facts = source.network_facts()
    identity = {name: facts[name] for name in ("data", "mean", "std", "model", "source")}
    return short_hash({**identity, "recipe": source.plan.hash, "request": request.asked()})
