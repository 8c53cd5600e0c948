"""Federated tickets beside their controls, with intervals; all arms have the same rounds, clients, parts and seeds.

    python benchmarks/federation.py labels --runs DIR    # MNIST, 10 clients of 600 digits, two partitions
    python benchmarks/federation.py people --runs DIR    # human activity, 30 people, personal tickets
    python benchmarks/federation.py labels --show --runs DIR

The clients are trained one after the other in this process, with the messages of real ones. Each round is kept: the
same command goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ticketlab.data.files import Places
from ticketlab.federate.direct import Direct
from ticketlab.models.build import network_from
from ticketlab.recipe import FederateSection
from ticketlab.recipe_file import read_recipe
from ticketlab.report import estimate
from ticketlab.runs.store import RunStore
from ticketlab.training.loop import evaluate
from ticketlab.workflows.federation.client import train
from ticketlab.workflows.federation.record import plain_bytes, ratios, read_rounds
from ticketlab.workflows.federation.request import Asked, request_of
from ticketlab.workflows.federation.server import federate, read_round
from ticketlab.workflows.federation.start import starting
from ticketlab.workflows.run import Machine, Started, prune_run
from ticketlab.workflows.ship import Shipment, shipment

SEEDS = (0, 1, 2)

LABELS = {
    "dense": (0, "rewound", {}),
    "dense, warm": (0, "trained", {}),
    "ticket, warm": (10, "trained", {}),
    "ticket, own first weights": (10, "rewound", {}),
    "ticket, fresh weights": (10, "reinit", {}),
    "ticket, warm, float16": (10, "trained", {"precision": "float16"}),
}
"""Arm → level, weights at the start, further settings."""
PARTITIONS = {
    "Dirichlet 0.5": {"partition": "dirichlet", "partition_options": {"alpha": 0.5}},
    "two shards": {"partition": "shards", "partition_options": {"per_client": 2}},
}
PEOPLE = {
    "one network (FedAvg)": (0, "rewound", {}),
    "personal tickets": (0, "rewound", {"rule": "personal", "options": {"accuracy": 0.6, "rate": 0.2, "target": 0.3}}),
}


def main() -> None:
    """Run what is missing, then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("labels", "people"))
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    said = parser.parse_args()
    torch.set_num_threads(1)
    machine = Machine(said.runs, Places.default(), "cpu")
    found = list((labels if said.what == "labels" else people)(machine, said.seeds, said.show))
    (show_labels if said.what == "labels" else show_people)(found)


def labels(machine: Machine, seeds: tuple[int, ...], is_over: bool) -> Iterator[dict[str, Any]]:
    """Every arm of the label-skewed partitions."""
    run = _pruned(machine, "recipes/federate_lenet_mnist.yaml", f"replicates={max(seeds) + 1}")
    shared = {"rounds": 15, "epochs": 2, "lr": 0.1, "batch_size": 32, "examples_per_client": 667}
    for partition, told in PARTITIONS.items():
        for seed in seeds:
            for arm, (level, start, more) in LABELS.items():
                settings = {**shared, **told, **more, "start": start, "seed": seed}
                given = shipment(run, machine.places, level, seed + 1)
                yield {"partition": partition, **_arm(machine, given, arm, settings, 10, is_over)}


def people(machine: Machine, seeds: tuple[int, ...], is_over: bool) -> Iterator[dict[str, Any]]:
    """One network for all people, and personal tickets."""
    run = _pruned(machine, "recipes/federate_har_cnn_hapt.yaml", f"replicates={max(seeds) + 1}")
    shared = {"rounds": 20, "epochs": 5, "lr": 0.05, "batch_size": 32, "partition": "group", "holdout": 0.1}
    for seed in seeds:
        for arm, (level, start, more) in PEOPLE.items():
            given = shipment(run, machine.places, level, seed + 1)
            yield _arm(machine, given, arm, {**shared, **more, "start": start, "seed": seed}, 30, is_over)


def _pruned(machine: Machine, recipe: str, *overrides: str) -> RunStore:
    """The run in which tickets are found; goes on where it stands."""
    events = prune_run(read_recipe(Path(recipe), overrides), machine)
    (store,) = [event.store for event in events if isinstance(event, Started)]
    return store


def _arm(
    machine: Machine, given: Shipment, arm: str, settings: dict[str, Any], clients: int, is_over: bool
) -> dict[str, Any]:
    """One federation; `is_over` only reads it."""
    seed = settings["seed"]
    asked = Asked(
        tuple(f"c{index:02d}" for index in range(clients)),
        FederateSection.model_validate(settings),
        simulated=True,
    )
    asked.check()
    request = request_of(given, asked, machine)
    place = "-".join([arm, str(settings["partition"]), str(seed)]).replace(" ", "_").replace(",", "")
    store = RunStore(machine.runs / "federation" / place)
    store.path.mkdir(parents=True, exist_ok=True)
    if not is_over:
        federate(Direct(clients, train, {"data": request["data"] or ""}), store, request)
    rounds = read_rounds(store, settings["rounds"])
    begin = starting(given, settings["start"], machine.places)
    sizes = len(plain_bytes(begin.state))
    print(f"{place}: {100 * rounds[-1]['test_accuracy']:.2f} %", flush=True)
    return {
        "arm": arm, "seed": seed, "rounds": rounds, "alone": given.test_accuracy,
        "ratio": ratios(rounds, sizes), "first": ratios(rounds[:1], sizes), "later": ratios(rounds[1:], sizes),
        "each": _each(store, given, settings["rounds"], begin),
    }  # fmt: skip


def _each(store: RunStore, given: Shipment, number: int, begin: Any) -> list[float]:
    """Accuracy of the last global network on each person's test examples."""
    test = given.splits.test
    if test.groups is None:
        return []
    network, _ = read_round(store, number, begin)
    model = network_from(network.state, network.facts)
    groups = test.groups.unique().tolist()
    return [evaluate(model, test.some((test.groups == group).nonzero().flatten()))[1] for group in groups]


def show_labels(found: list[dict[str, Any]]) -> None:
    """Final accuracy of each arm, and paired differences from warm dense FedAvg and from fresh weights."""
    for partition in PARTITIONS:
        rows = [row for row in found if row["partition"] == partition]
        by = {(row["arm"], row["seed"]): row for row in rows}
        seeds = sorted({row["seed"] for row in rows})
        print(f"\n{partition}, n = {len(seeds)}")
        heads = [
            "arm",
            "alone",
            "test accuracy",
            "− dense, warm",
            "− fresh weights",
            "down, with mask",
            "down, known",
            "up",
        ]
        print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
        for arm in LABELS:
            last = [100 * by[arm, seed]["rounds"][-1]["test_accuracy"] for seed in seeds]
            warm, fresh = (
                [100 * by[other, seed]["rounds"][-1]["test_accuracy"] for seed in seeds]
                for other in ("dense, warm", "ticket, fresh weights")
            )
            cells = [_told([100 * by[arm, seed]["alone"] for seed in seeds]), _told(last)]
            cells += [_told([a - b for a, b in zip(last, other, strict=True)], "+") for other in (warm, fresh)]
            sizes = [by[arm, seed][which][way] for which, way in (("first", "down"), ("later", "down"), ("ratio", "up"))
                     for seed in seeds[:1]]  # fmt: skip
            print(f"| {arm} | " + " | ".join([*cells, *(f"{size:.1f} ×" for size in sizes)]) + " |")


def show_people(found: list[dict[str, Any]]) -> None:
    """Mean over people and worst tenth, of the global network, and of each person's own after its training."""
    by = {(row["arm"], row["seed"]): row for row in found}
    seeds = sorted({row["seed"] for row in found})
    print(f"\n30 people, n = {len(seeds)}")
    print("| arm | global: mean | worst tenth | after own training: mean | worst tenth | density | up |")
    print("|---|---|---|---|---|---|---|")
    for arm in PEOPLE:
        rows = [by[arm, seed] for seed in seeds]
        cells = [_told([100 * sum(row["each"]) / len(row["each"]) for row in rows])]
        cells += [_told([100 * sum(sorted(row["each"])[:3]) / 3 for row in rows])]
        after = [row["rounds"][-1]["spread"]["accuracy_after"] for row in rows]
        cells += [_told([100 * one["mean"] for one in after]), _told([100 * one["worst_tenth"] for one in after])]
        kept = [_density(row["rounds"][-1]) for row in rows]
        print(
            f"| {arm} | "
            + " | ".join([*cells, _told([100 * one for one in kept]), f"{rows[0]['ratio']['up']:.1f} ×"])
            + " |"
        )


def _density(last: Mapping[str, Any]) -> float:
    own = last["rule"].get("densities")
    return sum(own.values()) / len(own) if own else last["density"]


def _told(values: list[float], sign: str = "") -> str:
    found = estimate(values)
    if len(values) < 2:
        return f"{found.mean:{sign}.2f}"
    return f"{found.mean:{sign}.2f} ± {(found.high - found.low) / 2:.2f}"


if __name__ == "__main__":
    main()
