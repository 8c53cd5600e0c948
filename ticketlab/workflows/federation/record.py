"""A federation as a whole: bytes against dense ones, spread over clients, the network that came of it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ticketlab.codec import Sparse, encode
from ticketlab.runs.results import FEDERATED_NETWORK
from ticketlab.runs.store import RunStore
from ticketlab.workflows.federation.server import read_round, round_name


def read_rounds(store: RunStore, rounds: int) -> list[dict[str, Any]]:
    """Records of finished rounds."""
    return [store.read_result(round_name(number)) for number in range(1, rounds + 1)]


def record_of(
    store: RunStore, start: Sparse, test_accuracy: float | None, request: Mapping[str, Any],
    controls: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    """The whole, as `--json` prints it."""
    rounds = read_rounds(store, request["settings"]["rounds"])
    dense = plain_bytes(start.state)
    sizes = {"dense": len(dense), "zipped": len(zlib.compress(dense))}
    return {
        "run": str(store.path),
        "source": request["source"],
        "level": request["level"],
        "rule": request["settings"]["rule"],
        "partition": request["settings"]["partition"],
        "density": rounds[-1]["density"],
        "start": {"weights": request["start"], "density": start.facts["density"], "test_accuracy": test_accuracy},
        "rounds": rounds,
        "dense_bytes": sizes["dense"],
        "zipped_dense_bytes": sizes["zipped"],
        "ratio": ratios(rounds, sizes["dense"]),
        "ratio_zipped": ratios(rounds, sizes["zipped"]),
        "ratio_wire": ratios(rounds, sizes["dense"], "wire"),
        "controls": list(controls),
    }


def plain_bytes(state: Mapping[str, Tensor]) -> bytes:
    """A network as plain numbers, zeros too."""
    return b"".join(value.contiguous().numpy().tobytes() for value in state.values())


def ratios(rounds: Sequence[Mapping[str, Any]], dense: int, of: str = "bytes") -> dict[str, float | None]:
    """How many times fewer bytes than so many for each client that answered and round, in both directions.

    Args:
        of: `bytes` of the messages' blobs, or `wire`.
    """
    answered = [client for one in rounds for client in one["clients"] if client["state"] == "ok"]
    totals = {way: sum(client[f"{of}_{way}"] or 0 for client in answered) for way in ("up", "down")}
    return {way: round(dense * len(answered) / total, 2) if total else None for way, total in totals.items()}


def write_network(store: RunStore, number: int, like: Sparse) -> None:
    """Keep the network of the last round as a ticket."""
    network, _ = read_round(store, number, like)
    store.write_file(FEDERATED_NETWORK, encode(network))
