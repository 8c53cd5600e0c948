"""The trained network of a run, ready to be shipped, and the data it is judged on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from torch import nn

from ticketlab import __version__
from ticketlab.codec import decode
from ticketlab.data.batches import Splits, split
from ticketlab.data.files import Places
from ticketlab.data.sources import load_dataset
from ticketlab.errors import RunError
from ticketlab.formats.format import Network
from ticketlab.models.build import network_from
from ticketlab.models.compact import layer_widths, own_memory_
from ticketlab.pruning.masks import Mask, density
from ticketlab.runs.find import find_run, list_runs
from ticketlab.runs.network import read_network
from ticketlab.runs.results import FEDERATED, FEDERATED_NETWORK, FUSED, FUSED_NETWORK, OF_KIND
from ticketlab.runs.store import RunStore
from ticketlab.workflows.source import from_run, load_network

SHIPPED = {kind: OF_KIND[kind] for kind in ("fuse", "federate")}
"""Kind of a run that is one network → the result that is there when it is finished."""


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

    @property
    def has_dense(self) -> bool:
        """Whether its run holds a dense network of its sizes: a level of a pruning run that removed no channels."""
        return self.store.kind == "prune" and self.kind in ("masked", "dense")


def newest(root: Path, name: str | None, level: int | None = None, replicate: int = 1) -> RunStore:
    """The run of that name; without one the newest finished run that holds such a network, of a fusion or of pruning.

    A level or a replicate is a pruning run's, so a prefix that fits several runs then means that one.
    """
    if name is not None:
        try:
            return find_run(root, name)
        except RunError:
            if level is None and replicate == 1:
                raise
            return find_run(root, name, "prune")
    fitting = [store for store in list_runs(root) if _has_network(store, level, replicate)]
    if not fitting:
        wanted = [f"level {level}"] * (level is not None) + [f"replicate {replicate}"] * (replicate != 1)
        which = f"no finished run in {root}" + (f" has a {' and a '.join(wanted)}" if wanted else "")
        raise RunError(f"{which}; make one with: ticketlab prune recipes/lenet_mnist.yaml")
    return fitting[-1]


def _has_network(store: RunStore, level: int | None, replicate: int) -> bool:
    try:
        if store.kind in SHIPPED:
            return level is None and replicate == 1 and store.has_result(SHIPPED[store.kind])
        is_finished = store.kind == "prune" and store.read_manifest().get("state") == "finished"
        return is_finished and store.has_level(replicate, level or 0)
    except RunError:
        return False


def shipment(store: RunStore, places: Places, level: int | None = None, replicate: int = 1) -> Shipment:
    """A fused network, or a level of a pruning run (the deepest finished one when none is named).

    Raises RunError for a run that has no such network.
    """
    if store.kind == "prune":
        return _level(store, places, level, replicate)
    if store.kind not in SHIPPED:
        raise RunError(f"{store.name} was made by ticketlab {store.kind}; name a run of prune, fuse or federate")
    if level is not None or replicate != 1:
        raise RunError(f"{store.name} is one network: leave --level and --replicate out")
    if not store.has_result(SHIPPED[store.kind]):
        raise RunError(f"{store.name} is not finished; the same command goes on with it")
    return _fused(store, places) if store.kind == "fuse" else _federated(store, places)


def _level(store: RunStore, places: Places, level: int | None, replicate: int) -> Shipment:
    source = from_run(store, places, level, replicate, ())
    index = source.facts["level"]
    weights = set(source.model.state_dict())
    mask = {name: kept for name, kept in source.mask.items() if name in weights}
    kind = "dense" if not index else "masked" if mask else "small"
    found = _network(source.name, source.model, mask if kind == "masked" else {}, source.network_facts())
    accuracy = store.read_level(replicate, index).test_accuracy
    return Shipment(kind, found, source.plan.splits, store, accuracy)


def _fused(store: RunStore, places: Places) -> Shipment:
    _, facts = read_network(store.path / FUSED_NETWORK)
    model = load_network(store.path / FUSED_NETWORK)  # and the plugins, one of which may bring the data
    if "validation" not in facts:
        raise RunError(f"{store.name}: was fused by an older ticketlab, which did not record its split; fuse it again")
    accuracy = store.read_result(FUSED)["after"]["test_accuracy"]
    return Shipment("fused", _network(store.name, model, {}, facts), _splits(facts, places), store, accuracy)


def _federated(store: RunStore, places: Places) -> Shipment:
    """The network of a federation's last round."""
    found = decode(store.read_file(FEDERATED_NETWORK))
    model = network_from(found.state, found.facts)
    sparse = {} if density(found.mask) == 1 else found.mask
    accuracy = store.read_result(FEDERATED)["rounds"][-1]["test_accuracy"]
    network = _network(store.name, model, sparse, found.facts)
    return Shipment("masked" if sparse else "dense", network, _splits(found.facts, places), store, accuracy)


def _splits(facts: Mapping[str, Any], places: Places) -> Splits:
    """The examples that a network was trained and is judged on."""
    dataset = load_dataset(facts["data"], places)
    dataset = replace(dataset, mean=tuple(facts["mean"]), std=tuple(facts["std"]))
    return split(dataset, facts["validation"], facts["split_seed"], facts.get("examples"))


def sources(given: Shipment, root: Path, places: Places) -> list[Shipment]:
    """The dense network that a network comes from, and of a fused one the level that was fused.

    Raises RunError where their run is not there, or cannot be read.
    """
    made_from = given.network.facts["source"]
    if "run" not in made_from or given.kind == "dense":
        return []
    store = given.store if given.store.kind == "prune" else find_run(root, made_from["run"], "prune")
    levels = dict.fromkeys((0, made_from["level"])) if given.kind == "fused" else (0,)
    return [shipment(store, places, level, made_from["replicate"]) for level in levels]


def _network(name: str, model: nn.Module, mask: Mask, facts: Mapping[str, Any]) -> Network:
    """A network to ship; its facts say nothing of this machine's folders."""
    section = dict(facts["model"])
    if section["file"]:
        section["file"] = PurePath(section["file"]).name
    told = {key: value for key, value in facts.items() if key != "plugins"}
    source = dict(facts["source"])
    if "weights" in source:
        source["weights"] = PurePath(source["weights"]).name
    made = {
        "name": name,
        "widths": layer_widths(model),
        "density": density(mask) if mask else 1.0,
        "ticketlab": __version__,
    }
    return Network(name, own_memory_(model.eval()), mask, {**told, "model": section, "source": source, **made})
