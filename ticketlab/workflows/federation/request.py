"""What a federation is asked to do, checked before anything starts, and as the programs are told it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ticketlab.data.partition import partitions
from ticketlab.errors import TicketlabError
from ticketlab.federate.address import NAME, NO_NAME
from ticketlab.federate.rules import adaptive, early_bird, fixed, personal, sign_flip, submodels  # noqa: F401
from ticketlab.federate.rules.fixed import Fixed
from ticketlab.federate.rules.rule import rules
from ticketlab.recipe import SECURE_CLIENTS, FederateSection
from ticketlab.registry import check_options
from ticketlab.runs.manifest import short_hash
from ticketlab.workflows.run import Machine
from ticketlab.workflows.ship import Shipment


@dataclass(frozen=True)
class Asked:
    """Who trains together, how, and how long is waited for whom."""

    clients: tuple[str, ...]
    settings: FederateSection = field(default_factory=FederateSection)
    min_clients: int = 1
    round_timeout: float = 600.0
    join_timeout: float = 120.0
    simulated: bool = False
    """Whether the clients are those of Flower's simulation engine."""

    def check(self) -> None:
        """Raise TicketlabError that lists what cannot be run."""
        problems = [*self._clients(), *self._options()]
        if problems:
            raise TicketlabError("\n".join(problems))

    def _clients(self) -> list[str]:
        found = []
        if not self.clients or len(set(self.clients)) < len(self.clients):
            found.append(f"--clients: name each client once, with commas between (got {','.join(self.clients)})")
        found += [f"--clients: {NO_NAME.format(name)}" for name in self.clients if not NAME.fullmatch(name)]
        drawn = self.settings.clients_per_round or len(self.clients)
        if drawn > len(self.clients):
            found.append(f"federate.clients_per_round: there are {len(self.clients)} clients, not {drawn}")
        elif self.min_clients > drawn:
            found.append(f"--min-clients {self.min_clients}: there are {drawn} clients in a round")
        if self.settings.secure and drawn < SECURE_CLIENTS:
            found.append(
                f"federate.secure: needs {SECURE_CLIENTS} clients in a round, not {drawn}: of two, each knows "
                "the other's part of the sum"
            )
        if self.settings.secure and self.simulated:
            found.append("federate.secure: is not for simulations, in which one process has all answers anyway")
        return found

    def _options(self) -> list[str]:
        settings, rule = self.settings, rules.find(self.settings.rule)
        found = [
            f"federate.partition_options.{name}: {message}"
            for name, message in check_options(partitions.find(settings.partition), settings.partition_options)
        ]
        found += [f"federate.options.{name}: {message}" for name, message in check_options(rule, settings.options)]
        of_fixed = {
            "privacy": settings.privacy is not None,
            "aggregate": settings.aggregate != "mean",
            "server_lr": settings.server_lr != 1,
            "server_momentum": settings.server_momentum != 0,
        }
        if not issubclass(rule, Fixed):
            found += [
                f"federate.{name}: needs one mask for all clients; rule {settings.rule} has several"
                for name, is_set in of_fixed.items()
                if is_set
            ]
        if settings.rule == "personal" and settings.holdout == 0:
            found.append("federate.holdout: rule personal decides by examples that are held out; set it above 0")
        if (
            settings.privacy is not None
            and settings.privacy.kind == "central_client"
            and settings.precision != "float32"
        ):
            found.append("federate.privacy: float16 moves updates after clients have clipped them; use float32")
        if settings.privacy is not None and settings.rule != "fixed":
            found.append(f"federate.privacy: is for rule fixed; {settings.rule} looks at each client's own answer")
        return found

    @property
    def starts_dense(self) -> bool:
        """Whether the rule begins with a dense network."""
        return rules.find(self.settings.rule).starts_dense

    @property
    def start(self) -> str:
        """Weights at the start."""
        return self.settings.start or ("rewound" if self.starts_dense else "trained")


def request_of(given: Shipment, asked: Asked, machine: Machine) -> dict[str, Any]:
    """What the programs are told, as JSON."""
    source = given.network.facts["source"]
    is_level = given.store.kind == "prune"
    secure = {"most_examples": len(given.splits.of_clients)} if asked.settings.secure else {}
    return {
        **secure,
        "settings": asked.settings.model_dump(mode="json"),
        "work": rules.find(asked.settings.rule).work,
        "start": asked.start,
        "clients": list(asked.clients),
        "simulated": asked.simulated,
        "min_clients": asked.min_clients,
        "round_timeout": asked.round_timeout,
        "join_timeout": asked.join_timeout,
        "runs": str(given.store.path.resolve().parent),
        "source": given.store.name,
        "digest": source.get("digest"),
        "level": source["level"] if is_level else None,
        "replicate": source["replicate"] if is_level else 1,
        "data": str(machine.places.root.resolve()) if machine.places.root else None,
    }


def request_hash(request: Mapping[str, Any]) -> str:
    """Short hash of what decides the result; the number of rounds and the patience do not."""
    told_apart = {key: value for key, value in request.items() if key not in _FREE}
    settings = {key: value for key, value in request["settings"].items() if key != "rounds"}
    default = FederateSection().model_dump(mode="json")
    told_apart["settings"] = {key: value for key, value in settings.items() if value != default.get(key)}
    return short_hash(told_apart)


_FREE = ("round_timeout", "join_timeout", "min_clients", "runs", "data", "simulated")
