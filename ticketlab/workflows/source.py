"""The network that a command works on: a level of a run, or weights that were trained elsewhere."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ticketlab.data.files import Places
from ticketlab.draws import draws
from ticketlab.errors import PluginError, RunError
from ticketlab.models.build import network_from
from ticketlab.models.compact import rebuild, same_shapes
from ticketlab.pruning.masks import Mask, masked
from ticketlab.recipe_file import RecipeFile, parse_recipe
from ticketlab.registry import load_file
from ticketlab.runs.network import read_foreign_state, read_network
from ticketlab.runs.store import Level, RunStore
from ticketlab.runs.ticket import digest
from ticketlab.workflows.inputs import Data, load_data
from ticketlab.workflows.make_plan import make_plan
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.trunk import run_plan


@dataclass(frozen=True)
class Source:
    """A trained network and what it was trained with."""

    name: str
    plan: Plan
    model: nn.Module
    dense: nn.Module | None
    """The dense network that the ticket was cut from; None where the network is its own source."""
    facts: dict[str, Any]
    """Where it came from: run, replicate and level, or file; and the digest of its weights."""
    notices: tuple[str, ...] = ()
    mask: Mask = field(default_factory=dict)
    """Of the ticket, where there is one: of weights, or of channels of the network that was pruned."""

    def network_facts(self) -> dict[str, Any]:
        """What rebuilds this network, or a compact one made from it."""
        dataset, model = self.plan.data.dataset, self.plan.recipe.model
        folder = self.plan.file.path.parent
        return {
            "model": {
                "name": model.name,
                "file": str((folder / model.file).resolve()) if model.file else None,
                "options": model.options,
            },
            "plugins": [str((folder / name).resolve()) for name in self.plan.recipe.plugins],
            "recipe": self.plan.file.path.stem,
            "recipe_hash": self.plan.hash,
            "data": dataset.name,
            "validation": self.plan.recipe.data.validation,
            "split_seed": self.plan.recipe.data.split_seed,
            "examples": self.plan.recipe.data.examples,
            "input_shape": list(dataset.input_shape),
            "classes": dataset.classes,
            "labels": list(dataset.labels),
            "mean": list(dataset.mean),
            "std": list(dataset.std),
            "per_unit": list(dataset.per_unit),
            "source": self.facts,
        }


def from_run(store: RunStore, places: Places, level: int | None, replicate: int, overrides: Sequence[str]) -> Source:
    """A level of a run at its early-stop step; the deepest finished one when none is named.

    Of an early-bird run that is the sparsest ticket that the search chose, not one drawn at a fixed step.
    """
    finished = store.levels(replicate)
    if not finished:
        raise RunError(f"{store.path}: replicate {replicate} has no finished level yet")
    index = _deepest(store, finished, replicate) if level is None else level
    if not 0 <= index < len(finished):
        raise RunError(f"{store.path}: replicate {replicate} has levels 0 to {len(finished) - 1}, not {index}")
    plan = run_plan(store, places, overrides)
    facts = {"run": store.name, "replicate": replicate, "level": index}
    model, mask = _level_model(plan, store, replicate, index)
    was_trained = sum(point.steps for point in finished[:1]) >= plan.steps
    dense = _level_model(plan, store, replicate, 0)[0] if index and was_trained else None
    facts["digest"] = digest(model.state_dict())
    name = f"{store.name} level {index}" + (f" replicate {replicate}" if replicate != 1 else "")
    return Source(name, plan, model, dense, facts, mask=mask)


def _deepest(store: RunStore, finished: Sequence[Level], replicate: int) -> int:
    chosen = [d.level for d in draws(store, finished) if d.replicate == replicate and d.chosen and d.test_accuracy]
    return chosen[-1] if chosen else finished[-1].level


def _level_model(plan: Plan, store: RunStore, replicate: int, level: int) -> tuple[nn.Module, Mask]:
    """A level's network and the mask of its ticket."""
    ticket = store.read_ticket(replicate, level)
    if ticket is None:
        raise RunError(f"{store.level_dir(replicate, level)}: the ticket is missing")
    model = plan.build(0)
    weights = masked(store.read_weights(replicate, level, "early_stop"), ticket.mask)
    has_own_sizes = not set(ticket.mask) <= set(weights)  # a mask of channels, whose network is smaller
    try:
        if not has_own_sizes and not same_shapes(weights, model.state_dict()):
            raise PluginError("other sizes")
        return rebuild(model, weights).eval(), ticket.mask
    except PluginError as error:
        raise RunError(f"{store.path}: its weights do not fit the model any more; leave --set model.… out") from error


@dataclass(frozen=True)
class Elsewhere:
    """Weights that were trained elsewhere, and what the user says about them."""

    weights: Path
    model: str
    """Built-in model, or `FILE.py:FUNCTION`."""
    data: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def from_weights(given: Elsewhere, places: Places, overrides: Sequence[str]) -> Source:
    """A network of a known model, or of the user's model file, with weights from a file."""
    state = read_foreign_state(given.weights)
    file = _recipe(given, overrides)
    file, data = load_data(file, places)
    held_out = min(file.recipe.data.validation, len(data.dataset.train_labels) // 10)
    file = file.with_recipe(file.recipe.with_data(data.dataset.name, held_out))
    mean, std = given.mean or data.dataset.mean, given.std or data.dataset.std
    channels = data.dataset.input_shape[0]
    fits = len(mean) == len(std) == channels and all(map(math.isfinite, (*mean, *std))) and min(std) > 0
    if not fits:
        raise RunError(f"--mean, --std: {given.data} has {channels} channels; give one number for each, std above 0")
    plan = make_plan(file, Data(replace(data.dataset, mean=mean, std=std), data.stand_in_for, data.reason))
    model = plan.build(0)
    notices = [f"pixels are normalised with mean {_plain(mean)} and std {_plain(std)}"]
    notices += _load_(model, state, given.weights)
    facts = {"weights": str(given.weights), "digest": digest(model.state_dict())}
    return Source(given.weights.stem, plan, model.eval(), None, facts, tuple(notices))


def _recipe(given: Elsewhere, overrides: Sequence[str]) -> RecipeFile:
    """The recipe that stands for a network trained elsewhere; `--set` changes it like any other."""
    file, colon, function = given.model.rpartition(":")
    model: dict[str, Any] = {"name": given.model}
    if colon and file.endswith(".py"):
        model = {"name": function, "file": str(Path(file).resolve())}
    tree = {"model": model, "data": {"name": given.data}, "train": {"steps": "10ep", "batch_size": 128, "lr": 1e-3}}
    return parse_recipe(Path.cwd() / f"{given.weights.stem}.yaml", tree, overrides, f"--weights {given.weights}")


def _load_(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> list[str]:
    """Put weights in place by name, or by order where only the names differ; returns what the user should know."""
    wanted = model.state_dict()
    broken = [name for name, value in state.items() if not bool(value.isfinite().all())]
    if broken:
        raise RunError(f"{path}: {', '.join(broken[:5])} not all finite numbers")
    if _names(state) == _names(wanted):
        wrong = [
            f"{name} is {_shape(state[name])}, not {_shape(wanted[name])}"
            for name in _names(wanted)
            if state[name].shape != wanted[name].shape
        ]
        if wrong:
            raise RunError(f"{path}: does not fit the model: {'; '.join(sorted(wrong)[:5])}")
        model.load_state_dict({**wanted, **state})
        return []
    pairs = _paired(wanted, state)
    if pairs is None:
        raise RunError(
            f"{path}: does not fit the model. The file has {_listed(state)}; the model wants {_listed(wanted)}"
        )
    values = {
        f"{ours}.{leaf}": state[f"{theirs}.{leaf}"]
        for ours, theirs in pairs.items()
        for leaf in _layers(wanted)[ours]
        if f"{theirs}.{leaf}" in state
    }
    model.load_state_dict({**wanted, **values})
    told = ", ".join(f"{theirs} → {ours}" for ours, theirs in pairs.items())
    return [f"{path.name}: layers have other names there; taken by shape and order: {told}"]


def _paired(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, str] | None:
    """Our layer → the first unused layer of the file with the same tensors; None where any is left over."""
    ours, theirs = _layers(wanted), _layers(state)
    # safetensors sorts names; a torch file has the order in which the layers were made
    free = sorted(theirs, key=_natural) if list(state) == sorted(state) else list(theirs)
    pairs: dict[str, str] = {}
    for name, shapes in ours.items():
        match = next((other for other in free if theirs[other] == shapes), None)
        if match is None:
            return None
        free.remove(match)
        pairs[name] = match
    return None if free else pairs


def _names(state: Mapping[str, Tensor]) -> set[str]:
    """Names of tensors; batch counters aside, which older files lack."""
    return {name for name in state if not name.endswith("num_batches_tracked")}


def _layers(state: Mapping[str, Tensor]) -> dict[str, dict[str, tuple[int, ...]]]:
    """Layer → shapes of its tensors."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, value in state.items():
        layer, _, leaf = name.rpartition(".")
        if name in _names(state):
            found.setdefault(layer, {})[leaf] = tuple(value.shape)
    return found


def _natural(name: str) -> list[tuple[int, int | str]]:
    """`conv2` before `conv10`."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name) if part]


def _plain(numbers: tuple[float, ...]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def _shape(value: Tensor) -> str:
    return "×".join(map(str, value.shape)) or "a number"


def _listed(state: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {_shape(value)}" for name, value in state.items())


def load_network(path: Path | str) -> nn.Module:
    """The network in a file that ticketlab wrote, ready for evaluation, compact ones at their own size.

    It expects (pixel / 255 - mean) / std, with `per_unit` for 255 where measurements are read; the facts that
    `read_network` returns hold all three.
    """
    state, facts = read_network(path)
    for plugin in facts["plugins"]:
        load_file(Path(plugin))
    return network_from(state, facts)
