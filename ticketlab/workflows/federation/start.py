"""What a federation starts from: a level of a run or a fused network, with trained, rewound or fresh weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ticketlab.codec import Sparse
from ticketlab.data.batches import Splits
from ticketlab.data.files import Places
from ticketlab.errors import RunError
from ticketlab.pruning.masks import density, full_mask, masked
from ticketlab.runs.find import find_run
from ticketlab.runs.store import RunStore
from ticketlab.seeds import derive_seed
from ticketlab.workflows.ship import Shipment, shipment
from ticketlab.workflows.source import from_run


@dataclass(frozen=True)
class Start:
    """The network of round 0 and the data by which the coordinator judges."""

    network: Sparse
    splits: Splits
    test_accuracy: float | None
    """Of the network as its run measured it; None where its weights are not the trained ones."""


def read_start(request: Mapping[str, Any], places: Places) -> Start:
    """What a request names; raises RunError where there is no such network."""
    store = find_run(Path(request["runs"]), request["source"])
    given = shipment(store, places, request["level"], request["replicate"])
    return Start(starting(given, request["start"], places), given.splits, given.test_accuracy)


def starting(given: Shipment, start: str, places: Places) -> Sparse:
    """A shipped network under its mask, with its trained weights, those at the rewind step, or fresh ones.

    A network without a mask gets one that keeps all. Fresh weights are drawn as the run's own, from another seed.
    Raises RunError where a fused network is to start from anything but its weights.
    """
    network = given.network
    mask = network.mask or full_mask(network.model)
    state: Mapping[str, Tensor] = network.model.state_dict()
    if start != "trained":
        if not given.has_dense:
            raise RunError(f"{network.name}: only a level of a pruning run has {start} weights; use start: trained")
        state = _other(given.store, start, network.facts["source"], places)
    facts = {**network.facts, "density": density(mask)}
    return Sparse(mask, masked(state, mask), facts)


def _other(store: RunStore, start: str, source: Mapping[str, Any], places: Places) -> dict[str, Tensor]:
    if start == "rewound":
        return store.read_rewind(source["replicate"])
    with torch.random.fork_rng(devices=[]):
        plan = from_run(store, places, 0, source["replicate"], ()).plan
        return dict(plan.build(derive_seed(plan.recipe.seed, "federate", source["replicate"])).state_dict())
