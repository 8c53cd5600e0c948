"""Masks that are trained while the weights under them stay as they were drawn: supermasks.

Sources: edge-popup, Ramanujan et al. 2020, "What's hidden in a randomly weighted neural network?", section 3; Bernoulli
masks and dynamic weight rescaling, Zhou et al. 2019, "Deconstructing lottery tickets", section 5.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ticketlab.models.compact import tensor
from ticketlab.pruning.allocate import lowest
from ticketlab.pruning.masks import Mask, State, prunable


class LearnedMask(nn.Module):
    """Stands between a layer and its weight: what the layer sees is mask ⊙ weight, what is trained are scores.

    Straight-through: the layer computes with the mask as it was drawn last, and gradients pass to what it was drawn
    from as if the draw were the identity. With `rescale` the kept weights grow by size / number kept.
    """

    samples = 1
    """Masks that the network is judged by."""

    def __init__(self, scores: Tensor, rescale: bool) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)
        self.rescale = rescale
        self.register_buffer("kept", torch.ones_like(scores), persistent=False)
        self.kept: Tensor

    def soft(self) -> Tensor:
        """What gradients reach in the mask's place."""
        raise NotImplementedError

    def drawn(self, generator: torch.Generator) -> Tensor:
        """A mask, bool."""
        raise NotImplementedError

    def settled(self) -> Tensor:
        """The one mask that the scores stand for, bool."""
        raise NotImplementedError

    def density(self) -> float:
        """Fraction of the weights that a mask keeps, on average over draws."""
        return float(self.settled().double().mean())

    def put_(self, mask: Tensor) -> None:
        """Let the layer see this mask from now on."""
        self.kept = mask.to(self.scores)

    def forward(self, weight: Tensor) -> Tensor:
        """What the layer computes with."""
        soft = self.soft()
        # the difference first: 1 + s − s is not exactly 1
        seen = weight * (self.kept + (soft - soft.detach()))
        return seen * (self.kept.numel() / self.kept.sum().clamp(min=1)) if self.rescale else seen


class EdgePopup(LearnedMask):
    """Keeps the weights of the highest scores, so many of a layer; scores start as torch's linear layers do.

    Source: Ramanujan et al. 2020, section 3: ∂L/∂score = ∂L/∂(seen weight) · weight. Their code ranks |score|.
    """

    def __init__(self, shape: torch.Size, density: float, rescale: bool, generator: torch.Generator) -> None:
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        super().__init__((torch.rand(shape, generator=generator) * 2 - 1) * bound, rescale)
        self.keep = max(math.floor(density * math.prod(shape) + 0.5), 1)

    def soft(self) -> Tensor:
        """The scores themselves."""
        return self.scores

    def drawn(self, generator: torch.Generator) -> Tensor:
        """The highest scores; nothing is left to chance."""
        return self.settled()

    def settled(self) -> Tensor:
        """Where the highest scores are, exactly as many as asked for."""
        values = self.scores.detach().flatten()
        return ~lowest(values, values.numel() - self.keep).view_as(self.scores)


class Bernoulli(LearnedMask):
    """Keeps each weight with probability σ(score), drawn anew for every batch; all start at one half.

    Source: Zhou et al. 2019, section 5, who judge it by the mean accuracy of ten drawn masks.
    """

    samples = 10

    def __init__(self, shape: torch.Size, rescale: bool) -> None:
        super().__init__(torch.zeros(shape), rescale)

    def soft(self) -> Tensor:
        """The probability of staying."""
        return self.scores.sigmoid()

    def drawn(self, generator: torch.Generator) -> Tensor:
        """One draw; the same for the same generator on every device."""
        return torch.rand(self.scores.shape, generator=generator).to(self.scores.device) < self.soft().detach()

    def settled(self) -> Tensor:
        """The weights that are more likely to stay than to go."""
        return self.scores.detach() > 0

    def density(self) -> float:
        """Mean probability of staying."""
        return float(self.soft().detach().double().mean())


LEARNED = ("edge_popup", "bernoulli")
"""Ways of learning a mask."""


def attach_(
    model: nn.Module, method: str, density: float, rescale: bool, generator: torch.Generator
) -> dict[str, LearnedMask]:
    """Put a learned mask before every prunable weight; nothing but their scores is trained from now on.

    Args:
        density: Fraction that `edge_popup` keeps of each layer; `bernoulli` finds its own.

    Returns the masks by the weight's name.
    """
    model.requires_grad_(False)
    found: dict[str, LearnedMask] = {}
    for name in prunable(model):
        layer = model.get_submodule(name.rpartition(".")[0])
        shape = tensor(layer, "weight").shape
        is_bernoulli = method == "bernoulli"
        found[name] = Bernoulli(shape, rescale) if is_bernoulli else EdgePopup(shape, density, rescale, generator)
        parametrize.register_parametrization(layer, "weight", found[name])
    return found


def draw_(masks: dict[str, LearnedMask], seed: int) -> None:
    """Let all layers see masks drawn from a seed."""
    generator = torch.Generator().manual_seed(seed)
    for mask in masks.values():
        mask.put_(mask.drawn(generator))


def settle_(masks: dict[str, LearnedMask]) -> Mask:
    """Let all layers see the one mask that the scores stand for, and return it."""
    settled = {name: mask.settled() for name, mask in masks.items()}
    for name, mask in masks.items():
        mask.put_(settled[name])
    return settled


def expected_density(masks: dict[str, LearnedMask]) -> float:
    """Density of all layers together, on average over draws."""
    sizes = [mask.scores.numel() for mask in masks.values()]
    return sum(m.density() * size for m, size in zip(masks.values(), sizes, strict=True)) / sum(sizes)


def fixed_weights(model: nn.Module, masks: dict[str, LearnedMask]) -> State:
    """The weights under the masks, which no training may change."""
    parameters = dict(model.named_parameters())
    return {name: parameters[_original(name)].detach() for name in masks}


@torch.no_grad()
def seen_state(model: nn.Module, masks: dict[str, LearnedMask]) -> State:
    """The state of a plain network that computes what this one does with the masks drawn last; no memory is shared."""
    inside = {_original(name).rpartition(".")[0] + "." for name in masks}
    plain = {
        name: value.detach().cpu().clone()
        for name, value in model.state_dict().items()
        if not any(name.startswith(prefix) for prefix in inside)
    }
    for name in masks:
        seen = tensor(model.get_submodule(name.rpartition(".")[0]), "weight")
        # adding 0 turns the −0.0 of removed negative weights into +0.0
        plain[name] = (seen + 0.0).cpu()
    return plain


def _original(name: str) -> str:
    """Where a parametrised layer keeps its weight."""
    path, dot, last = name.rpartition(".")
    return f"{path}{dot}parametrizations.{last}.original"
