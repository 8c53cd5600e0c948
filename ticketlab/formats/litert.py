"""LiteRT's .tflite, for Android and boards: a program for one image at a time."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from torch import Tensor, nn

from ticketlab.errors import FormatError
from ticketlab.formats.format import Format, Images, Loaded, Network, Precision, batches, one_at_a_time

KEY = "ticketlab"
"""Name of the metadata buffer with the facts, as JSON."""
IDENTIFIER = b"TFL3"


def write(network: Network, batch: int) -> bytes:
    """The network as a .tflite file for `batch` images: layers of linear units refuse any other number."""
    return _with_facts(_convert(network, batch), network)


def quantise(network: Network, precision: Precision, images: Tensor, batch: int) -> bytes:
    """Int8 weights per channel; activations with ranges from calibration images, or found anew at every call.

    Images and logits stay float32: the file converts them itself.
    """
    from ai_edge_quantizer import quantizer, recipe
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import TFLOperationName

    content = write(network, batch)  # with its facts: the quantiser's own files cannot be packed anew
    worker = quantizer.Quantizer(content)
    if precision == "int8_dynamic":
        worker.load_quantization_recipe(recipe.dynamic_wi8_afp32())
    else:
        worker.load_quantization_recipe(recipe.static_wi8_ai8())
        for end in (TFLOperationName.INPUT, TFLOperationName.OUTPUT):
            worker.update_quantization_recipe(".*", end, algorithm_key=AlgorithmName.NO_QUANTIZE)
    ranges = _ranges(worker, content, images, batch) if worker.need_calibration else None
    return bytes(worker.quantize(ranges).quantized_model)


def _ranges(worker: Any, content: bytes, images: Tensor, batch: int) -> dict[str, dict[str, Any]]:
    """Smallest and largest value of each tensor over all images.

    The quantiser's own way over several images, a moving average, leaves half of the range out.
    """
    ((signature, names),) = _interpreter(content).get_signature_list().items()
    name, ranges = names["inputs"][0], dict[str, dict[str, Any]]()
    for some in batches(images, batch):
        found = worker.calibrate({signature: [{name: some.numpy()}]}, num_threads=1)
        for tensor, seen in found.items():
            known = ranges.setdefault(tensor, dict(seen))
            for key, widest in (("min", np.minimum), ("max", np.maximum)):
                if key in seen:
                    known[key] = widest(known[key], seen[key])
    return ranges


def _convert(network: Network, batch: int) -> bytes:
    import litert_torch

    return bytes(litert_torch.convert(network.model, (network.zeros(batch),)).model_content())


def _with_facts(content: bytes, network: Network) -> bytes:
    """The same file with one more metadata buffer."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(json.dumps(network.facts, sort_keys=True).encode(), np.uint8)
    entry.name, entry.buffer = KEY, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def read(content: bytes, _: nn.Module | None = None) -> Loaded:
    """A .tflite file in LiteRT's interpreter, on one thread."""
    facts = _facts(content)
    interpreter = _interpreter(content)
    interpreter.allocate_tensors()
    (given,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()
    entry, end = given["index"], answer["index"]

    def run(images: Images) -> Images:
        interpreter.set_tensor(entry, images)
        interpreter.invoke()
        return interpreter.get_tensor(end)

    return Loaded(one_at_a_time(run, int(given["shape"][0])), facts)


def _interpreter(content: bytes) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(model_content=content, num_threads=1)


def _facts(content: bytes) -> dict[str, Any]:
    from ai_edge_litert import schema_py_generated as schema

    if content[4:8] != IDENTIFIER:
        raise FormatError("not a .tflite file, or cut off at its beginning")
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    found = [entry.buffer for entry in model.metadata or () if entry.name in (KEY, KEY.encode())]
    if not found:
        raise FormatError("a .tflite file that ticketlab did not write")
    buffer = model.buffers[found[0]]
    # the quantiser puts the buffers of larger networks behind the flatbuffer
    inside = buffer.data is not None
    return json.loads(bytes(buffer.data) if inside else content[buffer.offset : buffer.offset + buffer.size])


ALONE = """
import sys, numpy
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(model_path=sys.argv[1], num_threads=1)
interpreter.allocate_tensors()
given = interpreter.get_input_details()[0]
interpreter.set_tensor(given["index"], numpy.zeros(given["shape"], given["dtype"]))
interpreter.invoke()
"""

FORMAT = Format(
    suffix=".tflite",
    write=write,
    read=read,
    quantise=quantise,
    precisions=("float32", "int8", "int8_dynamic"),
    needs=("litert_torch", "ai_edge_litert"),
    runs_on=("ai_edge_litert",),
    install="python -m pip install litert-torch ai-edge-litert, in an environment of its own (torch below 2.15)",
    alone=ALONE,
)
