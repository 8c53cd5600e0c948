"""Supermasks: how well a network of untrained weights does when nothing but a mask is chosen.

RUN/supermask/one_shot/replicate_1/magnitude.json    masks of the trained network, laid over weights before training
RUN/supermask/edge_popup_…/replicate_1/mask.json     masks that were trained (workflows/learn_mask.py)
RUN/supermask/supermask.json, .png, .svg             all of them side by side

Sources: Zhou et al. 2019, "Deconstructing lottery tickets"; Ramanujan et al. 2020.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from ticketlab.data.batches import Examples
from ticketlab.errors import Interrupted, RunError, Stop
from ticketlab.pruning.criteria import criteria
from ticketlab.pruning.masks import Mask, State, density, full_mask, masked
from ticketlab.recipe import Recipe
from ticketlab.report import estimate
from ticketlab.runs.results import SUPERMASK
from ticketlab.runs.store import RunStore
from ticketlab.seeds import derive_seed
from ticketlab.training.loop import evaluate
from ticketlab.training.recalibrate import recalibrate_
from ticketlab.workflows.amounts import looks_at_examples
from ticketlab.workflows.learn_mask import (
    WEIGHTS,
    Learning,
    has_mask,
    initial_weights,
    learn_mask,
    read_mask,
    weights_of_kind,
)
from ticketlab.workflows.plan import Plan
from ticketlab.workflows.progress import Notice, Progress
from ticketlab.workflows.run import Machine, told
from ticketlab.workflows.schedule import COUNTED, counts_flips
from ticketlab.workflows.tickets import Observed, flip_evidence, mask_by_criterion, replicate_seed
from ticketlab.workflows.train_level import Settings
from ticketlab.workflows.trunk import (
    Branch,
    Branched,
    data_facts,
    finished_replicates,
    run_branches,
    run_plan,
    train_sample,
    write_figures,
)

ONE_SHOT = (
    "magnitude", "large_final_same_sign", "magnitude_increase", "magnitude_increase_same_sign", "movement",
    "large_init", "small_final", "random",
)  # fmt: skip
"""Criteria that are tried where none are named; the last two are controls."""
DENSITIES = tuple(0.85**power for power in range(1, 29))
"""Densities that masks are tried at: from 85 % down to 1.06 %."""
FOLDER = "supermask"
NO_MASK = "no_mask"
UNMASKED = f"{NO_MASK}.json"


def supermask_run(
    store: RunStore,
    names: Sequence[str],
    learning: Learning | None,
    machine: Machine,
    should_stop: Stop = lambda: False,
) -> Iterator[Branched | Notice | dict[str, Any]]:
    """Judge or learn masks with every replicate of a run; yields what is seen, at last the record.

    Args:
        names: Of criteria that draw masks of the trained dense network; none stands for those of `ONE_SHOT`.
        learning: How a mask is learned instead.

    Raises RunError for a run without a dense network that was trained to its end.
    """
    plan = run_plan(store, machine.places)
    chosen = [] if learning else list(dict.fromkeys(names)) or list(ONE_SHOT)
    check_supermasks(plan.recipe, plan.name, chosen)
    replicates = finished_replicates(store, 0)
    with told(store), store.lock():
        missing = [number for number in replicates if not _has_judged(store, number, chosen)]
        judged = [Branch(f"{FOLDER}/one_shot", number, 0) for number in missing]
        yield from run_branches(store, judged, partial(judge_masks, chosen), machine, should_stop)
        if learning:
            missing = [number for number in replicates if not has_mask(store.part(learning.folder), number)]
            learned = [Branch(learning.folder, number, 0) for number in missing]
            yield from run_branches(store, learned, partial(learn_mask, learning), machine, should_stop)
        # those of earlier calls are told, too
        record = supermask_record(store, plan, replicates)
        store.write_result(SUPERMASK, record)
        _show(store, record)
    yield record


def check_supermasks(recipe: Recipe, run: str, names: Sequence[str]) -> None:
    """Raise TicketlabError where runs of a recipe have no trained dense network, or not what criteria look at."""
    if recipe.method not in ("imp", "oneshot"):
        raise RunError(
            f"{run}: method {recipe.method} need not train the dense network to its end; "
            "make a run with: -s method=imp -s pruning.levels=0"
        )
    for name in names:
        if looks_at_examples(name):
            raise RunError(f"{run}: '{name}' looks at training examples, which masks for untrained weights do not")
        if criteria.needs(name) & COUNTED and not counts_flips(recipe):
            raise RunError(
                f"{run}: '{name}' needs sign flips, which it does not count; make a run with: -s 'watch=[sign_flips]'"
            )


# --- masks of the trained network


def _has_judged(store: RunStore, replicate: int, names: Sequence[str]) -> bool:
    files = [UNMASKED, *(f"by_{name}.json" for name in names)]
    return all(store.has_result(f"{FOLDER}/one_shot/replicate_{replicate}/{file}") for file in files)


def judge_masks(
    names: Sequence[str], plan: Plan, store: RunStore, branch: Branch, settings: Settings
) -> Iterator[Progress | Notice]:
    """Lay each criterion's masks over untrained weights; the best on validation data is read on test data, once."""
    part, folder = store.part(branch.folder), f"replicate_{branch.replicate}"
    if not part.has_result(f"{folder}/{UNMASKED}"):
        part.write_result(f"{folder}/{UNMASKED}", _judge_unmasked(plan, store, branch, settings))
    for done, name in enumerate(names, start=1):
        if part.has_result(f"{folder}/by_{name}.json"):
            continue
        record = _judge_criterion(_with_criterion(plan, name), store, branch, settings)
        part.write_result(f"{folder}/by_{name}.json", record)
        yield Progress(branch.replicate, 0, 0, done, len(names), record["init"]["val_accuracy"])
        initial, constant = (f"{100 * record[kind]['test_accuracy']:.2f} %" for kind in WEIGHTS)
        yield Notice(f"{name}: test accuracy {initial} of initial weights, {constant} of signed constants")


def _with_criterion(plan: Plan, name: str) -> Plan:
    """The plan as if its recipe named another criterion."""
    recipe = plan.recipe
    if recipe.pruning.criterion == name:
        return plan
    section = recipe.pruning.model_copy(update={"criterion": name, "options": {}})
    return replace(plan, file=plan.file.with_recipe(recipe.model_copy(update={"pruning": section})))


def _judge_unmasked(plan: Plan, store: RunStore, branch: Branch, settings: Settings) -> dict[str, Any]:
    """The whole network before training, with both kinds of weights."""
    initial = initial_weights(plan, store, branch.replicate)
    test = plan.splits.test.to(settings.device)
    network = _Untrained(plan, settings.device)
    every = full_mask(network.model)
    return {
        kind: {"test_accuracy": network.accuracy(weights_of_kind(kind, initial, plan), every, test)} for kind in WEIGHTS
    }


def _judge_criterion(plan: Plan, store: RunStore, branch: Branch, settings: Settings) -> dict[str, Any]:
    initial = initial_weights(plan, store, branch.replicate)
    masks = one_shot_masks(plan, store, branch.replicate, initial)
    splits, network = plan.splits.to(settings.device), _Untrained(plan, settings.device)
    found: dict[str, Any] = {}
    for kind in WEIGHTS:
        weights = weights_of_kind(kind, initial, plan)
        curve: list[dict[str, float]] = []
        for mask in masks:
            if settings.should_stop():
                raise Interrupted(f"stopped at criterion '{plan.recipe.pruning.criterion}'; finished ones are kept")
            val_accuracy = network.accuracy(weights, mask, splits.validation)
            curve.append({"density": density(mask), "val_accuracy": val_accuracy})
        # the densest of several equal ones
        best = max(range(len(masks)), key=lambda index: curve[index]["val_accuracy"])
        test_accuracy = network.accuracy(weights, masks[best], splits.test)
        found[kind] = {**curve[best], "test_accuracy": test_accuracy, "curve": curve}
    return found


def one_shot_masks(plan: Plan, store: RunStore, replicate: int, initial: State) -> list[Mask]:
    """The plan's criterion applied once to the trained dense network, at each density; pools as the recipe says."""
    trained = store.read_weights(replicate, 0, "final")
    every = full_mask(plan.build(0))
    name = plan.recipe.pruning.criterion
    seen = Observed(
        derive_seed(replicate_seed(plan, replicate), "supermask", name),
        initial,
        flips=flip_evidence(store.read_flips(replicate, 0)),
    )
    numbers = {layer: trained[layer] for layer in every}
    return [mask_by_criterion(plan, numbers, every, seen, plan.keeps_at(at), f"density {at:.4f}") for at in DENSITIES]


class _Untrained:
    """A network that is given weights and never trained; batch norms are given the statistics of a training sample."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        self.model: nn.Module = plan.build(0).to(device)
        self._sample = train_sample(plan).to(device)

    def accuracy(self, weights: State, mask: Mask, examples: Examples) -> float:
        """Accuracy of mask ⊙ weights, a fraction of 1."""
        self.model.load_state_dict(masked(weights, mask))
        # running statistics of before any training are 0 and 1, those of no network
        recalibrate_(self.model, self._sample)
        return evaluate(self.model, examples)[1]


# --- what came of it


def supermask_record(store: RunStore, plan: Plan, replicates: Sequence[int]) -> dict[str, Any]:
    """Everything that is finished, as one JSON object; each criterion and mask over the replicates that have it."""
    unmasked = _judged(store, UNMASKED, replicates)
    return {
        "run": str(store.path),
        **data_facts(store),
        "seeds": [replicate_seed(plan, number) for number in replicates],
        "trained": asdict(estimate([store.read_level(number, 0).final_test_accuracy for number in replicates])),
        "no_mask": [
            {"weights": kind, "test_accuracy": asdict(estimate([found[kind]["test_accuracy"] for found in unmasked]))}
            for kind in WEIGHTS
        ],
        "one_shot": [
            _over_replicates(name, kind, found)
            for name in criteria
            if (found := _judged(store, f"by_{name}.json", replicates))
            for kind in WEIGHTS
        ],
        "learned": [
            _learned(part, found)
            for part in (store.part(f"{FOLDER}/{name}") for name in store.parts(FOLDER))
            if (found := [read_mask(part, number) for number in replicates if has_mask(part, number)])
        ],
    }


def _judged(store: RunStore, file: str, replicates: Sequence[int]) -> list[dict[str, Any]]:
    """A record of each replicate that has it."""
    part = store.part(f"{FOLDER}/one_shot")
    paths = [f"replicate_{number}/{file}" for number in replicates]
    return [part.read_result(path) for path in paths if part.has_result(path)]


def untrained_accuracy(store: RunStore, name: str, kind: str) -> dict[int, float]:
    """Seed → test accuracy of one kind of untrained weights under a criterion's mask, or under none (`no_mask`)."""
    file = UNMASKED if name == NO_MASK else f"by_{name}.json"
    one_shot = store.part(f"{FOLDER}/one_shot")
    return {
        store.read_level(number, 0).seed: one_shot.read_result(f"replicate_{number}/{file}")[kind]["test_accuracy"]
        for number in store.replicates()
        if one_shot.has_result(f"replicate_{number}/{file}")
    }


def _over_replicates(name: str, kind: str, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found = [record[kind] for record in records]
    points = []
    for same in zip(*(one["curve"] for one in found), strict=True):
        values = [point["val_accuracy"] for point in same]
        points.append(
            {
                "density": same[0]["density"],
                "val_accuracy": asdict(estimate(values)),
                "lowest": min(values),
                "highest": max(values),
            }
        )
    return {
        "criterion": name,
        "weights": kind,
        "test_accuracy": asdict(estimate([one["test_accuracy"] for one in found])),
        "val_accuracy": asdict(estimate([one["val_accuracy"] for one in found])),
        "densities": [one["density"] for one in found],
        "curve": points,
    }


def _learned(part: RunStore, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    threshold = [one["threshold_test_accuracy"] for one in found]
    return {
        **{key: found[0][key] for key in ("method", "weights", "density", "rescale", "steps", "lr")},
        "mask": _title(found[0]),
        "folder": part.name,
        "test_accuracy": asdict(estimate([one["test_accuracy"] for one in found])),
        "val_accuracy": asdict(estimate([one["val_accuracy"] for one in found])),
        "threshold_test_accuracy": None if None in threshold else asdict(estimate(threshold)),
        "densities": [one["kept_density"] for one in found],
        "best_steps": [one["step"] for one in found],
        "seconds": [one["seconds"] for one in found],
    }


def _title(found: dict[str, Any]) -> str:
    """How a mask was learned, in words."""
    density = [] if found["density"] is None else [f"density {found['density']:g}"]
    rescaled = ["rescaled"] if found["rescale"] else []
    return ", ".join([found["method"].replace("_", "-"), *density, *rescaled, found["steps"], f"lr {found['lr']:g}"])


def _show(store: RunStore, record: dict[str, Any]) -> None:
    """The figure, as files and in TensorBoard, with the curves as scalars: step is the density in thousandths."""
    from ticketlab.runs.tensorboard import write_curves
    from ticketlab.ticket_figures import supermasks

    pictures = write_figures(store, FOLDER, {"supermask": supermasks(record)})
    curves = {
        f"supermask_{row['weights']}/{row['criterion']}": {
            round(1000 * point["density"]): point["val_accuracy"]["mean"] for point in row["curve"]
        }
        for row in record["one_shot"]
    }
    write_curves(store.path / FOLDER, curves, {"supermasks": pictures["supermask"]})
