"""Smaller editions of a network: sizes of layers changed in place, and rebuilt from a state without a pickle."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ticketlab.errors import PluginError

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def tensor(layer: nn.Module, name: str) -> Tensor:
    """A parameter or buffer of a layer, detached."""
    value = getattr(layer, name)
    assert isinstance(value, Tensor)
    return value.detach()


def set_tensor_(layer: nn.Module, name: str, value: Tensor) -> None:
    """Replace a parameter or buffer, whatever its size, and the layer's record of its sizes."""
    value = value.contiguous()
    if name in layer._buffers:
        layer._buffers[name] = value
    else:
        before = getattr(layer, name, None)
        grad = before.requires_grad if isinstance(before, nn.Parameter) else True
        layer.register_parameter(name, nn.Parameter(value, requires_grad=grad))
    if name != "weight" and not (isinstance(layer, NORMS) and name == "running_mean"):
        return
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = value.shape
    elif isinstance(layer, NORMS):
        layer.num_features = len(value)
    elif isinstance(layer, LINEAR):
        groups = int(layer.groups)  # type: ignore[arg-type]
        if 1 < groups == layer.in_channels == layer.out_channels:  # depthwise: a group for each channel
            groups = layer.groups = value.shape[0]
        layer.out_channels, layer.in_channels = value.shape[0], value.shape[1] * groups


def rebuild(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Give a network the sizes and the values of a compact one's state; changes and returns `model`.

    A norm whose entries are missing was folded away and becomes an identity; a bias that only the state has is
    added. Raises PluginError where the state belongs to another network.
    """
    for name, layer in list(model.named_modules()):
        prefix = f"{name}." if name else ""
        has_entries = bool(layer.state_dict())
        if isinstance(layer, NORMS) and has_entries and not any(key.startswith(prefix) for key in state):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, nn.Identity())
            continue
        for part in ("weight", "bias", "running_mean", "running_var"):
            value = state.get(prefix + part)
            if value is not None and isinstance(layer, (*LINEAR, *NORMS)):
                set_tensor_(layer, part, value.clone())
    try:
        # what has no memory yet takes the state's
        model.load_state_dict(dict(state), assign=any(value.is_meta for value in model.state_dict().values()))
    except RuntimeError as error:
        raise PluginError(f"these weights belong to another network: {error}") from error
    return model


def layer_widths(model: nn.Module) -> dict[str, int]:
    """Units of each linear and convolution layer."""
    return {
        name: int(tensor(layer, "weight").shape[0])
        for name, layer in model.named_modules()
        if isinstance(layer, LINEAR)
    }


def own_memory_(model: nn.Module) -> nn.Module:
    """Give every tensor memory of its own: some writers store all that a view looks at; changes and returns `model`."""
    for value in (*model.parameters(), *model.buffers()):
        value.data = value.detach().clone(memory_format=torch.contiguous_format)
    return model


def same_shapes(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two states have the same tensors, each of the same shape."""
    return {name: value.shape for name, value in one.items()} == {name: value.shape for name, value in other.items()}


def all_finite(state: Mapping[str, Tensor]) -> bool:
    """Whether every number of a state is finite."""
    return all(bool(value.isfinite().all()) for value in state.values())
