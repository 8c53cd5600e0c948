"""A network as it is trained: which of its layers became sparse, and how its numbers stand in the whole one."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ticketlab.pruning.masks import Mask
from ticketlab.training.gates import plain_name, through_gates
from ticketlab.training.sparse import SparseLinear, sparse_layers


@dataclass(frozen=True)
class Trainable:
    """A network as it is trained, and how its weights stand in the whole one."""

    model: nn.Module
    mask: Mask
    """Of the layers that stayed dense."""
    sparse: Mask
    """Of the layers that keep their remaining weights alone."""
    frozen: list[tuple[nn.Parameter, Tensor]] = field(default_factory=list)
    """1 for each weight that remains, as it is trained; only where weights are removed as training goes on."""

    def whole(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The whole network's state on the CPU, removed weights and those of closed gates zero; shares no memory."""
        here = {name: value.detach().cpu().clone() for name, value in through_gates(self.model, weights).items()}
        for name, kept in self.sparse.items():
            full = torch.zeros(kept.shape, dtype=here[_values(name)].dtype)
            full[kept] = here.pop(_values(name))
            here[name] = full
        return here

    def masks(self) -> Mask:
        """The whole mask, on the CPU, in the network's order."""
        numbers = {id(parameter): kept for parameter, kept in self.frozen}
        both = {**self.mask, **self.sparse}
        return {
            name: self.spread(name, numbers[id(parameter)] > 0) if numbers else both[name].cpu()
            for name, parameter in self.prunable().items()
        }

    def shrinkable_(self) -> None:
        """Prepare for `remove_`."""
        self.frozen[:] = [
            (parameter, self.gather(name, kept.float()).clone())
            for (name, kept), parameter in zip(self.masks().items(), self.prunable().values(), strict=True)
        ]

    def remove_(self, name: str, gone: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Remove weights while training goes on: they, what the optimizer remembers of them, and their gradients.

        Args:
            gone: Bool, in the shape in which the weight is trained.
        """
        parameter = self.prunable()[name]
        numbers = next(kept for owner, kept in self.frozen if owner is parameter)
        same = [value for value in optimizer.state.get(parameter, {}).values() if value.shape == parameter.shape]
        for value in (parameter.data, numbers, *same):
            value.masked_fill_(gone, 0)
        if name in self.mask:
            self.mask[name] = self.mask[name] & ~gone

    def change_(self, name: str, kept: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Let these weights remain from now on: those that go lose value and memory, those that come start from zero.

        Args:
            kept: Bool, in the weight's shape; only of a layer that stayed dense.
        """
        self.remove_(name, self.mask[name] & ~kept, optimizer)
        parameter = self.prunable()[name]
        next(numbers for owner, numbers in self.frozen if owner is parameter).copy_(kept)
        self.mask[name] = kept

    def parameters(self) -> list[nn.Parameter]:
        """What the network's optimizer trains; gates have their own."""
        return list(self._whole_names())

    def prunable(self) -> dict[str, nn.Parameter]:
        """The parameter in which each prunable weight is trained: whole, or its remaining values in a row."""
        names = self._whole_names().items()
        return {name: parameter for parameter, name in names if name in self.mask or name in self.sparse}

    def spread(self, name: str, values: Tensor) -> Tensor:
        """Numbers of a trained weight in the whole weight's shape, on the CPU; 0 for those that are not stored."""
        if name not in self.sparse:
            return values.detach().cpu().view(self.mask[name].shape)
        full = torch.zeros(self.sparse[name].shape, dtype=values.dtype)
        full[self.sparse[name]] = values.detach().cpu().view(-1)
        return full

    def gather(self, name: str, full: Tensor) -> Tensor:
        """The inverse of `spread`; numbers of removed weights become 0."""
        if name in self.sparse:
            return full[self.sparse[name]]
        here = full.to(self.mask[name].device)
        return torch.where(self.mask[name], here, torch.zeros_like(here))

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """What the optimizer remembers, as `parameter/what`, in the shapes of the whole network."""
        names = self._whole_names()
        return {
            f"{name}/{key}": self.spread(name, value) if self._is_weight(name, parameter, value) else value.cpu()
            for parameter, name in names.items()
            for key, value in optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }

    def restore_optimizer_(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
        """Let an optimizer remember what `optimizer_state` gave, of whatever mask; removed weights have no memory."""
        parameters = {name: parameter for parameter, name in self._whole_names().items()}
        for where, value in state.items():
            name, _, key = where.rpartition("/")
            parameter = parameters[name]
            is_weight = name in self.mask or name in self.sparse
            here = self.gather(name, value) if is_weight and value.dim() else value
            optimizer.state[parameter][key] = here.clone().to(parameter.device)

    def noise(self, strength: float) -> list[tuple[nn.Parameter, float]]:
        """Parameters with strength / √(numbers in the whole tensor) each, removed ones counted (FlipOut)."""
        if not strength:
            return []
        sizes = {name: kept.numel() for name, kept in self.sparse.items()}
        return [(p, strength / math.sqrt(sizes.get(name, p.numel()))) for p, name in self._whole_names().items()]

    def _whole_names(self) -> dict[nn.Parameter, str]:
        """The whole network's name of each parameter that is trained."""
        of_values = {_values(name): name for name in self.sparse}
        named = ((plain_name(name), parameter) for name, parameter in self.model.named_parameters())
        return {parameter: of_values.get(name, name) for name, parameter in named if name is not None}

    def _is_weight(self, name: str, parameter: nn.Parameter, value: Tensor) -> bool:
        return (name in self.mask or name in self.sparse) and value.shape == parameter.shape


def make_trainable(
    model: nn.Module, weights: Mapping[str, Tensor], mask: Mask, device: torch.device, may_grow: bool = False
) -> Trainable:
    """The network with a ticket's weights, ready to train; layers that are sparse enough become sparse.

    Args:
        may_grow: Removed weights may come back: all layers stay dense.
    """
    model = copy.deepcopy(model)
    model.load_state_dict(weights)
    sparse = {} if may_grow else sparse_layers(model, mask, device)
    for name, kept in sparse.items():
        parent, _, child = name.removesuffix(".weight").rpartition(".")
        layer = model.get_submodule(name.removesuffix(".weight"))
        assert isinstance(layer, nn.Linear)
        setattr(model.get_submodule(parent), child, SparseLinear(layer, kept))
    dense = {name: kept.to(device) for name, kept in mask.items() if name not in sparse}
    return Trainable(model.to(device), dense, sparse)


def _values(name: str) -> str:
    return f"{name.removesuffix('.weight')}.values"
