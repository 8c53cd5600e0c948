"""Federations in one process: a tiny pruned run, requests for rounds, and the networks that come of them."""

from pathlib import Path

from support import TINY

from ticketlab.codec import Sparse
from ticketlab.data.files import Places
from ticketlab.federate.direct import Direct
from ticketlab.recipe import FederateSection
from ticketlab.recipe_file import read_recipe
from ticketlab.runs.store import RunStore
from ticketlab.workflows.federation.client import train
from ticketlab.workflows.federation.request import Asked, request_of
from ticketlab.workflows.federation.server import federate, read_round, round_name
from ticketlab.workflows.run import Machine, prune_run
from ticketlab.workflows.ship import shipment


def pruned(folder: Path) -> Machine:
    """Where a run of two levels on digits is kept."""
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    found = Machine(folder / "runs", Places(None, folder / "cache", may_download=False), "cpu")
    list(prune_run(read_recipe(folder / "tiny.yaml", ["train.steps=60it"]), found))
    return found


def given_of(machine, level):
    (store,) = [RunStore(path) for path in machine.runs.glob("tiny-??????")]
    return shipment(store, machine.places, level)


def asked_of(machine, clients=3, patience=60.0, least=1, **section):
    level = 0 if section.get("rule") in ("early_bird", "personal") else 2
    given = given_of(machine, level)
    names = tuple(f"c{index}" for index in range(clients))
    settings = FederateSection(**{"rounds": 2, **section})
    asked = Asked(names, settings, min_clients=least, round_timeout=patience, join_timeout=2, simulated=True)
    asked.check()
    return request_of(given, asked, machine)


def ran(store, request, answer=train, rounds=None):
    if rounds:
        request = {**request, "settings": {**request["settings"], "rounds": rounds}}
    store.path.mkdir(parents=True, exist_ok=True)
    federate(Direct(len(request["clients"]), answer, {}), store, request)
    return [store.read_result(round_name(number)) for number in range(1, request["settings"]["rounds"] + 1)]


def network_after(store, number):
    tensors, _ = store.read_state(number)
    names = {name for name in tensors if not name.startswith("memory:")}
    mask = {name.removeprefix("mask:"): tensors[name] for name in names if name.startswith("mask:")}
    return read_round(
        store, number, Sparse(mask, {name: tensors[name] for name in sorted(names - {f"mask:{n}" for n in mask})}, {})
    )
