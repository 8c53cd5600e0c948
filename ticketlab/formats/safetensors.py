"""safetensors: every weight as it is, and the facts that rebuild the network; no pickle, no code."""

from __future__ import annotations

from torch import nn

from ticketlab.errors import FormatError
from ticketlab.formats.format import Format, Loaded, Network, rebuilt
from ticketlab.runs.network import network_bytes, network_of


def write(network: Network, _: int) -> bytes:
    """The network's state with its facts; zeros are stored too."""
    return network_bytes(network.model.state_dict(), network.facts)


def read(content: bytes, like: nn.Module | None = None) -> Loaded:
    """The network, rebuilt and run by torch."""
    try:
        state, facts = network_of(content)
    except ValueError as error:
        raise FormatError(f"not a network that ticketlab wrote, or damaged ({error})") from error
    return rebuilt(state, facts, like)


FORMAT = Format(suffix=".safetensors", write=write, read=read, tolerance=0.0)
