"""What is timed, counted and said; never how fast it was."""

import json
import sys

import pytest
import torch
from torch import nn

from ticketlab.bench_findings import CSR, verdicts
from ticketlab.cost import interleaved
from ticketlab.errors import FormatError
from ticketlab.formats import FORMATS
from ticketlab.formats.format import Network
from ticketlab.workflows import bench as benching
from ticketlab.workflows.bench import EAGER, Bench, bench, macs_of
from ticketlab.workflows.fuse import fuse_run
from ticketlab.workflows.fuse_request import Request
from ticketlab.workflows.progress import Notice
from ticketlab.workflows.run import Machine, Started, prune_run
from ticketlab.workflows.ship import Shipment, shipment
from ticketlab.workflows.source import from_run


def present(name):
    try:
        FORMATS[name].check(name)
    except FormatError:
        return False
    return True


def test_dense_masked_and_fused_stand_side_by_side(tiny, tmp_path, places, monkeypatch):
    # ExecuTorch takes half a minute to make these files; tests/formats has it
    few = {name: (runtime, precisions[:2]) for name, (runtime, precisions) in benching.RUNTIMES.items()}
    few.pop("executorch")
    monkeypatch.setattr(benching, "RUNTIMES", few)
    machine = Machine(tmp_path / "runs", places, "cpu")
    (store,) = [event.store for event in prune_run(tiny(), machine) if isinstance(event, Started)]
    *_, fusion = fuse_run(from_run(store, places, None, 1, ()), Request(share=0.5, refit=False), machine)
    *told, found = bench([shipment(fusion.store, places)], machine.runs, places, tmp_path / "out")
    assert isinstance(found, Bench) and all(isinstance(event, Notice) for event in told)
    assert [(row["network"], row["kind"]) for row in found.networks] == [
        ("dense", "dense"),
        ("masked", "masked"),
        ("fused", "fused"),
    ]
    dense, masked, fused = found.networks
    assert dense["macs"] == dense["effective_macs"] == masked["macs"] == 64 * 300 + 300 * 100 + 100 * 10
    assert masked["effective_macs"] == store.read_level(1, 2).remaining
    assert fused["macs"] == fused["effective_macs"] == 64 * 150 + 150 * 50 + 50 * 10
    assert masked["bytes_ticket"] < masked["bytes"] and masked["bytes_ticket_int8"] < masked["bytes_ticket"]
    ways = {(row["network"], row["runtime"], row["dtype"], row["batch"]) for row in found.rows}
    assert len(ways) == len(found.rows)
    for batch in (1, 64):
        for network in ("dense", "masked", "fused"):
            assert (network, EAGER, "float32", batch) in ways
            assert {(network, "ONNX Runtime", dtype, batch) for dtype in ("float32", "int8")} <= ways
            assert ((network, "LiteRT", "int8", batch) in ways) == present("litert")
        assert ("masked", CSR, "float32", batch) in ways
        assert ("dense", CSR, "float32", batch) not in ways
    for row in found.rows:
        assert 0 < row["latency_us_p10"] <= row["latency_us_median"]
        assert (row["bytes"] is None) == (row["runtime"] in (EAGER, CSR))
        measured = row["batch"] == 1 and row["runtime"] != CSR and sys.platform == "linux"
        assert (row["peak_mib"] is not None) == measured
    light, heavy = (
        next(r["peak_mib"] for r in found.rows if (r["network"], r["runtime"], r["batch"]) == ("fused", runtime, 1))
        for runtime in ("ONNX Runtime", EAGER)
    )
    assert 20 < light < heavy
    written = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert (written["rows"], written["verdicts"]) == (found.rows, found.verdicts)
    assert (tmp_path / "out" / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_networks_of_a_kind_are_told_apart_by_size_and_at_last_by_run():
    def given(kind, name, units, density=1.0):
        network = Network(name, nn.Linear(units, 1, bias=False), {}, {"density": density})
        return Shipment(kind, network, None, None, 0.5)

    one = [given("dense", "a level 0", 9), given("fused", "b", 2000), given("fused", "c", 30)]
    assert list(benching._named(one)) == ["dense", "fused 2,000", "fused 30"]
    more = [given("masked", "a level 3", 9, 0.5), given("masked", "a level 4", 9, 0.0123), given("fused", "b", 9)]
    assert list(benching._named(more)) == ["masked 50 %", "masked 1.23 %", "fused"]
    same = [given("fused", "b", 9), given("fused", "c", 9)]
    assert list(benching._named(same)) == ["fused b", "fused c"]


def row(network, runtime, p10, dtype="float32", batch=1, median=None):
    named = {"network": network, "runtime": runtime, "dtype": dtype, "batch": batch}
    return {**named, "latency_us_p10": p10, "latency_us_median": median or p10}


def kind(name, bytes_=1000, ticket=100, int8=50, run="a"):
    sizes = {"bytes": bytes_, "bytes_ticket": ticket, "bytes_ticket_int8": int8}
    return {"network": name, "kind": name.split()[0], "source": [run, 1], **sizes}


def test_verdicts_by_hand():
    rows = [
        row("dense", "torch", 40.0),
        row("masked", "torch", 42.0),
        row("fused", "torch", 20.0),
        row("masked", CSR, 10.0),
        row("fused", "torch", 1.0, dtype="int8"),
        row("fused", "torch", 1.0, batch=64),
    ]
    assert verdicts(rows, [kind("dense"), kind("masked"), kind("fused")]) == [
        "torch, float32, 1 image: of the 40.0 µs of dense: masked 1.05 (0.95 × as fast), fused 0.50 (2.00 × as fast)",
        "A mask alone buys no time: these runtimes multiply by a zero as by any other number.",
        "scipy CSR, masked, 1 image: 10.0 µs, 0.25 of torch's dense 40.0 µs",
        "A mask alone buys no bytes: masked takes 1,000 as plain tensors, dense 1,000; packed as a ticket 100, "
        "with int8 values 50.",
    ]


def test_networks_are_compared_with_the_dense_one_that_they_come_from():
    rows = [row(f"{name} {run}", "torch", took * scale) for run, scale in (("a", 1.0), ("b", 100.0))
            for name, took in (("dense", 40.0), ("fused", 10.0))]  # fmt: skip
    networks = [kind(f"{name} {run}", run=run) for run in "ab" for name in ("dense", "fused")]
    assert verdicts(rows, networks) == [
        "torch, float32, 1 image: of the 40.0 µs of dense a: fused a 0.25 (4.00 × as fast)",
        "torch, float32, 1 image: of the 4000.0 µs of dense b: fused b 0.25 (4.00 × as fast)",
    ]


def test_a_busy_machine_is_told():
    rows = [row("dense", "torch", 40.0, median=100.0), row("masked", "torch", 40.0)]
    assert verdicts(rows, [kind("dense"), kind("masked")])[-1] == (
        "The machine was busy: a median is 2.5 × its p10; measure again."
    )


def test_a_runtime_in_which_masks_do_save_time_is_not_said_to_ignore_them():
    rows = [row("dense", "clever", 40.0), row("masked", "clever", 20.0)]
    assert not any("no time" in sentence for sentence in verdicts(rows, [kind("dense"), kind("masked")]))


def test_effective_multiplications_of_a_convolution_are_counted_at_every_place():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.Flatten(), nn.Linear(2 * 4 * 4, 3))
    mask = {"0.weight": torch.zeros(2, 1, 3, 3, dtype=torch.bool), "2.weight": torch.zeros(3, 32, dtype=torch.bool)}
    mask["0.weight"][0, 0, 0] = True  # 3 of 18
    mask["2.weight"][0] = True  # 32 of 96
    network = Network("small", model, mask, {"input_shape": [1, 6, 6]})
    assert macs_of(network) == (18 * 16 + 96, 3 * 16 + 32)


def test_turns_are_interleaved_and_quantiles_are_of_single_calls(monkeypatch):
    clock = {"now": 0.0}
    order = []

    def call(name, seconds):
        def run():
            order.append(name)
            clock["now"] += seconds

        return run

    monkeypatch.setattr("ticketlab.cost.time.perf_counter", lambda: clock["now"])
    found = interleaved({"slow": call("slow", 0.004), "fast": call("fast", 0.0008)}, rounds=11)
    assert found["slow"].median == pytest.approx(4_000)
    assert found["fast"].p10 == pytest.approx(800)
    turns = order[6:]  # the first call and the trial of each come before
    assert turns == ["slow", "fast", "fast", "fast", "fast", "slow"] * 5 + ["slow", "fast", "fast"]


def test_p10_and_median_by_hand(monkeypatch):
    times = iter([1.0, 1.0, 1.0, *range(1, 12)])
    clock = {"now": 0.0}

    def run():
        clock["now"] += next(times)

    monkeypatch.setattr("ticketlab.cost.time.perf_counter", lambda: clock["now"])
    monkeypatch.setattr("ticketlab.cost.SECONDS", 1e9)
    found = interleaved({"one": run}, rounds=1)["one"]
    # eleven rounds at least, of 1 to 11 seconds: a tenth of the way from the smallest to the largest is the second
    assert found.median == pytest.approx(6e6)
    assert found.p10 == pytest.approx(2e6)


def test_a_program_that_cannot_run_alone_says_why(monkeypatch):
    onnx = FORMATS["onnx"]
    contender = benching.Contender("x", "y", "float32", print, (1, 2), b"content", onnx.alone, onnx.suffix)
    if sys.platform == "linux":
        assert "INVALID_PROTOBUF" in benching.peak_mib(contender)
        monkeypatch.setattr(benching, "PATIENCE", 0.01)
        assert "not done within" in benching.peak_mib(contender)
