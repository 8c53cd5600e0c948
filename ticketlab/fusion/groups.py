"""Units that share weights: where each unit of a group has its rows, its norm entries and its columns.

A group holds units that can change places: all have their slots in the same layers. A unit is a neuron, a filter,
or several of them that are added together (the channels of a residual stream).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ticketlab.errors import FusionError
from ticketlab.models.compact import LINEAR, NORMS, set_tensor_, tensor
from ticketlab.registry import did_you_mean

TOLERANCE = 1e-9
"""Relative output error, in double precision, up to which a shuffle counts as no change."""

POSITIVE = frozenset({"relu", "leaky_relu", "max_pool"})
"""Operations f with f(s·x) = s·f(x) for s > 0."""
ODD = frozenset({"tanh", "softsign"})
"""Operations with f(-x) = -f(x)."""
ADDITIVE = frozenset({"avg_pool", "dropout", "identity", "shape"})
"""Operations that keep sums and multiples."""


@dataclass(frozen=True, eq=False)
class Slot:
    """Where the units of a group stand in one layer."""

    layer: str
    index: Tensor
    """(units, taps): rows of a producer, entries of a norm, or columns (input features) of a consumer."""
    norm: str | None = None
    """The norm that alone reads the layer's output."""


@dataclass(frozen=True, eq=False)
class Group:
    """Units that must change together, and where."""

    producers: tuple[Slot, ...]
    """Layers whose rows compute the units; several are added together."""
    consumers: tuple[Slot, ...]
    """Layers whose columns read the units; more than one tap after a flatten."""
    norms: tuple[Slot, ...] = ()
    depthwise: tuple[Slot, ...] = ()
    operations: frozenset[str] = frozenset()
    """What happens to the units between producers and consumers."""
    reason: str | None = None
    """Why these units cannot be touched; None where they can."""

    @property
    def name(self) -> str:
        """The first producer, which is also the key of `widths`."""
        return self.producers[0].layer

    @property
    def units(self) -> int:
        """How many units the group has."""
        return len(self.producers[0].index)

    @property
    def is_stream(self) -> bool:
        """Whether several producers add up to these units, as in a residual stream."""
        return len(self.producers) > 1

    def only(self, kept: Tensor) -> Group:
        """The group with some of its units, where they stand now."""

        def some(slots: tuple[Slot, ...]) -> tuple[Slot, ...]:
            return tuple(replace(slot, index=slot.index[kept]) for slot in slots)

        return replace(
            self,
            producers=some(self.producers),
            consumers=some(self.consumers),
            norms=some(self.norms),
            depthwise=some(self.depthwise),
        )

    def scales(self) -> str:
        """Multiples s for which a unit s·u can be had from u: positive, odd, any, or none but 1."""
        if self.operations <= ADDITIVE:
            return "any"
        if self.operations <= ADDITIVE | POSITIVE:
            return "positive"
        return "odd" if self.operations <= ADDITIVE | ODD else "one"


def keep_units_(model: nn.Module, group: Group, kept: Tensor) -> None:
    """Keep only these units of a group (ascending indices); everything else in the network stays.

    Raises FusionError where no unit would be left.
    """
    if len(kept) == 0:
        raise FusionError(f"{group.name}: no unit would be left (layer collapse); keep at least one")
    removed = torch.ones(group.units, dtype=torch.bool)
    removed[kept] = False
    _index_(model, group, lambda size, slot: _without(size, slot.index[removed]))


def after_keeping(group: Group, changed: Group, kept: Tensor) -> Group:
    """Where a group's slots stand once `changed`, another group, has kept only some of its units."""
    gone = torch.ones(changed.units, dtype=torch.bool)
    gone[kept] = False

    def moved(slots: tuple[Slot, ...], others: tuple[Slot, ...]) -> tuple[Slot, ...]:
        places = {slot.layer: slot.index[gone].reshape(-1).sort().values for slot in others}
        return tuple(
            replace(s, index=s.index - torch.searchsorted(places[s.layer], s.index)) if s.layer in places else s
            for s in slots
        )

    return replace(
        group,
        producers=moved(group.producers, changed.producers),
        consumers=moved(group.consumers, changed.consumers),
        norms=moved(group.norms, changed.norms),
        depthwise=moved(group.depthwise, changed.depthwise),
    )


def permute_units_(model: nn.Module, group: Group, order: Tensor) -> None:
    """Put unit `order[i]` of a group in the place of unit i, everywhere."""
    _index_(model, group, lambda size, slot: _permuted(size, slot.index, order))


def _index_(model: nn.Module, group: Group, choose: Callable[[int, Slot], Tensor]) -> None:
    """Take rows and columns of every layer of a group; `choose` gives positions for (size, slot)."""
    for slot in (*group.producers, *group.depthwise, *group.norms):
        layer = model.get_submodule(slot.layer)
        for name in ("weight", "bias", "running_mean", "running_var"):
            value = getattr(layer, name, None)
            if isinstance(value, Tensor):
                set_tensor_(layer, name, value.detach()[choose(len(value), slot)])
    for slot in group.consumers:
        layer = model.get_submodule(slot.layer)
        weight = tensor(layer, "weight")
        set_tensor_(layer, "weight", weight[:, choose(weight.shape[1], slot)])


def _without(size: int, places: Tensor) -> Tensor:
    stay = torch.ones(size, dtype=torch.bool)
    stay[places.reshape(-1)] = False
    return stay.nonzero().squeeze(1)


def _permuted(size: int, index: Tensor, order: Tensor) -> Tensor:
    places = torch.arange(size)
    places[index] = index[order]
    return places


@torch.no_grad()
def permutation_error(model: nn.Module, groups: Iterable[Group], images: Tensor, seed: int = 0) -> float:
    """Largest relative change of the output when the units of every group are shuffled: the proof of the groups.

    Taken in double precision on a copy with random weights and norms, so that dead or equal weights hide nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    copy = _randomised(model, generator)
    before = copy(images.double())
    for group in groups:
        permute_units_(copy, group, torch.randperm(group.units, generator=generator))
    return _change(before, copy(images.double()))


@torch.no_grad()
def removable(model: nn.Module, group: Group, images: Tensor, seed: int = 0) -> bool:
    """Whether a network without half of a group's units computes what it does when nobody reads them."""
    generator = torch.Generator().manual_seed(seed)
    copy = _randomised(model, generator)
    order = torch.randperm(group.units, generator=generator)
    kept = order[: (group.units + 1) // 2].sort().values
    for slot in group.consumers:
        layer = copy.get_submodule(slot.layer)
        weight = tensor(layer, "weight").clone()
        weight[:, slot.index[order[len(kept) :]]] = 0
        set_tensor_(layer, "weight", weight)
    before = copy(images.double())
    keep_units_(copy, group, kept)
    try:
        return _change(before, copy(images.double())) <= TOLERANCE
    except (RuntimeError, ValueError, IndexError):  # shapes that no longer fit
        return False


def _randomised(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy with random numbers of the usual sizes: activations that neither fade nor saturate."""
    copy = deepcopy(model).double().eval()
    for name, value in copy.state_dict().items():
        if not value.is_floating_point():
            continue
        drawn = torch.randn(value.shape, generator=generator, dtype=torch.double)
        if value.dim() > 1:
            drawn *= (2 / value[0].numel()) ** 0.5
        elif name.endswith(("running_var", "weight")):
            drawn = 0.5 + torch.rand(value.shape, generator=generator, dtype=torch.double)
        value.copy_(drawn if value.dim() > 1 or name.endswith(("running_var", "weight")) else 0.3 * drawn)
    return copy


def _change(before: Tensor, after: Tensor) -> float:
    return float((after - before).abs().max() / before.abs().max()) if after.shape == before.shape else torch.inf


def prove(model: nn.Module, groups: Sequence[Group], images: Tensor) -> float:
    """The permutation error of all groups together; raises FusionError that names the groups that are wrong."""
    error = permutation_error(model, groups, images)
    if error <= TOLERANCE:
        return error
    wrong = [group.name for group in groups if not permutation_error(model, [group], images) <= TOLERANCE]
    raise FusionError(
        f"shuffling the units of {', '.join(wrong) or 'all groups'} changes the output (by {error:.1e}): these groups "
        "do not hold together, so nothing was fused; name the right ones with --groups"
    )


@contextmanager
def recorded(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Inputs and outputs of layers in the last pass through the model."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> object:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found[name] = (inputs[0], output)

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in layers]  # type: ignore[arg-type]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def named_groups(model: nn.Module, entries: Sequence[Mapping[str, Sequence[str]]], images: Tensor) -> list[Group]:
    """Groups as a user names them: `producers`, `consumers` and perhaps `norms`, by layer.

    Columns of a consumer are dealt out evenly, in order, as a flatten of (units, positions) does. Which norm reads
    which producer is seen in a pass over `images`. Raises FusionError for layers that are unknown or of sizes that
    do not fit.
    """
    for role in ("producers", "consumers", "norms"):
        named = [name for entry in entries for name in entry.get(role, ())]
        twice = sorted({name for name in named if named.count(name) > 1})
        if twice:
            raise FusionError(f"groups: {', '.join(twice)} more than once among the {role}; a group has all of a layer")
    norm_of = _following_norms(model, images)
    return [_named_group(model, entry, norm_of) for entry in entries]


@torch.no_grad()
def _following_norms(model: nn.Module, images: Tensor) -> dict[str, str]:
    """Layer → the norm whose input is its output."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, (*LINEAR, *NORMS))}
    with recorded(model, list(layers)) as passes:
        model.eval()(images)
    norms = {name: passes[name][0] for name, layer in layers.items() if isinstance(layer, NORMS) and name in passes}
    return {
        name: norm
        for name, (_, output) in passes.items()
        for norm, entering in norms.items()
        if not isinstance(layers[name], NORMS) and entering is output
    }


def _named_group(model: nn.Module, entry: Mapping[str, Sequence[str]], norm_of: Mapping[str, str]) -> Group:
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, (*LINEAR, *NORMS))}
    for name in (name for names in entry.values() for name in names):
        if name not in layers:
            raise FusionError(f"groups: no layer '{name}'{did_you_mean(name, layers)}")
    if not entry.get("producers") or not entry.get("consumers"):
        raise FusionError("groups: each group needs producers and consumers")
    units = len(tensor(layers[entry["producers"][0]], "weight"))
    unnamed = {norm_of[name] for name in entry["producers"] if name in norm_of} - set(entry.get("norms", ()))
    if unnamed:
        raise FusionError(f"groups: {', '.join(sorted(unnamed))} reads these producers; name it among the norms")

    def slots(role: str, axis: int) -> tuple[Slot, ...]:
        found = []
        for name in entry.get(role, ()):
            size = tensor(layers[name], "weight").shape[axis]
            if size % units or (axis == 0 and role == "producers" and size != units):
                raise FusionError(f"groups: {name} has {size} {role[:-1]} places for {units} units")
            found.append(Slot(name, torch.arange(size).view(units, -1), norm_of.get(name)))
        return tuple(found)

    # operations unknown: only equal units count as the same
    return Group(slots("producers", 0), slots("consumers", 1), slots("norms", 0), operations=frozenset({"unknown"}))
