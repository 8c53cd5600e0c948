"""Latency, size and memory of dense, masked, fused and int8 networks in every runtime that is here, side by side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from ticketlab.bench_findings import CSR, verdicts
from ticketlab.cost import Timing, interleaved, layer_macs, masked_flops, shares, size
from ticketlab.data.batches import Examples
from ticketlab.data.files import Places
from ticketlab.errors import FailedRun, FormatError, RunError
from ticketlab.formats import FORMATS
from ticketlab.formats.csr import csr_runner
from ticketlab.formats.format import Format, Network, Precision, spoken, torch_runner
from ticketlab.runs.files import temporary
from ticketlab.runs.manifest import environment
from ticketlab.runs.results import BENCHED
from ticketlab.runs.store import RunStore
from ticketlab.workflows.export import IMAGES, Judged, calibration_images, judge, labelled, own_answers
from ticketlab.workflows.progress import Notice
from ticketlab.workflows.ship import Shipment, sources

BATCHES = (1, 64)
RUNTIMES: dict[str, tuple[str, tuple[Precision, ...]]] = {
    "onnx": ("ONNX Runtime", ("float32", "int8", "int8_dynamic")),
    "litert": ("LiteRT", ("float32", "int8", "int8_dynamic")),
    "executorch": ("ExecuTorch", ("float32", "int8", "int8_dynamic")),
}
"""Format → what runs it, and the precisions that are timed."""
EAGER = "torch eager"
PATIENCE = 300
"""Seconds for a process whose memory is measured."""
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
    precision: Precision
    call: Callable[[], object]
    shape: tuple[int, ...]
    content: bytes = b""
    """Empty where the runtime reads no file."""
    alone: str = ""
    """A script that runs the file by itself."""
    suffix: str = ""
    judged: Judged | None = None


SHOWN = ("network", "runtime", "dtype", "batch", "latency_us_median", "bytes", "macs", "effective_macs")
"""Of each row, what TensorBoard shows."""


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
    if out.exists() and not out.is_dir():
        raise FormatError(f"--out {out}: is a file; name a folder")
    torch.set_num_threads(1)
    every: dict[str, Shipment] = {}
    for given in shipments:
        try:
            every |= {source.network.name: source for source in sources(given, root, places)}
        except RunError as error:
            yield Notice(f"{given.network.name}: without the networks that it was made from: {error}")
        every[given.network.name] = given
    named = _named(list(every.values()))
    facts = {name: _facts(name, given) for name, given in named.items()}
    answers = {name: own_answers(given.network, _examples(given)) for name, given in named.items()}
    rows: list[dict[str, Any]] = []
    told: set[str] = set()
    for batch in BATCHES:
        found: list[Contender] = []
        for name, given in named.items():
            for event in _contenders(name, given, answers[name], batch):
                if isinstance(event, Contender):
                    found.append(event)
                elif event not in told:
                    told.add(event)
                    yield Notice(event)
        yield Notice(f"timing {len(found)} contenders with {batch} image{'s' * (batch != 1)} at a time")
        timings = interleaved({str(index): contender.call for index, contender in enumerate(found)})
        peaks = _peaks(found) if batch == 1 else ["" for _ in found]
        for index, (contender, peak) in enumerate(zip(found, peaks, strict=True)):
            row = _row(contender, facts[contender.network], batch)
            measured = peak if isinstance(peak, float) else None
            rows.append({**row, **_micros(timings[str(index)]), "peak_mib": measured})
            if isinstance(peak, str) and peak:
                yield Notice(f"{contender.network}: memory of {contender.runtime} is not known: {peak}")
    networks = list(facts.values())
    said = verdicts(rows, networks)
    yield Bench(networks, rows, said, _write(networks, rows, said, out))


def _write(networks: Sequence[Any], rows: Sequence[Any], said: Sequence[str], out: Path) -> list[Path]:
    from ticketlab.figures import encode, latency_bars
    from ticketlab.runs.tensorboard import write_table

    store, found = RunStore(out), encode(latency_bars(rows))
    try:
        store.write_result(BENCHED, {"networks": networks, "rows": rows, "verdicts": said, **environment()})
        for kind, content in found.items():
            store.write_file(f"bench.{kind}", content)
        write_table(out, "bench", [{name: row[name] for name in SHOWN} for row in rows], {"bench": found["png"]})
    except OSError as error:
        raise FailedRun(f"{out}: cannot be written ({error.strerror or error})") from error
    return [out / BENCHED, *(out / f"bench.{kind}" for kind in found)]


def _named(shipments: Sequence[Shipment]) -> dict[str, Shipment]:
    """A short name for each: its kind, and more where two are of a kind."""
    choices = [(one.kind, f"{one.kind} {_extent(one)}", f"{one.kind} {one.network.name}") for one in shipments]
    names = {}
    for own, given in zip(choices, shipments, strict=True):
        name = next(name for at, name in enumerate(own) if [other[at] for other in choices].count(name) == 1)
        names[name] = given
    return names


def _extent(given: Shipment) -> str:
    if given.kind == "masked":
        return f"{100 * given.network.facts['density']:.3g} %"
    return f"{sum(p.numel() for p in given.network.model.parameters()):,}"


def _examples(given: Shipment) -> Examples:
    """What every file must answer as the network does."""
    return given.splits.validation.first(IMAGES)


def _contenders(name: str, given: Shipment, own: NDArray[Any], batch: int) -> Iterator[Contender | str]:
    """Every way to run a network; what is left out, and why, as text.

    Args:
        own: What the network itself answers to `_examples`.
    """
    network, images = given.network, given.network.zeros(batch).numpy()
    ticket = FORMATS["ticket"]
    eager = partial(torch_runner(network.model), images)
    stored = content_of(ticket, given, "float32")
    examples = _examples(given)
    yield Contender(name, EAGER, "float32", eager, images.shape, stored, ticket.alone, ticket.suffix)
    if network.mask:
        try:
            yield Contender(name, CSR, "float32", partial(csr_runner(network), images), images.shape)
        except FormatError as error:
            yield f"{name}: {CSR} left out: {error}"
    for key, (runtime, precisions) in RUNTIMES.items():
        made = FORMATS[key]
        try:
            made.check(key)
        except FormatError as error:
            yield f"{runtime} left out: {error}"
            continue
        for precision in precisions:
            if made.refuses is not None and (why := made.refuses(network, precision)):
                yield f"{name}: {runtime} {spoken(precision)} left out: {why}"
                continue
            try:
                content = content_of(made, given, precision, batch)
                loaded = made.open(content)
            except FormatError as error:
                yield f"{name}: {runtime} {spoken(precision)} left out: {error}"
                continue
            judged = judge(own, loaded, made, precision, examples)
            if judged.reason is not None:
                yield f"{name}: {runtime} {spoken(precision)} would be rejected by export: {judged.reason}"
            call = partial(loaded.run, images)
            yield Contender(name, runtime, precision, call, images.shape, content, made.alone, made.suffix, judged)


def content_of(made: Format, given: Shipment, precision: Precision, batch: int = 1) -> bytes:
    """A network's file, for so many images at a time."""
    return made.make(labelled(given.network, precision), precision, calibration_images(given), batch)


def _row(contender: Contender, network: Mapping[str, Any], batch: int) -> dict[str, Any]:
    # torch runs no file: the ticket is only how its memory is measured
    content = contender.content if contender.runtime != EAGER else b""
    return {
        "network": contender.network,
        "runtime": contender.runtime,
        "dtype": contender.precision,
        "batch": batch,
        "bytes": len(content) or None,
        "bytes_zlib": len(zlib.compress(content, 9)) if content else None,
        "macs": network["macs"],
        "effective_macs": network["effective_macs"],
        "accepted": contender.judged is None or contender.judged.reason is None,
    }


def _micros(timing: Timing) -> dict[str, float]:
    return {"latency_us_p10": round(timing.p10, 2), "latency_us_median": round(timing.median, 2)}


def _peaks(contenders: Sequence[Contender]) -> list[float | str]:
    """Peak memory of each, a process for each, as many at a time as there are cores."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(peak_mib, contenders))


def peak_mib(contender: Contender) -> float | str:
    """Peak memory in MiB of a fresh process that loads the file and runs it once; or why that is not known."""
    if not contender.alone:
        return ""
    if not Path("/proc/self/status").exists():
        return "this system does not tell"
    with temporary(contender.content, contender.suffix) as path:
        script = contender.alone + MEMORY
        command = [sys.executable, "-W", "ignore", "-c", script, str(path), json.dumps(contender.shape)]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            return f"not done within {PATIENCE} s"
    if ran.returncode:
        return (ran.stderr.strip().splitlines() or ["it failed without a word"])[-1]
    return round(int(ran.stdout.split()[-1]) / 1024, 1)


def macs_of(network: Network) -> tuple[int, int]:
    """Multiply-accumulates for one image, and those with remaining weights alone."""
    dense = layer_macs(network.model, network.facts["input_shape"])
    _, left = masked_flops(dense, shares(network.mask), {})
    return sum(dense.values()), round(left)


def _facts(name: str, given: Shipment) -> dict[str, Any]:
    counted, (macs, effective) = size(given.network.model, given.network.facts["input_shape"]), macs_of(given.network)
    source = given.network.facts["source"]
    return {
        "network": name,
        "run": given.network.name,
        "source": [source.get("run"), source.get("replicate")],
        "kind": given.kind,
        "density": given.network.facts["density"],
        "params": counted.params,
        "nonzeros": counted.nonzeros,
        "macs": macs,
        "effective_macs": effective,
        "bytes": len(content_of(FORMATS["safetensors"], given, "float32")),
        "bytes_ticket": len(content_of(FORMATS["ticket"], given, "float32")),
        "bytes_ticket_int8": len(content_of(FORMATS["ticket"], given, "int8")),
        "test_accuracy": given.test_accuracy,
    }
