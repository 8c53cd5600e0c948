"""What a benchmark's figures say: about masks, fused networks and sparse products, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

CSR = "scipy CSR"
UNCHANGED = 0.85
"""Share of the dense time above which a masked network is called no faster."""
BUSY = 1.5
"""Median in units of p10 from which on the machine had other work."""


def verdicts(rows: Sequence[dict[str, Any]], networks: Sequence[dict[str, Any]]) -> list[str]:
    """What the figures say, about each dense network and those that were made from it; p10 of one image, float32."""
    found = []
    for dense in (network for network in networks if network["kind"] == "dense"):
        family = [network for network in networks if network["source"] == dense["source"]]
        found += _of_family(dense, family, rows)
    return found + _busy(rows)


def _of_family(dense: Mapping[str, Any], family: Sequence[Mapping[str, Any]], rows: Sequence[Any]) -> list[str]:
    """About one dense network: each runtime, then masks in time and in bytes."""
    timed = {
        (row["runtime"], row["network"]): row["latency_us_p10"]
        for row in rows
        if row["dtype"] == "float32" and row["batch"] == 1
    }
    kinds = {network["network"]: network["kind"] for network in family}
    bases = {runtime: took for (runtime, name), took in timed.items() if name == dense["network"]}
    found, of_masks = [], []
    for runtime, base in bases.items():
        ratios = {
            name: timed[runtime, name] / base for name in kinds if name != dense["network"] and (runtime, name) in timed
        }
        of_masks += [ratio for name, ratio in ratios.items() if kinds[name] == "masked"]
        if ratios:
            said = ", ".join(f"{name} {ratio:.2f} ({1 / ratio:.2f} × as fast)" for name, ratio in ratios.items())
            found.append(f"{runtime}, float32, 1 image: of the {base:.1f} µs of {dense['network']}: {said}")
    if of_masks and min(of_masks) > UNCHANGED:
        found.append("A mask alone buys no time: these runtimes multiply by a zero as by any other number.")
    for network in (network for network in family if network["kind"] == "masked"):
        masked = network["network"]
        if (CSR, masked) in timed:
            own = timed[CSR, masked]
            beside = ", ".join(
                f"{own / base:.2f} of {runtime}'s dense {base:.1f} µs" for runtime, base in bases.items()
            )
            found.append(f"{CSR}, {masked}, 1 image: {own:.1f} µs, {beside}")
        found.append(
            f"A mask alone buys no bytes: {masked} takes {network['bytes']:,} as plain tensors, {dense['network']} "
            f"{dense['bytes']:,}; packed as a ticket {network['bytes_ticket']:,}, with int8 values "
            f"{network['bytes_ticket_int8']:,}."
        )
    return found


def _busy(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A warning where the machine had other work to do."""
    worst = max((row["latency_us_median"] / row["latency_us_p10"] for row in rows), default=1.0)
    return [f"The machine was busy: a median is {worst:.1f} × its p10; measure again."] if worst > BUSY else []
