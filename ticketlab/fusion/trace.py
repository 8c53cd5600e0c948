"""Which layers feed which: the network is run on unit numbers instead of activations.

Every row of a linear or convolution layer gets a number. Reshaping, slicing, padding and concatenation act on the
tensor of numbers as they would on activations, so they need no rules; an addition makes the numbers that meet one
unit; what a layer reads in a column says which unit stands there. Anything unknown freezes the units it touches.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata
from torch.nn import functional

from ticketlab.errors import FusionError
from ticketlab.fusion.groups import Group, Slot, removable
from ticketlab.models.compact import LINEAR, NORMS, tensor

CONSTANT = -1
"""Stands for zeros that do not depend on the input, such as padding."""
FOREIGN = 0
"""Stands for what no unit of ours computes: the images, other constants."""

LOGITS = "is the network's output"
"""Why the last layer's units stay."""

UNARY: dict[Any, str] = {
    **dict.fromkeys((nn.ReLU, functional.relu, torch.relu, "relu", "relu_", torch.relu_), "relu"),
    **dict.fromkeys((nn.LeakyReLU, functional.leaky_relu), "leaky_relu"),
    **dict.fromkeys((nn.Tanh, torch.tanh, functional.tanh, "tanh"), "tanh"),
    **dict.fromkeys((nn.Softsign, functional.softsign), "softsign"),
    **dict.fromkeys((nn.Hardtanh, functional.hardtanh), "bent"),
    **dict.fromkeys((nn.ReLU6, functional.relu6, nn.GELU, functional.gelu, nn.SiLU, functional.silu), "bent"),
    **dict.fromkeys((nn.Sigmoid, torch.sigmoid, functional.sigmoid, "sigmoid", nn.ELU, functional.elu), "bent"),
    **dict.fromkeys((nn.Softplus, functional.softplus, nn.Hardswish, functional.hardswish), "bent"),
    **dict.fromkeys((nn.Mish, functional.mish, nn.SELU, functional.selu, nn.CELU, functional.celu), "bent"),
    **dict.fromkeys((nn.Hardsigmoid, functional.hardsigmoid), "bent"),
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, functional.dropout), "dropout"),
    **dict.fromkeys((functional.dropout2d, functional.dropout1d), "dropout"),
    **dict.fromkeys((nn.Identity, "contiguous", "clone", "detach"), "identity"),
}
POOLS: dict[Any, str] = {
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d), "max_pool"),
    **dict.fromkeys((functional.max_pool1d, functional.max_pool2d, functional.max_pool3d), "max_pool"),
    **dict.fromkeys((functional.adaptive_max_pool1d, functional.adaptive_max_pool2d), "max_pool"),
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), "avg_pool"),
    **dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), "avg_pool"),
    **dict.fromkeys((functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d), "avg_pool"),
    **dict.fromkeys((functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d), "avg_pool"),
}
REDUCTIONS: dict[Any, str] = {
    **dict.fromkeys((torch.mean, "mean"), "avg_pool"),
    **dict.fromkeys((torch.amax, "amax"), "max_pool"),
}
ADDITIONS = {
    operator.add,
    operator.iadd,
    operator.sub,
    operator.isub,
    torch.add,
    torch.sub,
    "add",
    "add_",
    "sub",
    "sub_",
}
SHAPES: set[Any] = {
    nn.Flatten, nn.Unflatten, torch.flatten, torch.reshape, torch.cat, torch.concat, torch.stack, torch.permute,
    torch.transpose, torch.squeeze, torch.unsqueeze, torch.chunk, torch.split, operator.getitem, "view", "reshape",
    "flatten", "permute", "transpose", "squeeze", "unsqueeze", "chunk", "split", "expand",
}  # fmt: skip
SCALINGS = {operator.mul, operator.truediv, operator.neg, torch.mul, torch.div, "mul", "div"}
PADS: set[Any] = {functional.pad, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d}


@dataclass(frozen=True)
class Trace:
    """What tracing found."""

    groups: list[Group]
    """Groups that may be changed, in the order in which the network computes them."""
    frozen: list[Group]
    """Groups that may not, each with its reason."""
    norm_of: dict[str, str]
    """Layer → the norm that alone reads its output."""


def trace(model: nn.Module, images: Tensor) -> Trace:
    """Groups of units of a network; `images` is one example of its input, (1, …).

    Groups whose units cannot be removed, because the network's code counts on their number, are among the frozen.
    Raises FusionError for a network whose course depends on the data, which cannot be traced.
    """
    mode = model.training
    model.eval()
    try:
        graph = symbolic(model, images)
        numbering = Numbering(graph)
        with torch.no_grad():
            numbering.run(torch.full(images.shape, FOREIGN))
    except Exception as error:
        first = str(error).partition("\n")[0]
        raise FusionError(f"the network cannot be traced ({first}); name its groups with --groups") from error
    finally:
        model.train(mode)
    found = numbering.result()
    fixed = [group for group in found.groups if not removable(model, group, images)]
    return replace(
        found,
        groups=[group for group in found.groups if group not in fixed],
        frozen=found.frozen + [replace(group, reason="has a fixed number in the network's code") for group in fixed],
    )


def symbolic(model: nn.Module, images: Tensor) -> fx.GraphModule:
    """The network as a graph in which every node knows its shape for one example, (1, …)."""
    graph = fx.symbolic_trace(model)
    ShapeProp(graph).propagate(images)
    return graph


class Numbering(fx.Interpreter):
    """Runs a traced network on unit numbers and notes where each number passes."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.parent: list[int] = [FOREIGN]
        self.frozen: dict[int, str] = {}
        self.slots: list[tuple[str, str, Tensor]] = []  # role, layer, number of each row, entry or column
        self.passed: list[tuple[Tensor, str]] = []  # numbers, operation
        self.norm_of: dict[str, str] = {}
        self.rows: dict[str, Tensor] = {}
        self.shared = _shared_layers(graph)

    # --- one node at a time

    def run_node(self, node: fx.Node) -> Any:
        """The numbers that a node hands on."""
        self.node = node
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        if node.op == "placeholder":
            return super().run_node(node)
        if node.op == "output":
            self._freeze((args, kwargs), LOGITS)
            return args[0]
        if node.op == "get_attr":
            return torch.full(self._shape(), FOREIGN)
        if node.op == "call_module":
            return self._module(str(node.target), self.fetch_attr(str(node.target)), args, kwargs)
        return self._call(node.target, args, kwargs)

    def _module(self, name: str, layer: nn.Module, args: Any, kwargs: Any) -> Any:
        numbers = args[0]
        if isinstance(layer, LINEAR):
            return self._layer(name, layer, numbers)
        if isinstance(layer, NORMS):
            return self._norm(name, layer, numbers)
        if type(layer) in PADS:
            if getattr(layer, "value", 0) != 0:
                return self._unknown(args, kwargs)
            return functional.pad(numbers, layer.padding, value=CONSTANT)  # type: ignore[arg-type]
        if isinstance(layer, nn.MaxPool2d) and layer.return_indices:
            return self._unknown(args, kwargs)
        return self._call(type(layer), args, kwargs, layer)

    def _call(self, what: Any, args: Any, kwargs: Any, layer: nn.Module | None = None) -> Any:  # noqa: PLR0911
        """The rule for a function, method or kind of layer."""
        known = _lookup(what)
        tensors = [t for t in flatten(args, kwargs) if isinstance(t, Tensor)]
        if not tensors or what in ("size", "dim", "numel") or what is getattr:
            return plain(what, args, kwargs, layer)
        if known in UNARY.values() and len(tensors) == 1:
            self.passed.append((tensors[0].unique(), str(known)))
            return tensors[0]
        if what in POOLS:
            return self._pool(tensors[0], POOLS[what])
        if what in REDUCTIONS:
            return self._reduce(tensors[0], REDUCTIONS[what], kwargs.get("dim", args[1] if len(args) > 1 else None))
        if what in ADDITIONS and len(tensors) == 2 and kwargs.get("alpha", 1) == 1:
            return self._add(*tensors)
        if what in SCALINGS | ADDITIONS and len(tensors) == 1:  # the other one is a plain number
            is_multiple = what in SCALINGS and (isinstance(args[0], Tensor) or what is operator.mul) and not kwargs
            self.passed.append((tensors[0].unique(), "identity" if is_multiple else "bent"))
            return tensors[0]
        if what in PADS and kwargs.get("mode", "constant") == "constant" and not kwargs.get("value"):
            if len(args) <= 2 or not any(args[2:]):
                return functional.pad(args[0], args[1] if len(args) > 1 else kwargs["pad"], value=CONSTANT)
        elif what in SHAPES:
            return plain(what, args, kwargs, layer)
        return self._unknown(args, kwargs)

    # --- layers

    def _layer(self, name: str, layer: nn.Module, numbers: Tensor) -> Tensor:
        if name in self.shared:
            return self._unknown(numbers, {}, f"{name} is used more than once")
        axis = -1 if isinstance(layer, nn.Linear) else 1
        columns = self._uniform(numbers, axis)
        outputs = len(tensor(layer, "weight"))
        if columns is None:
            self._freeze(numbers, f"{name} reads units in a mixed order")
            columns = torch.full((numbers.shape[axis],), FOREIGN)
        groups = getattr(layer, "groups", 1)
        if groups == len(columns) == outputs and groups > 1:
            self.slots.append(("depthwise", name, columns))
            self.passed.append((columns.unique(), "depthwise"))
            self.rows[name] = columns
            return self._spread(columns, axis)
        if groups > 1:
            self._freeze(columns, f"{name} is a convolution in {groups} groups")
            rows = self._new(name, outputs)
            self._freeze(rows, f"{name} is a convolution in {groups} groups")
            return self._spread(rows, axis)
        self.slots.append(("consumer", name, columns))
        return self._spread(self._new(name, outputs), axis)

    def _new(self, name: str, count: int) -> Tensor:
        first = len(self.parent)
        self.parent += range(first, first + count)
        rows = torch.arange(first, first + count)
        self.rows[name] = rows
        self.slots.append(("producer", name, rows))
        return rows

    def _norm(self, name: str, layer: nn.Module, numbers: Tensor) -> Tensor:
        entries = self._uniform(numbers, 1)
        if entries is None or name in self.shared or not getattr(layer, "track_running_stats", False):
            return self._unknown(numbers, {}, f"{name} cannot be followed")
        self.slots.append(("norm", name, entries))
        source = self.node.args[0]
        if isinstance(source, fx.Node) and source.op == "call_module" and len(source.users) == 1:
            before = str(source.target)
            if before in self.rows and torch.equal(self.rows[before], entries):
                self.norm_of[before] = name
                return numbers
        self.passed.append((entries.unique(), "norm"))
        return numbers

    # --- operations

    def _pool(self, numbers: Tensor, operation: str) -> Tensor:
        channels = self._uniform(numbers, 1)
        if channels is None:
            return self._unknown(numbers, {})
        self.passed.append((channels.unique(), operation))
        return self._spread(channels, 1)

    def _reduce(self, numbers: Tensor, operation: str, dims: Any) -> Tensor:
        over = {
            int(d) % numbers.dim() for d in (dims if isinstance(dims, list | tuple) else [0 if dims is None else dims])
        }
        channels = self._uniform(numbers, 1)
        if channels is None or over & {0, 1}:
            return self._unknown(numbers, {})
        self.passed.append((channels.unique(), operation))
        return self._spread(channels, 1)

    def _add(self, one: Tensor, other: Tensor) -> Tensor:
        one, other = torch.broadcast_tensors(one, other)
        pairs = torch.stack((one.reshape(-1), other.reshape(-1))).unique(dim=1)
        for a, b in pairs.t().tolist():
            if a > 0 and b > 0:
                self._join(a, b)
            elif FOREIGN in (a, b):
                self._freeze(torch.tensor([a, b]), "is added to something that no layer computes")
        return torch.where(one == CONSTANT, other, one)

    def _unknown(self, args: Any, kwargs: Any, why: str | None = None) -> Any:
        what = getattr(self.node.target, "__name__", str(self.node.target))
        if self.node.op == "call_module":
            what = type(self.fetch_attr(str(self.node.target))).__name__
        self._freeze((args, kwargs), why or f"meets an unknown operation, {what}")
        return _blank(self.node.meta.get("tensor_meta"))

    # --- numbers

    def _shape(self) -> tuple[int, ...]:
        return tuple(self.node.meta["tensor_meta"].shape)

    def _spread(self, channels: Tensor, axis: int) -> Tensor:
        shape = self._shape()
        view = [1] * len(shape)
        view[axis] = len(channels)
        return channels.view(view).expand(shape).contiguous()

    @staticmethod
    def _uniform(numbers: Tensor, axis: int) -> Tensor | None:
        """The one number at each index of an axis, padding aside; None where there are several."""
        flat = numbers.movedim(axis, 0).reshape(numbers.shape[axis], -1)
        most = flat.max(dim=1).values
        return most if bool(((flat == most[:, None]) | (flat == CONSTANT)).all()) else None

    def _freeze(self, numbers: Any, why: str) -> None:
        for value in flatten(numbers):
            if isinstance(value, Tensor):
                for number in value.unique().tolist():
                    if number > 0:
                        self.frozen.setdefault(number, why)

    def _join(self, one: int, other: int) -> None:
        first, second = sorted((self._root(one), self._root(other)))
        self.parent[second] = first

    def _root(self, number: int) -> int:
        while self.parent[number] != number:
            self.parent[number] = number = self.parent[self.parent[number]]
        return number

    # --- groups

    def result(self) -> Trace:
        """Units with the same slots, put together."""
        places: dict[int, dict[tuple[str, str], list[int]]] = defaultdict(lambda: defaultdict(list))
        for role, layer, numbers in self.slots:
            for position, number in enumerate(numbers.tolist()):
                if number > 0:
                    places[self._root(number)][role, layer].append(position)
        frozen = {self._root(number): why for number, why in reversed(self.frozen.items())}
        operations: dict[int, set[str]] = defaultdict(set)
        for numbers, operation in self.passed:
            for number in numbers.tolist():
                if number > 0:
                    operations[self._root(number)].add(operation)
        alike: dict[Any, list[int]] = defaultdict(list)
        for unit, slots in places.items():
            signature = tuple((key, len(where)) for key, where in slots.items())
            alike[signature, frozen.get(unit)].append(unit)
        found = [
            self._group([places[u] for u in units], operations[units[0]], why) for (_, why), units in alike.items()
        ]
        groups = [group for group in found if group.reason is None]
        return Trace(groups, [group for group in found if group.reason is not None], self.norm_of)

    def _group(self, units: list[dict[tuple[str, str], list[int]]], operations: set[str], why: str | None) -> Group:
        slots: dict[str, list[Slot]] = defaultdict(list)
        for role, layer in units[0]:
            index = torch.tensor([unit[role, layer] for unit in units])
            slots[role].append(Slot(layer, index, self.norm_of.get(layer)))
        made = Group(
            producers=tuple(slots["producer"]),
            consumers=tuple(slots["consumer"]),
            norms=tuple(slots["norm"]),
            depthwise=tuple(slots["depthwise"]),
            operations=frozenset(operations),
            reason=why,
        )
        if why is None and not made.consumers:
            return replace(made, reason="is read by no layer")
        if why is None and any(slot.index.shape[1] > 1 for slot in made.producers):
            return replace(made, reason="is several rows of one layer")
        return made


def _blank(meta: Any) -> Any:
    """Numbers that stand for nothing of ours, in the shape of an operation's results."""
    if isinstance(meta, TensorMetadata):
        return torch.full(tuple(meta.shape), FOREIGN)
    return type(meta)(_blank(part) for part in meta) if isinstance(meta, list | tuple) else meta


def _lookup(what: Any) -> str | None:
    try:
        return UNARY.get(what)
    except TypeError:
        return None


def plain(what: Any, args: Any, kwargs: Any, layer: nn.Module | None = None) -> Any:
    """Call a layer, a function or a method as the network does."""
    if layer is not None:
        return layer(*args, **kwargs)
    return getattr(args[0], what)(*args[1:], **kwargs) if isinstance(what, str) else what(*args, **kwargs)


def flatten(*values: Any) -> list[Any]:
    """Everything in nested lists, tuples and dictionaries."""
    found: list[Any] = []
    for value in values:
        if isinstance(value, list | tuple):
            found += flatten(*value)
        elif isinstance(value, Mapping):
            found += flatten(*value.values())
        else:
            found.append(value)
    return found


def _shared_layers(graph: fx.GraphModule) -> set[str]:
    """Layers that are called twice or share a parameter with another layer."""
    calls = [str(node.target) for node in graph.graph.nodes if node.op == "call_module"]
    owners: dict[int, set[str]] = defaultdict(set)
    for name, layer in graph.named_modules(remove_duplicate=False):
        for parameter in layer.parameters(recurse=False):
            owners[id(parameter)].add(name)
    tied = {name for names in owners.values() if len(names & set(calls)) > 1 for name in names}
    return {name for name in calls if calls.count(name) > 1} | tied
