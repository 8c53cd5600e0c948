"""Latency of the masked network against the fused one, in torch and in ONNX Runtime, one thread, batches of 1 and 64.

Networks and rounds are interleaved in one process; medians. ONNX Runtime is an extra: pip install -e '.[onnx]'.

    python benchmarks/fuse_latency.py FUSED_RUN [FUSED_RUN …]    runs that `ticketlab fuse` made from a ticket
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ticketlab.data.files import Places
from ticketlab.runs.store import RunStore, find_run
from ticketlab.workflows.fuse import NETWORK, RESULT
from ticketlab.workflows.source import from_run, load_network

ROUNDS, CALLS = 60, 30


def in_torch(model: nn.Module, images: Tensor) -> Callable[[], object]:
    """One call as torch runs it."""
    model.eval()

    def call() -> object:
        with torch.inference_mode():
            return model(images)

    return call


def in_onnx_runtime(model: nn.Module, images: Tensor) -> Callable[[], object]:
    """One call in ONNX Runtime; its answer is checked against torch first."""
    import onnxruntime

    exported = torch.onnx.export(model.eval(), (images,), dynamo=True, verbose=False)
    content = io.BytesIO()
    exported.save(content)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content.getvalue(), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images.numpy()}
    with torch.inference_mode():
        wrong = abs(session.run(None, feed)[0] - model(images).numpy()).max()
    assert wrong < 1e-4, f"ONNX Runtime answers differently by {wrong}"
    return lambda: session.run(None, feed)


def median_microseconds(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Interleaved rounds; the median of each."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            began = time.perf_counter()
            for _ in range(CALLS):
                call()
            times[name].append(1e6 * (time.perf_counter() - began) / CALLS)
    return {name: statistics.median(found) for name, found in times.items()}


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--sources", type=Path, default=Path("runs"), help="folder of the runs that were fused")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| source | fused parameters | runtime | batch | masked µs | fused µs | masked ÷ fused |")
    print("|---|---|---|---|---|---|---|")
    for path in given.runs:
        record = RunStore(path).read_result(RESULT)
        facts = record["source"]
        source = from_run(
            find_run(given.sources, facts["run"]), Places.default(), facts["level"], facts["replicate"], ()
        )
        fused = load_network(path / NETWORK)
        for batch in (1, 64):
            images = torch.randn(batch, *source.plan.data.dataset.input_shape)
            for name, make in (("torch", in_torch), ("ONNX Runtime", in_onnx_runtime)):
                found = median_microseconds({"masked": make(source.model, images), "fused": make(fused, images)})
                print(
                    f"| {source.name} | {record['after']['params']:,} | {name} | {batch} | {found['masked']:.1f} | "
                    f"{found['fused']:.1f} | {found['masked'] / found['fused']:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
