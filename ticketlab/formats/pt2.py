"""torch.export's archive, run by torch: the graph and its weights, without Python code."""

from __future__ import annotations

import io
import json

import torch
from torch import nn

from ticketlab.errors import FormatError
from ticketlab.formats.format import Format, Loaded, Network, torch_runner

FACTS = "ticketlab.json"


def write(network: Network, _: int) -> bytes:
    """The network as a .pt2 archive, for any number of images.

    The archive keeps the example input, so that is zeros; and all the memory that a view looks at, so the network's
    tensors are no views.
    """
    # torch takes a size of 1 for a constant
    program = torch.export.export(
        network.model, (network.zeros(2),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names this machine's folders
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={FACTS: json.dumps(network.facts, sort_keys=True)})
    return content.getvalue()


def read(content: bytes, _: nn.Module | None = None) -> Loaded:
    """A .pt2 archive in torch."""
    extra = {FACTS: ""}
    program = torch.export.load(io.BytesIO(content), extra_files=extra)
    if not extra[FACTS]:
        raise FormatError("a .pt2 archive that ticketlab did not write")
    return Loaded(torch_runner(program.module()), json.loads(extra[FACTS]))


FORMAT = Format(suffix=".pt2", write=write, read=read)
