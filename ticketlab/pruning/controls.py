"""What a ticket must be compared with: the same number of weights, of other values or in other places.

Each control takes one thing away from the ticket and keeps the rest. Sources: Frankle & Carbin 2019, section 2 (reinit,
random mask); Zhou et al. 2019, sections 3 and 4 (signs, constants, shuffles, frozen weights); Frankle et al. 2021,
"Pruning neural networks at initialization: why are we missing the mark?" (shuffled masks).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ticketlab.pruning.masks import Mask, State, masked
from ticketlab.registry import Registry


@dataclass(frozen=True)
class Subject:
    """The ticket, and what controls draw from. Tensors are on the CPU."""

    mask: Mask
    initial: State
    """The dense network at the rewind step: what the ticket's weights were cut from."""
    fresh: State
    """Initial weights of another draw."""
    generator: torch.Generator


@dataclass(frozen=True)
class Start:
    """What a control's training starts from."""

    mask: Mask
    weights: State
    """Removed ones are zero."""
    frozen: State = field(default_factory=dict)
    """Values that removed weights keep, and zero elsewhere; where there are none, removed weights are zero."""


Control = Callable[[Subject], Start]

controls: Registry[Control] = Registry("control")


@controls.register("reinit")
def reinit(subject: Subject) -> Start:
    """The mask with weights drawn anew: takes the initial values away (Frankle & Carbin 2019)."""
    return _start(subject.mask, subject.fresh)


@controls.register("reinit_same_sign")
def reinit_same_sign(subject: Subject) -> Start:
    """Weights drawn anew, each with its original's sign: leaves nothing of the values but signs (Zhou et al. 2019)."""
    signed = {name: subject.fresh[name].abs() * subject.initial[name].sign() for name in subject.mask}
    return _start(subject.mask, {**subject.fresh, **signed})


@controls.register("signed_constant")
def signed_constant(subject: Subject) -> Start:
    """Each weight is its sign times the deviation of its layer's weights (Zhou et al. 2019)."""
    return _start(subject.mask, {**subject.initial, **constants(subject.initial, subject.mask)})


@controls.register("shuffled_weights")
def shuffled_weights(subject: Subject) -> Start:
    """The ticket's own values, permuted among its places in each layer: takes away which value stands where."""
    weights = dict(subject.initial)
    for name, kept in subject.mask.items():
        weights[name] = weights[name].clone()
        values = weights[name][kept]
        weights[name][kept] = values[torch.randperm(len(values), generator=subject.generator)]
    return _start(subject.mask, weights)


@controls.register("shuffled_mask")
def shuffled_mask(subject: Subject) -> Start:
    """The mask permuted within each layer, over the original weights: takes away which weights of a layer stay."""
    return _start(_shuffled(subject), subject.initial)


@controls.register("random_mask")
def random_mask(subject: Subject) -> Start:
    """A random mask of the same density in each layer, with weights drawn anew (Frankle & Carbin 2019, figure 4)."""
    return _start(_shuffled(subject), subject.fresh)


@controls.register("random_mask_global")
def random_mask_global(subject: Subject) -> Start:
    """As many random weights of all pruned layers together, drawn anew: takes the layers' densities away, too."""
    pruned = {name: kept for name, kept in subject.mask.items() if not kept.all()}
    flat = torch.cat([kept.reshape(-1) for kept in pruned.values()])
    drawn = flat[torch.randperm(len(flat), generator=subject.generator)]
    parts = torch.split(drawn, [kept.numel() for kept in pruned.values()])
    masks = {name: part.reshape(kept.shape) for (name, kept), part in zip(pruned.items(), parts, strict=True)}
    return _start({name: masks.get(name, kept) for name, kept in subject.mask.items()}, subject.fresh)


@controls.register("frozen")
def frozen(subject: Subject) -> Start:
    """Removed weights keep their initial values, untrained, instead of zero (Zhou et al. 2019, section 4)."""
    gone = {name: ~kept for name, kept in subject.mask.items()}
    values = masked({name: subject.initial[name] for name in gone}, gone)
    return Start(subject.mask, masked(subject.initial, subject.mask), values)


def constants(weights: State, mask: Mask) -> State:
    """±σ for each weight that a mask covers: its sign, and the deviation of its tensor (Zhou et al. 2019)."""
    return {name: weights[name].sign() * weights[name].std(unbiased=False) for name in mask}


def _start(mask: Mask, weights: State) -> Start:
    return Start(mask, masked(weights, mask))


def _shuffled(subject: Subject) -> Mask:
    shuffled: Mask = {}
    for name, kept in subject.mask.items():
        order = torch.randperm(kept.numel(), generator=subject.generator)
        shuffled[name] = kept.reshape(-1)[order].reshape(kept.shape)
    return shuffled
