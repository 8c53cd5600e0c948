"""The coordinator's program: give clients their orders by name, gather, merge, evaluate, keep; repeat."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ticketlab.codec import Sparse
from ticketlab.data.batches import permutation
from ticketlab.data.files import Places
from ticketlab.errors import FailedRun
from ticketlab.federate.rules import adaptive, early_bird, fixed, personal, sign_flip, submodels  # noqa: F401
from ticketlab.federate.rules.rule import Memory, Rule, rules
from ticketlab.federate.tied import tie_app
from ticketlab.federate.traffic import counted
from ticketlab.models.build import network_from
from ticketlab.pruning.masks import density
from ticketlab.recipe import SECURE_CLIENTS, FederateSection
from ticketlab.runs.manifest import now
from ticketlab.runs.results import REQUEST
from ticketlab.runs.store import RunStore
from ticketlab.seeds import derive_seed
from ticketlab.workflows.federation.exchange import POLL, Outcome, Session, exchange, states
from ticketlab.workflows.federation.secure import exchange_securely
from ticketlab.workflows.federation.start import Start, read_start
from ticketlab.workflows.fuse import accuracies

FAILURE, LIVE = "failure.json", "live.json"
FOLDER = "TICKETLAB_FEDERATION"
"""Environment variable that names the run's folder where the engine has no run config, as in simulations."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds that are missing; what failed is kept where the coordinator looks."""
    tie_app()
    store = RunStore(Path(str(context.run_config.get("folder") or os.environ[FOLDER])))
    try:
        federate(grid, store, store.read_result(REQUEST))
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            told = "the disk is full; free some of it, and the same command goes on with the unfinished round"
        store.write_result(FAILURE, {"error": told})
        raise


def federate(grid: Grid, store: RunStore, request: Mapping[str, Any]) -> None:
    """Rounds from the first one that is not finished."""
    torch.set_num_threads(1)
    settings = FederateSection.model_validate(request["settings"])
    start = read_start(request, Places(_path(request["data"]), Places.default().cache, may_download=False))
    rule = make_rule(start.network, settings, request["clients"])
    session = Session(grid, request, lambda outcomes: _tell(store, number, outcomes))
    gather = exchange_securely if settings.secure else exchange
    number = 0
    for number in range(1, settings.rounds + 1):
        if store.has_result(round_name(number)):
            continue
        if number > 1 and not session.started:
            rule.recall_(*read_round(store, number - 1, start.network))
        _tell(store, number, [])
        began = time.perf_counter()
        names = _drawn(request["clients"], settings, number)
        nodes = _wait(session, names)
        answers, outcomes = gather(session, rule, number, nodes, names)
        _count(session, store, outcomes)
        session.started = True
        _check(outcomes, request, number)
        facts = rule.merge(number, answers)
        record = {
            "round": number,
            **_judged(rule.network, start),
            "density": density(rule.network.mask) if rule.network.mask else 1.0,
            "seconds": round(time.perf_counter() - began, 3),
            "rule": {**facts, **session.facts},
            "spread": {key: spread(outcomes, key) for key in ("accuracy", "accuracy_after")},
            "clients": [asdict(outcome) for outcome in outcomes],
        }
        write_round(store, number, rule)
        store.write_result(round_name(number), record)


def spread(outcomes: Sequence[Outcome], key: str) -> dict[str, float] | None:
    """Mean over clients, mean of the worst tenth (one at least), and lowest of a number; None where nobody told it."""
    told = [getattr(outcome, key) for outcome in outcomes if outcome.state == "ok"]
    values = sorted(value for value in told if value is not None)
    if not values:
        return None
    worst = values[: max(1, len(values) // 10)]
    return {"mean": sum(values) / len(values), "worst_tenth": sum(worst) / len(worst), "lowest": values[0]}


def _count(session: Session, store: RunStore, outcomes: Sequence[Outcome]) -> None:
    """Add what went through the gate since the round before, where there is a gate."""
    folder = store.path / "flower"
    for outcome in outcomes:
        key = folder / "keys" / f"{outcome.name}.pub"
        found = counted(folder / "traffic.json", key.read_bytes()) if key.is_file() else None
        if found is not None:
            before = session.counted.get(outcome.name, (0, 0))
            outcome.wire_up, outcome.wire_down = found[0] - before[0], found[1] - before[1]
            session.counted[outcome.name] = found


def make_rule(start: Sparse, settings: FederateSection, clients: Sequence[str]) -> Rule:
    """The server's side of the rule that the settings name."""
    return rules.find(settings.rule)(start, settings, clients, **settings.options)


def _judged(network: Sparse, start: Start) -> dict[str, float]:
    """Accuracy of the global network on the coordinator's validation and test examples."""
    return accuracies(network_from(network.state, network.facts), start.splits)


def _check(outcomes: Sequence[Outcome], request: Mapping[str, Any], number: int) -> None:
    """Raise FailedRun for fewer answers than needed; none is never enough."""
    needed = max(1, request["min_clients"])
    answered = sum(outcome.state == "ok" for outcome in outcomes)
    if answered < needed:
        raise FailedRun(f"round {number}: {answered} of {needed} needed clients answered ({states(outcomes)})")


# --- rounds on disk


def round_name(number: int) -> str:
    """File of a finished round."""
    return f"round_{number}.json"


def write_round(store: RunStore, number: int, rule: Rule) -> None:
    """Keep the network, its mask, and what the rule must know again."""
    memory = rule.memory()
    tensors = {
        **{f"mask:{name}": kept for name, kept in rule.network.mask.items()},
        **{f"memory:{name}": value for name, value in memory.tensors.items()},
    }
    # masks of a rule's memory may be the network's own tensors, which a file may hold once only
    whole = {name: value.clone() for name, value in {**rule.network.state, **tensors}.items()}
    store.write_state(number, whole, memory.facts)


def read_round(store: RunStore, number: int, like: Sparse) -> tuple[Sparse, Memory]:
    """What `write_round` kept, its tensors in the order of `like`, on which vectors of their values depend."""
    tensors, told = store.read_state(number)
    parts: dict[str, dict[str, Any]] = {"mask": {}, "memory": {}, "": {}}
    for name, value in tensors.items():
        kind, _, rest = name.partition(":") if name.startswith(("mask:", "memory:")) else ("", "", name)
        parts[kind][rest] = value
    mask = {name: parts["mask"][name] for name in like.mask if name in parts["mask"]}
    return Sparse(mask, {name: parts[""][name] for name in like.state}, like.facts), Memory(parts["memory"], told)


# --- clients


def _drawn(clients: Sequence[str], settings: FederateSection, number: int) -> list[str]:
    """Names of a round's clients: all, or so many, drawn anew each round."""
    count = settings.clients_per_round or len(clients)
    order = permutation(len(clients), derive_seed(settings.seed, "drawn", number))[:count]
    return [clients[int(index)] for index in order.sort().values]


def _wait(session: Session, names: Sequence[str]) -> dict[str, int]:
    """Those of a round's clients that are online, by name.

    In the first round all of them are waited for, and after the deadline enough will do; later only enough are waited
    for. Raises FailedRun where they do not come.
    """
    request = session.request
    end = time.monotonic() + request["join_timeout"]
    least = max(SECURE_CLIENTS if request["settings"]["secure"] else 1, request["min_clients"])
    wanted = least if session.started else len(names)
    told: set[str] | None = None
    while True:
        online = {name: node for name, node in _online(session).items() if name in names}
        if len(online) >= wanted or (len(online) >= least and time.monotonic() > end):
            return online
        if time.monotonic() > end:
            missing = ", ".join(name for name in names if name not in online)
            raise FailedRun(f"not online within {request['join_timeout']:g} s: {missing}")
        found = [Outcome(name, "online" if name in online else "offline") for name in names]
        if set(online) != told:
            told = set(online)
            session.say(found)
        session.remind(found)
        time.sleep(POLL)


def _online(session: Session) -> dict[str, int]:
    """Clients by name; nodes of a simulation have no names, and any of them can be any client."""
    clients = session.request["clients"]
    if session.request["simulated"]:
        return dict(zip(clients, sorted(session.grid.get_node_ids()), strict=False))
    nodes = {node.name: node.node_id for node in session.grid.get_nodes() if node.status == "online"}
    return {name: nodes[name] for name in clients if name in nodes}


def _tell(store: RunStore, number: int, outcomes: Sequence[Outcome]) -> None:
    """What is known at this moment, for who looks on."""
    clients = [asdict(outcome) for outcome in outcomes]
    store.write_result(LIVE, {"round": number, "updated": now(), "clients": clients})


def _path(folder: str | None) -> Path | None:
    return Path(folder) if folder else None
