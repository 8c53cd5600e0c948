"""The trained network of a run, ready to be shipped, and the data it is judged on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from torch import nn

from ticketlab import __version__
from ticketlab.data.batches import Splits, split
from ticketlab.data.files import Places
from ticketlab.data.sources import load_dataset
from ticketlab.errors import RunError
from ticketlab.formats.format import Network
from ticketlab.models.compact import layer_widths, own_memory_
from ticketlab.pruning.masks import Mask, density
from ticketlab.runs.network import read_network
from ticketlab.runs.store import RunStore, find_run, list_runs
from ticketlab.workflows.fuse import NETWORK, RESULT
from ticketlab.workflows.source import from_run, load_network


@dataclass(frozen=True)
class Shipment:
    """A network, what kind it is, and where it came from."""

    kind: str
    """dense, masked, fused or small (a compact network that pruning of channels left)."""
    network: Network
    splits: Splits
    store: RunStore
    test_accuracy: float
    """As the run measured it, at the early-stop step."""


def newest(root: Path, name: str | None, level: int | None) -> RunStore:
    """The run of that name, or the newest one that holds a finished network: of a fusion, or of pruning."""
    if name is not None:
        return find_run(root, name, None if level is None else "prune")
    fitting = [store for store in list_runs(root) if _has_network(store, level)]
    if not fitting:
        which = f"no finished run in {root}" + (f" has a level {level}" if level else "")
        raise RunError(f"{which}; make one with: ticketlab prune recipes/lenet_mnist.yaml")
    return fitting[-1]


def _has_network(store: RunStore, level: int | None) -> bool:
    try:
        if store.kind == "fuse":
            return level is None and store.has_result(RESULT)
        return store.kind == "prune" and store.has_level(1, level or 0)
    except RunError:
        return False


def shipment(store: RunStore, places: Places, level: int | None = None, replicate: int = 1) -> Shipment:
    """A fused network, or a level of a pruning run (the deepest finished one when none is named).

    Raises RunError for a run that has no such network.
    """
    if store.kind == "prune":
        return _level(store, places, level, replicate)
    if store.kind != "fuse":
        raise RunError(f"{store.name} was made by ticketlab {store.kind}; name a run of prune or fuse")
    if level is not None or replicate != 1:
        raise RunError(f"{store.name} is one fused network: leave --level and --replicate out")
    return _fused(store, places)


def _level(store: RunStore, places: Places, level: int | None, replicate: int) -> Shipment:
    source = from_run(store, places, level, replicate, ())
    index = source.facts["level"]
    ticket = store.read_ticket(replicate, index)
    assert ticket is not None  # the source has read it
    weights = set(source.model.state_dict())
    mask = {name: kept for name, kept in ticket.mask.items() if name in weights}
    kind = "dense" if not index else "masked" if mask else "small"
    found = _network(source.name, source.model, mask if kind == "masked" else {}, source.network_facts())
    accuracy = store.read_level(replicate, index).test_accuracy
    return Shipment(kind, found, source.plan.splits, store, accuracy)


def _fused(store: RunStore, places: Places) -> Shipment:
    if not store.has_result(RESULT):
        raise RunError(f"{store.name} is not finished; the same command goes on with it")
    _, facts = read_network(store.path / NETWORK)
    if "validation" not in facts:
        raise RunError(f"{store.name}: was fused by an older ticketlab, which did not record its split; fuse it again")
    dataset = load_dataset(facts["data"], places)
    dataset = replace(dataset, mean=tuple(facts["mean"]), std=tuple(facts["std"]))
    splits = split(dataset, facts["validation"], facts["split_seed"])
    model = load_network(store.path / NETWORK)
    accuracy = store.read_result(RESULT)["after"]["test_accuracy"]
    return Shipment("fused", _network(store.name, model, {}, facts), splits, store, accuracy)


def sources(fused: Shipment, root: Path, places: Places) -> list[Shipment]:
    """The dense and the masked network that a fused one was made from, as far as their run is still there."""
    made_from = fused.network.facts["source"]
    if "run" not in made_from:
        return []
    try:
        store = find_run(root, made_from["run"], "prune")
        levels = dict.fromkeys((0, made_from["level"]))
        return [shipment(store, places, level, made_from["replicate"]) for level in levels]
    except RunError:
        return []


def _network(name: str, model: nn.Module, mask: Mask, facts: Mapping[str, Any]) -> Network:
    """A network to ship; its facts say nothing of this machine's folders."""
    section = dict(facts["model"])
    if section["file"]:
        section["file"] = PurePath(section["file"]).name
    told = {key: value for key, value in facts.items() if key != "plugins"}
    made = {"name": name, "widths": layer_widths(model), "density": density(mask) if mask else 1.0}
    return Network(name, own_memory_(model.eval()), mask, {**told, "model": section, "ticketlab": __version__, **made})
