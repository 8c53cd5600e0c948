"""A network as a file: its state and how to build it again; no pickle, no code.

Layout, version 1 (safetensors): the state dict as it is; facts name the model (built-in, or the user's file and
function), its options, input shape, classes, normalisation and widths. A compact network is built at full size and
takes the sizes of its state.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, load

from ticketlab.errors import RunError
from ticketlab.runs.files import read_whole, tensor_bytes, tensors_of, write_bytes

FORMAT = "ticketlab-network"
VERSION = 1
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which training scripts keep the state dict."""


def write_network(path: Path, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Save a network's state with the facts that rebuild it."""
    write_bytes(path, network_bytes(state, facts))


def network_bytes(state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """What `write_network` writes."""
    return tensor_bytes(state, {**facts, "format": FORMAT, "version": VERSION})


def read_network(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State and facts of a network; raises RunError when it is damaged or of another format or version."""
    return read_whole(path, network_of)


def network_of(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State and facts in the bytes of such a file; raises ValueError for any others."""
    state, facts = tensors_of(content)
    if not isinstance(facts, dict) or (facts.pop("format", None), facts.pop("version", None)) != (FORMAT, VERSION):
        raise ValueError(f"not a {FORMAT} file of version {VERSION}")
    return state, facts


def read_foreign_state(path: Path) -> dict[str, Tensor]:
    """The state dict that another program saved: safetensors, or a torch file with nothing but tensors in it.

    Raises RunError for a file that is neither.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks about pickles; what matters is said below
            content: Any = load_file(path) if path.suffix == ".safetensors" else load(path, "cpu", weights_only=True)
    except FileNotFoundError as error:
        raise RunError(f"{path}: no such file") from error
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: cannot be read as safetensors ({error})") from error
    except Exception as error:  # torch raises whatever its unpickler met, and advises to run what is in the file
        raise RunError(f"{path}: not a torch file of tensors alone; save the network's state dict") from error
    while isinstance(content, dict) and not _is_state(content):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            raise RunError(f"{path}: has no state dict (a mapping of names to tensors) in it")
        content = inner
    if not isinstance(content, dict):
        raise RunError(f"{path}: has no state dict (a mapping of names to tensors) in it")
    return {name.removeprefix("module."): value for name, value in content.items()}


def _is_state(content: dict[Any, Any]) -> bool:
    return bool(content) and all(isinstance(name, str) and isinstance(t, Tensor) for name, t in content.items())
