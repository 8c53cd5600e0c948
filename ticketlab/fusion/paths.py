"""Which weights lie on a path from the network's input to its output, in any network that can be traced.

The network is run on ones and zeros: a layer multiplies by its mask, and all that is positive becomes 1, in the
forward pass (a way in) and in the backward pass (a way out). What such a run leaves as the gradient of a mask's entry
is positive where both exist. Norms, activations and biases pass everything on; a maximum passes on what any of its
inputs has. What is not known counts as live on both sides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import TensorMetadata
from torch.nn import functional

from ticketlab.errors import FusionError
from ticketlab.fusion.trace import (
    ADDITIONS,
    PADS,
    POOLS,
    REDUCTIONS,
    SCALINGS,
    SHAPES,
    UNARY,
    flatten,
    plain,
    symbolic,
)
from ticketlab.models.compact import LINEAR, NORMS
from ticketlab.pruning.masks import Mask, remaining, total


class Paths:
    """Paths through one network; masks are of its prunable layers.

    Args:
        shape: Of one example.

    Raises FusionError for a network whose course depends on the data, which cannot be traced.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        mode = model.training
        model.eval()
        example = torch.zeros(1, *shape)
        try:
            self.graph = symbolic(model, example)
        except Exception as error:
            first = str(error).partition("\n")[0]
            raise FusionError(f"the network cannot be traced, so paths through it are unknown ({first})") from error
        finally:
            model.train(mode)
        self.example = torch.ones_like(example)

    def reach(self, mask: Mask) -> Mask:
        """Positions with a live way in and out through the mask, whether it keeps them or not.

        Raises FusionError where the network does something that no rule covers.
        """
        device = next(iter(mask.values())).device
        ones = {name: kept.detach().float().cpu().requires_grad_() for name, kept in mask.items()}
        try:
            found = _gradients(_Flood(self.graph, ones), self.example, list(ones.values()))
        except Exception as error:
            first = str(error).partition("\n")[0]
            raise FusionError(f"paths through the network cannot be followed ({first})") from error
        # a layer that no rule covers has no gradient
        return {
            name: torch.ones_like(kept) if gradient is None else (gradient > 0).to(device)
            for (name, kept), gradient in zip(mask.items(), found, strict=True)
        }

    def live(self, mask: Mask) -> Mask:
        """The kept weights that lie on a path."""
        return {name: mask[name] & reached for name, reached in self.reach(mask).items()}


def effective_density(model: nn.Module, shape: tuple[int, ...], mask: Mask, whole: int | None = None) -> float | None:
    """Density of the weights on paths from input to output (Vysogorets & Kempe 2023); None where it is unknown.

    Args:
        whole: Weights of the dense network; those of the mask if left out.
    """
    try:
        live = Paths(model, shape).live(mask)
    except FusionError:
        return None
    return remaining(live) / (whole or total(mask))


@torch.enable_grad()
def _gradients(flood: _Flood, example: Tensor, ones: list[Tensor]) -> tuple[Tensor | None, ...]:
    outputs = [part.sum() for part in _tensors(flood.run(example))]
    return torch.autograd.grad(outputs, ones, allow_unused=True)


class _Positive(torch.autograd.Function):
    """1 where there is anything, in both directions."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return (values > 0).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return (gradient > 0).to(gradient.dtype)


class _Pool(torch.autograd.Function):
    """A pool or a mean; a channel of which anything is read counts as read everywhere."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, pooled: Tensor) -> Tensor:
        ctx.shape = inputs.shape
        ctx.keeps_channels = pooled.shape[:2] == inputs.shape[:2]
        return (pooled > 0).to(inputs.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        read = (gradient > 0).to(gradient.dtype)
        if not ctx.keeps_channels:
            return read.max().expand(ctx.shape), None
        by_channel = read.flatten(2).amax(dim=2) if read.dim() > 2 else read
        return by_channel.view(*by_channel.shape, *[1] * (len(ctx.shape) - 2)).expand(ctx.shape), None


class _Unknown(torch.autograd.Function):
    """An operation that may read everything and give anything."""

    @staticmethod
    def forward(ctx: Any, shape: tuple[int, ...], *inputs: Tensor) -> Tensor:
        ctx.shapes = [value.shape for value in inputs]
        return torch.ones(shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *(torch.ones(shape) for shape in ctx.shapes))


def _positive(values: Tensor) -> Tensor:
    found: Tensor = _Positive.apply(values)
    return found


class _Flood(fx.Interpreter):
    """Runs a traced network on what is live."""

    def __init__(self, graph: fx.GraphModule, ones: dict[str, Tensor]) -> None:
        super().__init__(graph)
        self.ones = ones

    def run_node(self, node: fx.Node) -> Any:
        """What a node hands on: 1 where something live may come out."""
        self.node = node
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        if node.op == "placeholder":
            return super().run_node(node)
        if node.op == "output":
            return args[0]
        if node.op == "get_attr":
            return torch.zeros(tuple(node.meta["tensor_meta"].shape))
        if node.op == "call_module":
            return self._module(str(node.target), self.fetch_attr(str(node.target)), args, kwargs)
        return self._call(node.target, args, kwargs)

    def _module(self, name: str, layer: nn.Module, args: Any, kwargs: Any) -> Any:
        if isinstance(layer, LINEAR) and type(layer) in LINEAR:
            return self._layer(name, layer, args[0])
        if isinstance(layer, NORMS):
            return args[0]
        if type(layer) in PADS:
            return functional.pad(args[0], layer.padding)  # type: ignore[arg-type]
        return self._call(type(layer), args, kwargs, layer)

    def _layer(self, name: str, layer: nn.Module, live: Tensor) -> Tensor:
        weight = self.ones.get(f"{name}.weight")
        if weight is None:
            weight = torch.ones_like(layer.weight)  # type: ignore[arg-type]
        if isinstance(layer, nn.Linear):
            return _positive(functional.linear(live, weight))
        assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        if layer.padding_mode != "zeros":
            return self._unknown([live])
        convolve: Callable[..., Tensor] = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}[live.dim()]
        return _positive(convolve(live, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups))

    def _call(self, what: Any, args: Any, kwargs: Any, layer: nn.Module | None = None) -> Any:  # noqa: PLR0911
        """The rule for a function, method or kind of layer."""
        inputs = _tensors(args, kwargs)
        if not inputs or what in ("size", "dim", "numel") or what is getattr:
            return plain(what, args, kwargs, layer)
        if what in UNARY and len(inputs) == 1:
            return inputs[0]
        if what in POOLS or what in REDUCTIONS:
            return self._pool(what, args, kwargs, layer)
        if what in ADDITIONS | SCALINGS:
            return inputs[0] if len(inputs) == 1 else _positive(inputs[0] + inputs[1])
        if what in PADS:
            return functional.pad(args[0], args[1] if len(args) > 1 else kwargs["pad"])
        if what in SHAPES:
            return plain(what, args, kwargs, layer)
        return self._unknown(inputs)

    def _pool(self, what: Any, args: Any, kwargs: Any, layer: nn.Module | None) -> Any:
        with torch.no_grad():
            pooled = plain(what, args, kwargs, layer)
        return _Pool.apply(args[0], pooled) if isinstance(pooled, Tensor) else self._unknown([args[0]])

    def _unknown(self, inputs: list[Tensor]) -> Any:
        def blank(meta: Any) -> Any:
            if isinstance(meta, TensorMetadata):
                return _Unknown.apply(tuple(meta.shape), *inputs)
            return type(meta)(blank(part) for part in meta) if isinstance(meta, list | tuple) else meta

        return blank(self.node.meta.get("tensor_meta"))


def _tensors(*values: Any) -> list[Tensor]:
    return [value for value in flatten(*values) if isinstance(value, Tensor)]
