"""ExecuTorch's .pte with XNNPACK, for phones and boards: a program for one image at a time."""

from __future__ import annotations

import json
from functools import cache

import torch
from torch import Tensor, nn

from ticketlab.errors import FormatError
from ticketlab.formats.format import Format, Images, Loaded, Network, Precision, batches, one_at_a_time

KEY = "ticketlab"
"""A method of the program that answers the facts, as JSON."""


def write(network: Network, batch: int) -> bytes:
    """The network as a program for `batch` images: a dynamic batch is not honoured by every layer of XNNPACK."""
    return _lower(torch.export.export(network.model, (network.zeros(batch),)), network)


def refuses(network: Network, precision: Precision) -> str | None:
    """Dynamic int8 for convolutions, which XNNPACK leaves in float32."""
    if precision != "int8_dynamic" or not network.has_convolutions():
        return None
    return "dynamic int8 leaves convolutions in float32: little smaller, no faster; use static --int8"


def quantise(network: Network, precision: Precision, images: Tensor, batch: int) -> bytes:
    """Int8 weights per channel; activations with ranges from calibration images, or found anew at every call."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    is_dynamic = precision == "int8_dynamic"
    scheme = XNNPACKQuantizer().set_global(
        get_symmetric_quantization_config(is_per_channel=True, is_dynamic=is_dynamic)
    )
    program = torch.export.export(network.model, (network.zeros(batch),))
    prepared = prepare_pt2e(program.module(), scheme)
    for some in batches(images, batch):
        prepared(some)
    return _lower(torch.export.export(convert_pt2e(prepared), (network.zeros(batch),)), network)


def _lower(program: torch.export.ExportedProgram, network: Network) -> bytes:
    """A program whose layers XNNPACK runs; raises FormatError where it would run none."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    facts = {KEY: json.dumps(network.facts, sort_keys=True)}
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()], constant_methods=facts)
    left = {str(node.target) for node in lowered.exported_program().graph.nodes if node.op == "call_function"}
    slow = [name for name in left if "aten.convolution" in name or "aten.addmm" in name or "aten.linear" in name]
    if slow:  # its portable kernels are a hundred times slower
        raise FormatError(f"XNNPACK does not take {', '.join(slow)} of this network")
    return bytes(lowered.to_executorch().buffer)


def read(content: bytes, _: nn.Module | None = None) -> Loaded:
    """A .pte program in ExecuTorch's runtime, on one thread."""
    from executorch.runtime import Runtime

    _one_thread()
    program = Runtime.get().load_program(content)
    if KEY not in program.method_names:
        raise FormatError("a .pte program that ticketlab did not write")
    (facts,) = program.load_method(KEY).execute([])
    batch = program.load_method("forward").metadata.input_tensor_meta(0).sizes()[0]

    def run(images: Images) -> Images:
        # through the program, which keeps alive the bytes that its methods look into
        return program.load_method("forward").execute([torch.from_numpy(images)])[0].numpy()

    return Loaded(one_at_a_time(run, batch), json.loads(facts))


@cache
def _one_thread() -> None:
    """Once, before any program is loaded: each holds on to the threads that it was loaded with."""
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool

    _unsafe_reset_threadpool(1)


ALONE = """
import json, sys, torch
from executorch.runtime import Runtime
method = Runtime.get().load_program(sys.argv[1]).load_method("forward")
method.execute([torch.zeros(json.loads(sys.argv[2]))])
"""

FORMAT = Format(
    suffix=".pte",
    write=write,
    read=read,
    quantise=quantise,
    refuses=refuses,
    precisions=("float32", "int8", "int8_dynamic"),
    needs=("executorch",),
    runs_on=("executorch",),
    install="python -m pip install executorch",
    alone=ALONE,
)
