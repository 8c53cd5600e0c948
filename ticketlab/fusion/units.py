"""A group's units as the methods see them: rows, columns, activations, and what consumers make of them.

In one frame (docs/fusion.md): k new units from n old ones, new rows = R · old rows, old activations ≈ B · new + c,
so a consumer's new columns are its old ones · B and its bias gains old columns · c.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from ticketlab.errors import FusionError
from ticketlab.fusion.groups import Group, Slot, recorded
from ticketlab.models.compact import LINEAR, set_tensor_, tensor

BATCH = 128  # images; activations of larger ones leave the caches
MAX_ROWS = 60_000
"""Patches of one consumer; a random choice of positions where the images have more."""
DOUBLE_FEATURES = 2_048
MAX_FEATURES = 6_000
"""Inputs of one output up to which a consumer is regressed as a whole (its matrix is inverted in double precision)."""


@dataclass(frozen=True)
class Regression:
    """Second moments of one consumer's inputs now and of its outputs in the reference network, centred, double."""

    layer: str
    features: Tensor
    """(units, taps): which inputs of an output belong to each unit."""
    mean_in: Tensor
    mean_out: Tensor
    cov_in: Tensor
    """(inputs, inputs)"""
    cov_cross: Tensor
    """(inputs, outputs)"""
    var_out: Tensor
    """(outputs,)"""
    weight: Tensor
    """The consumer's weight now, (outputs, inputs)."""
    bias: Tensor
    """Its bias now, (outputs,); zeros where it has none."""


@dataclass(frozen=True)
class Activations:
    """Moments of the units' activations where one consumer reads them: now, and against the reference's; double."""

    layer: str
    outgoing: Tensor
    """(units, outputs × taps): the consumer's columns."""
    mean: Tensor
    reference_mean: Tensor
    cov: Tensor
    """(units, units)"""
    cov_cross: Tensor
    """(reference units, units)"""


@dataclass(frozen=True)
class Units:
    """A group of n units; weights are the reference network's, norms folded in, double precision."""

    incoming: Tensor
    """(n, inputs): rows of all producers, side by side."""
    bias: Tensor
    """(n, producers)"""
    outgoing: Tensor
    """(n, outputs × taps): columns of all consumers."""
    scales: bool = True
    """Whether s times a unit, s > 0, is what the unit of s times its row gives."""
    activations: tuple[Activations, ...] = ()
    """One for each consumer; they may see the units through different operations."""
    regressions: tuple[Regression, ...] = ()
    """Of the consumers that are small enough."""
    generator: torch.Generator = field(default_factory=torch.Generator)

    def __len__(self) -> int:
        return len(self.incoming)

    def rows(self) -> Tensor:
        """Incoming weights and biases, (n, inputs + producers)."""
        return torch.cat((self.incoming, self.bias), dim=1)


def seen(units: Units) -> tuple[Activations, ...]:
    """The units' activations, by consumer; raises FusionError where no images were given."""
    if not units.activations:
        raise FusionError("this method looks at activations and needs images")
    return units.activations


def view_units(model: nn.Module, group: Group, generator: torch.Generator) -> Units:
    """Weights of a group's units; no data."""
    rows, biases = zip(*(effective_rows(model, slot) for slot in (*group.producers, *group.depthwise)), strict=True)
    scales = group.scales() in ("positive", "any")
    columns = [_columns(tensor(model.get_submodule(slot.layer), "weight").double(), slot) for slot in group.consumers]
    return Units(
        torch.cat(rows, dim=1),
        torch.stack(biases, dim=1),
        torch.cat(columns, dim=1),
        scales,
        generator=generator,
    )


def effective_rows(model: nn.Module, slot: Slot) -> tuple[Tensor, Tensor]:
    """Weights (units, inputs) and bias (units,) of a producer as if its norm were folded in; double."""
    layer = model.get_submodule(slot.layer)
    rows = slot.index[:, 0]
    weight = tensor(layer, "weight").double().flatten(1)[rows]
    bias = tensor(layer, "bias").double()[rows] if layer.bias is not None else torch.zeros(len(rows)).double()
    if slot.norm is None:
        return weight, bias
    scale, mean, shift = norm_parts(model.get_submodule(slot.norm))
    return weight * scale[rows, None], (bias - mean[rows]) * scale[rows] + shift[rows]


def norm_parts(norm: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """(scale, mean, shift) of y = (x - mean)·scale + shift in evaluation; double."""
    mean, deviation = tensor(norm, "running_mean").double(), deviations(norm)
    if norm.weight is None:
        return 1 / deviation, mean, torch.zeros_like(mean)
    return tensor(norm, "weight").double() / deviation, mean, tensor(norm, "bias").double()


def deviations(norm: nn.Module) -> Tensor:
    """√(running variance + eps) of a norm; double."""
    eps = norm.eps
    assert isinstance(eps, float)
    return (tensor(norm, "running_var").double() + eps).sqrt()


def _columns(weight: Tensor, slot: Slot) -> Tensor:
    """(units, outputs × taps) of a consumer's weight (outputs, inputs, …)."""
    return weight[:, slot.index].movedim(1, 0).flatten(1)


# --- data


@dataclass(frozen=True)
class View:
    """A network, the groups that are looked at, and which outputs of each layer another network still has."""

    model: nn.Module
    groups: Sequence[Group]
    alive: Mapping[str, Tensor] = field(default_factory=dict)
    """Layer → its outputs that are left; layers with all of them need no entry."""


Observation = tuple[tuple[Activations, ...], tuple[Regression, ...]]


@torch.inference_mode()
def observe(now: View, then: View, images: Tensor, seed: int, patches: bool = True) -> list[Observation]:
    """Moments of each group's units over images; regressions only if `patches` and where they are small enough.

    Args:
        now: The network as fused so far, all units of its groups still present.
        then: The network before fusing and the same groups in it, with the outputs that are left by now.
        images: Normalised, (examples, channels, height, width).
    """
    looks = [
        _Look(now, then, group, original, patches) for group, original in zip(now.groups, then.groups, strict=True)
    ]
    layers = list(dict.fromkeys(slot.layer for group in now.groups for slot in group.consumers))
    generator = torch.Generator().manual_seed(seed)
    with recorded(now.model, layers) as today, recorded(then.model, layers) as before:
        for batch in images.split(BATCH):
            now.model(batch)
            if then.model is not now.model:
                then.model(batch)
            for look in looks:
                look.add(today, before, MAX_ROWS * len(batch) / len(images), generator)
    return [look.result() for look in looks]


Passes = Mapping[str, tuple[Tensor, Tensor]]


class _Look:
    """The running sums of one group."""

    def __init__(self, now: View, then: View, group: Group, original: Group, patches: bool) -> None:
        self.now, self.then = now, then
        self.pairs = list(zip(group.consumers, original.consumers, strict=True))
        self.units = [_Sums() for _ in self.pairs]
        self.slots = [slot for slot in group.consumers if patches and _inputs(now.model, slot) <= MAX_FEATURES]
        self.consumers = [_Sums() for _ in self.slots]

    def add(self, today: Passes, before: Passes, count: float, generator: torch.Generator) -> None:
        """Take in what the layers saw and gave in one pass of each network, `count` rows of each."""
        for (slot, old), sums in zip(self.pairs, self.units, strict=True):
            ours = _activations(today[slot.layer][0], self.now.model, slot)
            sums.add(*_some(ours, _activations(before[old.layer][0], self.then.model, old), count, generator))
        for slot, sums in zip(self.slots, self.consumers, strict=True):
            layer = self.now.model.get_submodule(slot.layer)
            outputs = _rows(before[slot.layer][1], layer)
            if slot.layer in self.then.alive:
                outputs = outputs[:, self.then.alive[slot.layer]]
            sums.add(*_some(_patches(layer, today[slot.layer][0]), outputs, count, generator))

    def result(self) -> Observation:
        """The moments."""
        model = self.now.model
        activations = [
            sums.activations(slot.layer, _columns(tensor(model.get_submodule(slot.layer), "weight").double(), slot))
            for (slot, _), sums in zip(self.pairs, self.units, strict=True)
        ]
        regressions = [
            sums.regression(slot, _features(model, slot), model.get_submodule(slot.layer))
            for slot, sums in zip(self.slots, self.consumers, strict=True)
        ]
        return tuple(activations), tuple(regressions)


class _Sums:
    """Running sums of rows x, z and of their products; in double precision, products of wide rows in single."""

    def __init__(self) -> None:
        self.rows = 0
        self.totals: list[Tensor] = []

    def add(self, x: Tensor, z: Tensor) -> None:
        if x.shape[1] <= DOUBLE_FEATURES:
            x, z = x.double(), z.double()
        new = [x.sum(0), z.sum(0), x.T @ x, x.T @ z, (z * z).sum(0)]
        self.rows += len(x)
        self.totals = (
            [t + n.double() for t, n in zip(self.totals, new, strict=True)]
            if self.totals
            else [n.double() for n in new]
        )

    def centred(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        x, z, xx, xz, zz = (total / self.rows for total in self.totals)
        return x, z, xx - torch.outer(x, x), xz - torch.outer(x, z), zz - z * z

    def activations(self, layer: str, outgoing: Tensor) -> Activations:
        now, then, cov, cross, _ = self.centred()
        return Activations(layer, outgoing, now, then, cov, cross.T)

    def regression(self, slot: Slot, features: Tensor, layer: nn.Module) -> Regression:
        weight = tensor(layer, "weight").double().flatten(1)
        bias = tensor(layer, "bias").double() if layer.bias is not None else torch.zeros(len(weight)).double()
        return Regression(slot.layer, features, *self.centred(), weight=weight, bias=bias)


def _some(x: Tensor, z: Tensor, count: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random choice of rows where there are too many."""
    if len(x) <= count:
        return x, z
    chosen = torch.randperm(len(x), generator=generator)[: max(1, int(count))]
    return x[chosen], z[chosen]


def _patches(layer: nn.Module, inputs: Tensor) -> Tensor:
    """What each output of a layer sees, (outputs' positions, inputs × taps)."""
    if isinstance(layer, nn.Linear):
        return inputs.flatten(0, -2)
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    framed = functional.pad(inputs, layer._reversed_padding_repeated_twice, mode)
    if isinstance(layer, nn.Conv2d):
        columns = functional.unfold(framed, layer.kernel_size, layer.dilation, 0, layer.stride)
        return columns.transpose(1, 2).flatten(0, 1)
    windows = framed.unfold(2, (layer.kernel_size[0] - 1) * layer.dilation[0] + 1, layer.stride[0])
    return windows[..., :: layer.dilation[0]].transpose(1, 2).flatten(0, 1).flatten(1)


def _rows(outputs: Tensor, layer: nn.Module) -> Tensor:
    """Outputs as (positions, channels)."""
    return outputs.flatten(0, -2) if isinstance(layer, nn.Linear) else outputs.flatten(2).transpose(1, 2).flatten(0, 1)


def _activations(inputs: Tensor, model: nn.Module, slot: Slot) -> Tensor:
    """Activations of the units where a consumer reads them, (examples × positions, units)."""
    if isinstance(model.get_submodule(slot.layer), nn.Linear):
        return inputs.flatten(0, -2)[:, slot.index].transpose(1, 2).flatten(0, 1)
    return inputs.flatten(2)[:, slot.index].movedim(1, 3).flatten(0, 2)


def _features(model: nn.Module, slot: Slot) -> Tensor:
    """Inputs of an output that belong to each unit: columns × kernel positions."""
    weight = tensor(model.get_submodule(slot.layer), "weight")
    taps = weight[0, 0].numel()
    return (slot.index[:, :, None] * taps + torch.arange(taps)).flatten(1)


def _inputs(model: nn.Module, slot: Slot) -> int:
    layer = model.get_submodule(slot.layer)
    plain = isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
    return tensor(layer, "weight")[0].numel() if plain else MAX_FEATURES + 1


# --- the result of a method, and its use


@dataclass(frozen=True)
class FusionMap:
    """What becomes of n units: k of their places are kept, with new rows, and consumers read them anew."""

    kept: Tensor
    """(k,) ascending: places in which the new units stand."""
    B: Tensor
    """(n, k): old activations ≈ B · new + c."""
    c: Tensor
    """(n,)"""
    readings: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Consumer → its own (B, c), where it sees the units differently."""
    R: Tensor | None = None
    """(k, n): new rows = R · old rows; None keeps the rows of `kept` as they are."""
    consumers: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Layer → its whole weight (outputs, inputs), zero where units go, and what its bias gains; instead of B and c."""


def apply_(model: nn.Module, group: Group, plan: FusionMap) -> None:
    """Edit the weights as a map says, at full width: the units that go are no longer read. Drop them afterwards."""
    for slot in group.consumers:
        layer = model.get_submodule(slot.layer)
        before = tensor(layer, "weight")
        if slot.layer in plan.consumers:
            weight, shift = plan.consumers[slot.layer]
            set_tensor_(layer, "weight", weight.view_as(before).to(before.dtype))
            add_bias_(model, slot, shift)
            continue
        weight = before.double()
        ours = weight[:, slot.index]  # (outputs, units, taps, …)
        mixing, constants = plan.readings.get(slot.layer, (plan.B, plan.c))
        new = torch.zeros_like(ours)
        new[:, plan.kept] = torch.einsum("ou...,uk->ok...", ours, mixing)
        shift = torch.einsum("outp,u->o", ours.reshape(*ours.shape[:3], -1), constants)
        weight[:, slot.index] = new
        set_tensor_(layer, "weight", weight.to(before.dtype))
        add_bias_(model, slot, shift)
    if plan.R is not None:
        for slot in (*group.producers, *group.depthwise):
            _mix_rows_(model, slot, plan.kept, plan.R)


def add_bias_(model: nn.Module, slot: Slot, shift: Tensor) -> None:
    """Add to a layer's outputs: in its bias, else in the mean of its norm, else in a new bias."""
    if not bool(shift.any()):
        return
    layer = model.get_submodule(slot.layer)
    if layer.bias is None and slot.norm is not None:
        norm = model.get_submodule(slot.norm)
        mean = tensor(norm, "running_mean")
        set_tensor_(norm, "running_mean", (mean.double() - shift).to(mean.dtype))
        return
    weight = tensor(layer, "weight")
    before = tensor(layer, "bias").double() if layer.bias is not None else 0.0
    set_tensor_(layer, "bias", (before + shift).to(weight.dtype))


def _mix_rows_(model: nn.Module, slot: Slot, kept: Tensor, R: Tensor) -> None:
    """Rows at `kept` ← R · effective rows; a norm stays a norm with fitting statistics."""
    layer = model.get_submodule(slot.layer)
    rows = slot.index[:, 0]
    places = rows[kept]
    weight, bias = (R @ part for part in effective_rows(model, slot))
    if slot.norm is not None:
        norm = model.get_submodule(slot.norm)
        weight, bias = _unfold_norm_(norm, rows, places, R, weight, bias, layer.bias is not None)
    for name, value in (("weight", weight), ("bias", bias)):
        whole = getattr(layer, name)
        if whole is not None:
            whole = tensor(layer, name).clone()
            whole[places] = value.view_as(whole[places]).to(whole.dtype)
            set_tensor_(layer, name, whole)
    if slot.norm is None and layer.bias is None and bool(bias.any()):
        raise AssertionError("rows without a bias cannot mix to one with a bias")


def _unfold_norm_(
    norm: nn.Module, rows: Tensor, places: Tensor, R: Tensor, weight: Tensor, bias: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor]:
    """Write a norm for mixed rows and return the layer's weight and bias before that norm; exact in evaluation.

    Deviations are mixed as harmonic means (model folding's rule), scales and shifts linearly.
    """
    deviation, share = deviations(norm)[rows], R.abs() / R.abs().sum(dim=1, keepdim=True)
    mixed = 1 / (share @ (1 / deviation))
    affine = norm.weight is not None
    gamma = R @ tensor(norm, "weight").double()[rows] if affine else torch.ones(len(places)).double()
    gamma = torch.where(gamma.abs() < 1e-6, torch.ones_like(gamma), gamma)
    shift = R @ tensor(norm, "bias").double()[rows] if affine else torch.zeros(len(places)).double()
    factor = mixed / gamma
    mean = (shift - bias) * factor  # the layer's own bias becomes zero
    eps = norm.eps
    assert isinstance(eps, float)
    parts = {"running_var": mixed**2 - eps, "running_mean": mean, "weight": gamma, "bias": shift}
    for name, value in parts.items():
        if getattr(norm, name) is not None:
            whole = tensor(norm, name).clone()
            whole[places] = value.to(whole.dtype)
            set_tensor_(norm, name, whole)
    return weight * factor[:, None], torch.zeros_like(bias)


def linear_layers(model: nn.Module) -> list[str]:
    """Names of linear and convolution layers."""
    return [name for name, layer in model.named_modules() if isinstance(layer, LINEAR)]
