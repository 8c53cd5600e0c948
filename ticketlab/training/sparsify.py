"""What draws weights to zero while the dense network trains, so that pruning it loses less."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ticketlab.pruning.allocate import lowest
from ticketlab.pruning.masks import State
from ticketlab.recipe import SparsifySection
from ticketlab.training.gates import add_gates_, gates_of
from ticketlab.training.optim import memory, restore_memory_
from ticketlab.training.trainable import Trainable


class Sparsify:
    """What is done to weights and gradients around a step; nothing, unless a kind says so."""

    products: Mapping[str, int] = {}
    """By weight: products of its layer in a step, where a network that is trained without has one."""

    def before_(self) -> None:
        """Before the forward pass."""

    def after_(self) -> None:
        """After the backward pass, before the optimizer's step."""

    def point(self) -> dict[str, float]:
        """What to add to a point of the curve."""
        return {}

    def state(self) -> State:
        """What a checkpoint has to keep beside the network."""
        return {}

    def restore(self, tensors: State) -> None:
        """Go on from what `state` gave."""


@dataclass(frozen=True)
class Penalty(Sparsify):
    """Adds strength · ∂R/∂w to the gradients, R a sum over tensors."""

    weights: Sequence[nn.Parameter]
    gradient: Callable[[Tensor], Tensor]
    strength: float

    def after_(self) -> None:
        """Add the penalty's gradients."""
        for weight in self.weights:
            if weight.grad is not None:
                weight.grad.add_(self.gradient(weight.detach()), alpha=self.strength)


def l1(weight: Tensor) -> Tensor:
    """∂/∂w of Σ|w|: sign(w)."""
    return weight.sign()


def hoyer_square(weight: Tensor) -> Tensor:
    """∂/∂w of (Σ|w|)² / Σw²: 2 sign(w) · (Σ|w| / Σw²) · (1 − |w| Σ|w| / Σw²).

    Small weights are drawn to zero and large ones away from it, whatever the scale of the layer. Source: Yang, Wen & Li
    2020 (DeepHoyer), equation 3; 0 for a tensor of zeros.
    """
    squares = weight.square().sum()
    if not squares:
        return torch.zeros_like(weight)
    ratio = weight.abs().sum() / squares
    return 2 * weight.sign() * ratio * (1 - weight.abs() * ratio)


def group_lasso(weight: Tensor) -> Tensor:
    """∂/∂w of Σ √n ‖w_g‖, a group g for the n weights into each unit or filter: √n w / ‖w_g‖, 0 for a group of zeros.

    Source: Wen et al. 2016 (structured sparsity learning), equation 3, with the √n of Yuan & Lin 2006.
    """
    norms = weight.flatten(1).norm(dim=1).view(-1, *[1] * (weight.dim() - 1))
    return math.sqrt(weight[0].numel()) * torch.where(norms > 0, weight / norms, torch.zeros_like(weight))


@dataclass(frozen=True)
class GlobalSparseMomentum(Sparsify):
    """Only the share of all weights with the largest |w · ∂L/∂w| learns in a step; weight decay shrinks the others.

    Source: Ding et al. 2019 (global sparse momentum SGD), equations 5 and 6.
    """

    weights: Sequence[nn.Parameter]
    share: float

    def after_(self) -> None:
        """Set the gradients of all other weights to zero."""
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        known = [weight for weight in self.weights if weight.grad is not None]
        moved = [(weight.detach() * found).abs().flatten() for weight, found in zip(known, gradients, strict=True)]
        every = torch.cat(moved)
        learn = max(1, math.floor(self.share * len(every) + 0.5))
        parts = (~lowest(every, len(every) - learn)).split([len(part) for part in moved])
        for found, learns in zip(gradients, parts, strict=True):
            found.mul_(learns.view_as(found))


@dataclass
class TargetedDropout(Sparsify):
    """Of the weights into each unit the smaller ones, `share` of them, are dropped in a step with a probability.

    Source: Gomez et al. 2019 (targeted dropout), section 4, for weights. Draws from torch's global generator.
    """

    weights: Sequence[nn.Parameter]
    share: float
    probability: float
    kept: list[Tensor] = field(default_factory=list)
    """Values of this step before the drop."""
    dropped: list[Tensor] = field(default_factory=list)

    def before_(self) -> None:
        """Drop: the network answers, and learns, without them."""
        self.kept = [weight.detach().clone() for weight in self.weights]
        self.dropped = [self._draw(weight) for weight in self.kept]
        for weight, gone in zip(self.weights, self.dropped, strict=True):
            weight.data.masked_fill_(gone, 0.0)

    def _draw(self, weight: Tensor) -> Tensor:
        rows = weight.flatten(1)
        count = math.floor(self.share * rows.shape[1])
        candidates = torch.zeros_like(rows, dtype=torch.bool)
        smaller = rows.abs().topk(count, dim=1, largest=False, sorted=False).indices
        candidates.scatter_(1, smaller, True)
        return (candidates & (torch.rand_like(rows) < self.probability)).view_as(weight)

    def after_(self) -> None:
        """Put the values back; what was dropped learns nothing."""
        for weight, before, gone in zip(self.weights, self.kept, self.dropped, strict=True):
            weight.data.copy_(before)
            if weight.grad is not None:
                weight.grad.masked_fill_(gone, 0.0)


class Gates(Sparsify):
    """Trains gates on weights by an Adam of their own: their expected loss, and strength times what open ones cost.

    Sources: Louizos, Welling & Kingma 2018, equation 9 (L0); Molchanov, Ashukha & Vetrov 2017, equation 4 (variational
    dropout), where the strength is one over the number of training examples.
    """

    def __init__(self, net: Trainable, section: SparsifySection, names: Sequence[str]) -> None:
        """Puts them on these weights of the network."""
        add_gates_(net.model, names, section.kind, section.probability)
        self.weights, self.gates, self.strength = net.prunable(), gates_of(net.model), section.strength
        self.adam = torch.optim.Adam([gate.numbers for gate in self.gates.values()], lr=section.gate_lr, fused=True)
        self.products = {name: gate.products for name, gate in self.gates.items()}

    def after_(self) -> None:
        """Add the penalty's gradients, of weights and gates, and move the gates."""
        open_ones = [gate.penalty(self.weights[name]) for name, gate in self.gates.items()]
        (self.strength * torch.stack(open_ones).sum()).backward()
        self.adam.step()
        self.adam.zero_grad()

    def point(self) -> dict[str, float]:
        """Share of each layer's gates that are not closed."""
        left = {name: gate.left(self.weights[name].detach(), gate.numbers) for name, gate in self.gates.items()}
        return {f"gates_open/{name}": float((weight != 0).double().mean()) for name, weight in left.items()}

    def state(self) -> State:
        """What the gates' optimizer remembers."""
        return memory(self.adam)

    def restore(self, tensors: State) -> None:
        """Let it remember."""
        restore_memory_(self.adam, tensors)


@dataclass(frozen=True)
class Drift(Sparsify):
    """Weights are drawn to zero and shaken: to each gradient l1 · sign(w) + √(2 T / η) ν is added, ν ~ N(0, 1).

    A step of plain gradient descent with learning rate η is then one of deep rewiring: w − η (∂L/∂w + l1 · sign(w)) −
    √(2 η T) ν; but a weight that has just come, and is 0, is drawn nowhere. Draws from torch's global generator.
    Source: Bellec et al. 2018, algorithm 1.
    """

    weights: Sequence[nn.Parameter]
    optimizer: torch.optim.Optimizer
    strength: float
    temperature: float

    def after_(self) -> None:
        """Add to the gradients."""
        shake = math.sqrt(2 * self.temperature / self.optimizer.param_groups[0]["lr"])
        for weight in self.weights:
            assert weight.grad is not None
            weight.grad.add_(weight.detach().sign(), alpha=self.strength)
            if shake:
                weight.grad.add_(torch.randn_like(weight), alpha=shake)


PENALTIES: dict[str, Callable[[Tensor], Tensor]] = {"l1": l1, "hoyer_square": hoyer_square, "group_lasso": group_lasso}


def make_sparsify(section: SparsifySection, net: Trainable, names: Sequence[str]) -> Sparsify:
    """What a recipe asks for, for these weights of a network; gates are put on them."""
    weights = [net.prunable()[name] for name in names]
    if section.is_gated:
        return Gates(net, section, names)
    if section.kind in PENALTIES:
        return Penalty(weights, PENALTIES[section.kind], section.strength)
    if section.kind == "global_sparse_momentum":
        return GlobalSparseMomentum(weights, section.share)
    return TargetedDropout(weights, section.share, section.probability)
