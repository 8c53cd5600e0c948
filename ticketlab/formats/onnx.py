"""ONNX, run by ONNX Runtime: one file, any number of images, int8 by ONNX Runtime's own quantiser."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ticketlab.errors import FormatError
from ticketlab.formats.format import Format, Images, Loaded, Network, Precision

INPUT, OUTPUT = "images", "logits"
KEY = "ticketlab"
"""Of the file's metadata: the facts, as JSON."""
CALIBRATION_BATCH = 64


def write(network: Network, _: int) -> bytes:
    """The network as one ONNX file; norms are folded into the layers before them."""
    program = torch.onnx.export(
        network.model,
        (network.zeros(),),
        dynamo=True,
        verbose=False,
        external_data=False,  # else the weights go into a second file, which is easily left behind
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces with this machine's folders
    program.model.metadata_props[KEY] = json.dumps(network.facts, sort_keys=True)
    return bytes(program.model_proto.SerializeToString())


def refuses(network: Network, precision: Precision) -> str | None:
    """Dynamic int8 for convolutions, which ONNX Runtime computes several times slower than in float32."""
    if precision != "int8_dynamic" or not network.has_convolutions():
        return None
    return "dynamic int8 makes convolutions several times slower than float32 (ConvInteger); use static --int8"


def quantise(network: Network, precision: Precision, images: Tensor, batch: int) -> bytes:
    """Int8 weights per channel; activations with ranges from calibration images, or found anew at every call."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    content = write(network, batch)
    with tempfile.TemporaryDirectory() as name:
        given, made = Path(name) / "given.onnx", Path(name) / "made.onnx"
        if precision == "int8_dynamic":
            model = onnx.load_model_from_string(content)
            del model.graph.value_info[:]  # shapes from before the quantiser transposes weights contradict it
            quantize_dynamic(model, made, weight_type=QuantType.QInt8, per_channel=True)
        else:
            onnx.save_model(onnx.load_model_from_string(content), given)
            quant_pre_process(str(given), str(given), skip_symbolic_shape=True)
            quantize_static(
                given,
                made,
                _Batches(images),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        return made.read_bytes()


class _Batches:
    """Calibration images as ONNX Runtime asks for them."""

    def __init__(self, images: Tensor) -> None:
        self.batches: Iterator[Tensor] = iter(images.split(CALIBRATION_BATCH))

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch.numpy()}


def read(content: bytes, _: nn.Module | None = None) -> Loaded:
    """An ONNX file in ONNX Runtime, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map.get(KEY)
    if facts is None:
        raise FormatError("an ONNX file that ticketlab did not write")
    name = session.get_inputs()[0].name

    def run(images: Images) -> Images:
        return session.run(None, {name: images})[0]

    return Loaded(run, json.loads(facts))


ALONE = """
import json, sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
session.run(None, {session.get_inputs()[0].name: numpy.zeros(json.loads(sys.argv[2]), "float32")})
"""

FORMAT = Format(
    suffix=".onnx",
    write=write,
    read=read,
    quantise=quantise,
    refuses=refuses,
    precisions=("float32", "int8", "int8_dynamic"),
    needs=("onnx", "onnxscript", "onnxruntime"),
    runs_on=("onnxruntime",),
    install="python -m pip install onnx onnxscript onnxruntime",
    alone=ALONE,
)
