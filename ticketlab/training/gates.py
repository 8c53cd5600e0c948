"""Gates on single weights, trained with them: hard concrete ones (L0), and noise (variational dropout).

A gate is a parametrization of its layer's weight (torch.nn.utils.parametrize): in evaluation the layer computes with
what its gates leave, closed ones exactly 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

LEAST, MOST = -0.1, 1.1
"""γ and ζ: the range to which gates are stretched before they are cut off at 0 and 1."""
TEMPERATURE = 2 / 3
"""β: how sharply a gate decides (Louizos, Welling & Kingma 2018, section 4)."""
DROWNED = 3.0
"""log α from which a weight counts as noise alone (Molchanov, Ashukha & Vetrov 2017, section 5)."""
FIRST_NOISE = -10.0
"""log σ² of all weights before training."""
KL = (0.63576, 1.87320, 1.48695)
"""k₁, k₂, k₃ of the approximation (Molchanov, Ashukha & Vetrov 2017, equation 14)."""
_ORIGINAL, _NUMBERS = "parametrizations.weight.original", "parametrizations.weight.0.numbers"
"""Where a layer keeps its weight and its gates' numbers."""


class Gate(nn.Module):
    """One number for each weight of a layer, trained with it."""

    products: ClassVar[int] = 1
    """Products of the layer in a step, where one without gates has one."""

    def __init__(self, weight: Tensor, first: float) -> None:
        super().__init__()
        self.numbers = nn.Parameter(torch.full_like(weight, first))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the layer computes with."""
        return self.drawn(weight) if self.training else self.left(weight, self.numbers)

    def drawn(self, weight: Tensor) -> Tensor:
        """For one step of training."""
        raise NotImplementedError

    @staticmethod
    def left(weight: Tensor, numbers: Tensor) -> Tensor:
        """After training: what the gates leave."""
        raise NotImplementedError

    def penalty(self, weight: Tensor) -> Tensor:
        """What open gates cost, a scalar."""
        raise NotImplementedError


class HardConcrete(Gate):
    """w · z, z between 0 and 1 and often exactly one of them; the numbers are log α.

    Source: Louizos, Welling & Kingma 2018, equations 10 to 13.
    """

    def drawn(self, weight: Tensor) -> Tensor:
        """z = min(1, max(0, s(ζ − γ) + γ)), s = sigmoid((log u − log(1 − u) + log α) / β), u uniform."""
        uniform = torch.rand_like(weight).clamp(1e-6, 1 - 1e-6)
        return weight * _stretched(torch.sigmoid((uniform.logit() + self.numbers) / TEMPERATURE))

    @staticmethod
    def left(weight: Tensor, numbers: Tensor) -> Tensor:
        """As in training, with s = sigmoid(log α)."""
        return weight * _stretched(numbers.sigmoid()) + 0.0  # which makes +0.0 of −0.0

    def penalty(self, weight: Tensor) -> Tensor:
        """Expected number of gates that are not closed: Σ sigmoid(log α − β log(−γ/ζ))."""
        return torch.sigmoid(self.numbers - TEMPERATURE * math.log(-LEAST / MOST)).sum()


def _stretched(gates: Tensor) -> Tensor:
    return (gates * (MOST - LEAST) + LEAST).clamp(0, 1)


class Variational(Gate):
    """w with Gaussian noise of its own variance, the numbers log σ²; log α = log σ² − log w².

    The noise is added to what the layer computes, another one for each example (local reparameterisation). Source:
    Molchanov, Ashukha & Vetrov 2017, equations 9 to 14 and section 5.
    """

    products: ClassVar[int] = 2

    def drawn(self, weight: Tensor) -> Tensor:
        """The mean; `noisy` adds the noise."""
        return weight

    @staticmethod
    def left(weight: Tensor, numbers: Tensor) -> Tensor:
        """w where log α ≤ 3."""
        return torch.where(_log_alpha(weight, numbers) <= DROWNED, weight, torch.zeros_like(weight))

    def penalty(self, weight: Tensor) -> Tensor:
        """Σ KL = Σ k₁ − k₁ sigmoid(k₂ + k₃ log α) + ½ log(1 + 1/α)."""
        log_alpha, (high, shift, slope) = _log_alpha(weight, self.numbers), KL
        return (high * torch.sigmoid(-shift - slope * log_alpha) + 0.5 * functional.softplus(-log_alpha)).sum()

    def noisy(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """A forward hook: output + √(inputs² σ²) ε in training."""
        if not self.training:
            return output
        squares, variance = inputs[0].square(), self.numbers.exp()
        if isinstance(layer, nn.Linear):
            spread = functional.linear(squares, variance)
        else:
            assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)), "what can be pruned is linear or a convolution"
            spread = layer._conv_forward(squares, variance, None)
        return output + (spread + 1e-12).sqrt() * torch.randn_like(output)


def _log_alpha(weight: Tensor, numbers: Tensor) -> Tensor:
    return numbers - torch.log(weight.square() + 1e-12)


def add_gates_(model: nn.Module, names: Sequence[str], kind: str, probability: float) -> None:
    """Put gates on these weights.

    Args:
        kind: l0 or variational_dropout.
        probability: l0: p of log α = log((1 − p) / p) before training, as in the paper's code.
    """
    for name in names:
        layer = model.get_submodule(name.removesuffix(".weight"))
        weight = layer.get_parameter("weight")
        if kind == "l0":
            gate: Gate = HardConcrete(weight, math.log((1 - probability) / probability))
        else:
            gate = Variational(weight, FIRST_NOISE)
            layer.register_forward_hook(gate.noisy)
        parametrize.register_parametrization(layer, "weight", gate, unsafe=True)


def gates_of(model: nn.Module) -> dict[str, Gate]:
    """Gates of a network by the weight that they are on."""
    found = {}
    for layer, module in model.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            gate = module.get_submodule("parametrizations.weight.0")
            if isinstance(gate, Gate):
                found[f"{layer}.weight"] = gate
    return found


def plain_name(name: str) -> str | None:
    """The network's own name of a parameter, or of a part of its state; None for numbers of gates."""
    return None if name.endswith(_NUMBERS) else name.replace(_ORIGINAL, "weight")


def without_gates(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's state with its weights as if there were no gates on them."""
    return {plain: value for name, value in state.items() if (plain := plain_name(name)) is not None}


def through_gates(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's state with what its gates leave of the weights."""
    found = without_gates(state)
    for name, gate in gates_of(model).items():
        found[name] = gate.left(found[name], state[name.removesuffix("weight") + _NUMBERS])
    return found
