"""Latency, size and memory of dense, masked, fused and int8 networks in every runtime that is here, side by side."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ticketlab.cost import Timing, interleaved, layer_macs, masked_flops, shares, size
from ticketlab.data.files import Places
from ticketlab.errors import FormatError
from ticketlab.formats import FORMATS
from ticketlab.formats.csr import csr_runner
from ticketlab.formats.format import Format, Network, Precision, torch_runner
from ticketlab.runs.files import temporary
from ticketlab.runs.manifest import environment
from ticketlab.runs.store import RunStore
from ticketlab.workflows.export import calibration_images, labelled
from ticketlab.workflows.ship import Shipment, sources
from ticketlab.workflows.train_level import Notice

RESULT = "bench.json"
BATCHES = (1, 64)
RUNTIMES: dict[str, tuple[str, tuple[Precision, ...]]] = {
    "onnx": ("ONNX Runtime", ("float32", "int8", "int8_dynamic")),
    "litert": ("LiteRT", ("float32", "int8", "int8_dynamic")),
    "executorch": ("ExecuTorch", ("float32", "int8")),
}
"""Format → what runs it, and the precisions that are timed."""
EAGER = "torch eager"
CSR = "scipy CSR"
UNCHANGED = 0.85
"""Share of the dense time above which a masked network is called no faster."""
MEMORY = """
import re
print(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
"""
"""Ends a script that runs a file alone: its peak memory in KiB, which Linux counts from the program's start."""


@dataclass(frozen=True)
class Contender:
    """A network in a runtime: how it is called, and its file."""

    network: str
    runtime: str
    precision: str
    call: Any
    content: bytes
    made: Format
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Bench:
    """What was measured; `networks` and `rows` are what `--json` prints."""

    networks: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    verdicts: list[str]
    files: list[Path]


def bench(shipments: Sequence[Shipment], root: Path, places: Places, out: Path) -> Iterator[Notice | Bench]:
    """Time networks beside the ones they were made from, all in one process, turn by turn, on one thread.

    Yields notices and at the end what was measured, with a figure and the table in `out`.
    """
    torch.set_num_threads(1)
    named = _named(_with_sources(shipments, root, places))
    rows: list[dict[str, Any]] = []
    for batch in BATCHES:
        found: list[Contender] = []
        for name, given in named.items():
            for event in _contenders(name, given, batch):
                if isinstance(event, Contender):
                    found.append(event)
                elif batch == BATCHES[0]:
                    yield event
        yield Notice(f"timing {len(found)} contenders with {batch} image{'s' * (batch != 1)} at a time")
        timings = interleaved({str(index): contender.call for index, contender in enumerate(found)})
        peaks = _peaks(found) if batch == 1 else [None] * len(found)
        for index, (contender, peak) in enumerate(zip(found, peaks, strict=True)):
            row = _row(contender, named[contender.network].network, batch)
            rows.append({**row, **_micros(timings[str(index)]), "peak_mib": peak})
    networks = [_facts(name, given) for name, given in named.items()]
    told = verdicts(rows, networks)
    yield Bench(networks, rows, told, _write(networks, rows, told, out))


def _write(networks: Sequence[Any], rows: Sequence[Any], told: Sequence[str], out: Path) -> list[Path]:
    from ticketlab.figures import encode, latency_bars

    store, found = RunStore(out), encode(latency_bars(rows))
    store.write_result(RESULT, {"networks": networks, "rows": rows, "verdicts": told, **environment()})
    for kind, content in found.items():
        store.write_file(f"bench.{kind}", content)
    return [out / RESULT, *(out / f"bench.{kind}" for kind in found)]


def _with_sources(shipments: Sequence[Shipment], root: Path, places: Places) -> list[Shipment]:
    """The networks with the dense and masked ones they come from, each once."""
    from ticketlab.workflows.ship import shipment

    every: list[Shipment] = []
    for given in shipments:
        if given.kind == "fused":
            every += [*sources(given, root, places), given]
        elif given.kind == "dense":
            every.append(given)
        else:
            every += [shipment(given.store, places, 0, given.network.facts["source"]["replicate"]), given]
    return list({given.network.name: given for given in every}.values())


def _named(shipments: Sequence[Shipment]) -> dict[str, Shipment]:
    """A short name for each: its kind, and more where two are of a kind."""
    choices = [
        (given.kind, f"{given.kind} {_extent(given)}", f"{given.kind} {given.network.name}") for given in shipments
    ]
    names = {}
    for own, given in zip(choices, shipments, strict=True):
        name = next(name for at, name in enumerate(own) if [other[at] for other in choices].count(name) == 1)
        names[name] = given
    return names


def _extent(given: Shipment) -> str:
    if given.kind == "masked":
        return f"{100 * given.network.facts['density']:.3g} %"
    return f"{sum(p.numel() for p in given.network.model.parameters()):,}"


def _contenders(name: str, given: Shipment, batch: int) -> Iterator[Contender | Notice]:
    network, images = given.network, given.network.zeros(batch).numpy()
    shape = images.shape
    stored = FORMATS["ticket"]
    eager = partial(torch_runner(network.model), images)
    yield Contender(name, EAGER, "float32", eager, _content(stored, given, "float32", 1), stored, shape)
    if network.mask:
        try:
            run = csr_runner(network)
        except FormatError as error:
            yield Notice(f"{name}: {CSR} left out: {error}")
        else:
            yield Contender(name, CSR, "float32", partial(run, images), b"", stored, shape)
    for key, (runtime, precisions) in RUNTIMES.items():
        made = FORMATS[key]
        try:
            made.check(key)
        except FormatError as error:
            yield Notice(f"{name}: {runtime} left out: {error}")
            continue
        for precision in precisions:
            if made.refuses is not None and (why := made.refuses(network, precision)):
                yield Notice(f"{name}: {runtime} {precision} left out: {why}")
                continue
            try:
                content = _content(made, given, precision, batch)
                loaded = made.open(content)
            except FormatError as error:
                yield Notice(f"{name}: {runtime} {precision} left out: {error}")
                continue
            yield Contender(name, runtime, precision, partial(loaded.run, images), content, made, shape)


def _content(made: Format, given: Shipment, precision: Precision, batch: int) -> bytes:
    return made.make(labelled(given.network, precision), precision, calibration_images(given), batch)


def _row(contender: Contender, network: Network, batch: int) -> dict[str, Any]:
    macs, effective = macs_of(network)
    return {
        "network": contender.network,
        "runtime": contender.runtime,
        "dtype": contender.precision,
        "batch": batch,
        "bytes": len(contender.content) or None,
        "bytes_zlib": len(zlib.compress(contender.content, 9)) if contender.content else None,
        "macs": macs,
        "effective_macs": effective,
    }


def _micros(timing: Timing) -> dict[str, float]:
    return {"latency_us_p10": round(timing.p10, 2), "latency_us_median": round(timing.median, 2)}


def _peaks(contenders: Sequence[Contender]) -> list[float | None]:
    """Peak memory of each, a process for each, as many at a time as there are cores."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(peak_mib, contenders))


def macs_of(network: Network) -> tuple[int, int]:
    """Multiply-accumulates for one image, and those with remaining weights alone."""
    dense = layer_macs(network.model, network.facts["input_shape"])
    _, left = masked_flops(dense, shares(network.mask), {})
    return sum(dense.values()), round(left)


def peak_mib(contender: Contender) -> float | None:
    """Peak memory in MiB of a fresh process that loads the file and runs it once; None where that cannot be told."""
    if not contender.content or not contender.made.alone or not Path("/proc/self/status").exists():
        return None
    with temporary(contender.content, contender.made.suffix) as path:
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            contender.made.alone + MEMORY,
            str(path),
            repr(contender.shape),
        ]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return round(int(ran.stdout.split()[-1]) / 1024, 1) if ran.returncode == 0 else None


def _facts(name: str, given: Shipment) -> dict[str, Any]:
    counted, (macs, effective) = size(given.network.model, given.network.facts["input_shape"]), macs_of(given.network)
    exact = FORMATS["ticket"]
    raw = len(_content(FORMATS["safetensors"], given, "float32", 1))
    return {
        "network": name,
        "run": given.network.name,
        "kind": given.kind,
        "density": given.network.facts["density"],
        "params": counted.params,
        "nonzeros": counted.nonzeros,
        "macs": macs,
        "effective_macs": effective,
        "bytes": raw,
        "bytes_ticket": len(_content(exact, given, "float32", 1)),
        "bytes_ticket_int8": len(_content(exact, given, "int8", 1)),
        "test_accuracy": given.test_accuracy,
    }


def verdicts(rows: Sequence[dict[str, Any]], networks: Sequence[dict[str, Any]]) -> list[str]:
    """What the figures say, one sentence for each runtime; then about masks, in time and in bytes."""
    timed = {(r["network"], r["runtime"], r["dtype"], r["batch"]): r["latency_us_median"] for r in rows}
    kinds = {network["network"]: network["kind"] for network in networks}
    dense = next((name for name, kind in kinds.items() if kind == "dense"), None)
    found, of_masks = [], []
    for runtime in dict.fromkeys(row["runtime"] for row in rows):
        base = timed.get((dense, runtime, "float32", 1))
        others = {name: timed.get((name, runtime, "float32", 1)) for name in kinds if name != dense}
        ratios = {name: own / base for name, own in others.items() if own is not None and base is not None}
        of_masks += [ratio for name, ratio in ratios.items() if kinds[name] == "masked"]
        if ratios:
            said = ", ".join(f"{name} {ratio:.2f} ({1 / ratio:.2f} × as fast)" for name, ratio in ratios.items())
            found.append(f"{runtime}, float32, 1 image: of the dense network's {base:.1f} µs {said}")
    if of_masks and min(of_masks) > UNCHANGED:
        found.append("A mask alone buys no time: these runtimes multiply by a zero as by any other number.")
    found += [_said_of_rows(timed, name, dense) for name in kinds if (name, CSR, "float32", 1) in timed and dense]
    for network in networks:
        if network["kind"] == "masked":
            found.append(
                f"A mask alone buys no bytes: {network['network']} takes {network['bytes']:,} as plain tensors; packed "
                f"as a ticket {network['bytes_ticket']:,}, with int8 values {network['bytes_ticket_int8']:,}."
            )
    return found


def _said_of_rows(timed: Mapping[Any, float], name: str, dense: str | None) -> str:
    """What sparse matrices buy, beside every runtime's dense network."""
    own = timed[name, CSR, "float32", 1]
    beside = [
        f"{own / took:.2f} of {runtime}'s dense {took:.1f} µs"
        for (network, runtime, dtype, batch), took in timed.items()
        if (network, dtype, batch) == (dense, "float32", 1)
    ]
    return f"{CSR}, {name}, 1 image: {own:.1f} µs, {', '.join(beside)}"
