"""The smallest faithful file: packed mask and surviving values (`ticketlab.codec`), rebuilt and run by torch."""

from __future__ import annotations

from torch import Tensor, nn

from ticketlab.codec import Sparse, decode, encode
from ticketlab.formats.format import Format, Loaded, Network, Precision, rebuilt


def write(network: Network, _: int) -> bytes:
    """Mask and values, float32: loads back bit for bit."""
    return encode(Sparse(network.mask, network.model.state_dict(), network.facts))


def quantise(network: Network, precision: Precision, _: Tensor, __: int) -> bytes:
    """Mask and values as float16 or int8; the network computes in float32 all the same."""
    stored = Sparse(network.mask, network.model.state_dict(), network.facts)
    return encode(stored, "float16" if precision == "float16" else "int8")


def read(content: bytes, like: nn.Module | None = None) -> Loaded:
    """The network, rebuilt and run by torch."""
    found = decode(content)
    return rebuilt(found.state, found.facts, like)


ALONE = """
import json, sys, numpy
from pathlib import Path
from ticketlab.formats.ticket import FORMAT
FORMAT.open(Path(sys.argv[1]).read_bytes()).run(numpy.zeros(json.loads(sys.argv[2]), "float32"))
"""

FORMAT = Format(
    suffix=".ticket",
    write=write,
    read=read,
    quantise=quantise,
    precisions=("float32", "float16", "int8"),
    tolerance=0.0,
    alone=ALONE,
)
