"""Saliency of a weight: one function per criterion. A criterion never sorts, counts or sees a rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ticketlab.errors import PruningError
from ticketlab.registry import Registry


@dataclass(frozen=True)
class Evidence:
    """What training recorded about one weight tensor; tensors are of its shape."""

    initial: Tensor | None = None
    """The weights at the rewind step."""
    generator: torch.Generator | None = None
    """Randomness for criteria that draw; seeded by replicate and level (or, in a search, step)."""
    progress: float = 1.0
    """Share of the training since the rewind step that lies behind."""
    flips: Tensor | None = None
    """How often each weight changed its sign; with a half-life, old flips count less."""
    magnitude_rank: Tensor | None = None
    """Share of the competing weights that are smaller, in (0, 1)."""
    steadiness_rank: Tensor | None = None
    """Share of the competing weights that flipped more often, in (0, 1)."""
    gradient: Tensor | None = None
    """∂L/∂w of the mean loss over some training examples."""
    hessian_gradient: Tensor | None = None
    """Hg: the loss's Hessian times its gradient."""
    flow_gradient: Tensor | None = None
    """∂R/∂|w|, where R is what flows through the network of absolute weights from inputs of one."""
    squared_gradient: Tensor | None = None
    """Mean of the squared gradients of single examples: the empirical Fisher information of each weight."""
    curvature: Tensor | None = None
    """∂²L/∂w²: the diagonal of the loss's Hessian."""
    inverse_hessian: Tensor | None = None
    """[H⁻¹]_qq of each weight q, H the second moments of its layer's inputs."""


class Criterion(Protocol):
    """(weight, evidence, *, options) → saliency of the weight's shape; higher stays longer."""

    def __call__(self, weight: Tensor, evidence: Evidence, /) -> Tensor:
        """Saliency of each weight."""


criteria: Registry[Criterion] = Registry("criterion")


@criteria.register("magnitude")
def magnitude(weight: Tensor, evidence: Evidence) -> Tensor:
    """|w|: large weights survive (Han et al. 2015; "large final" in Zhou et al. 2019)."""
    return weight.abs()


@criteria.register("unit_l1")
def unit_l1(weight: Tensor, evidence: Evidence) -> Tensor:
    """Mean |w| of the weights into its unit or filter, for each weight: whole units go (Li et al. 2017, section 3.1).

    Counts of weights are exact all the same: of the last unit to go some weights may stay. The paper takes the sum,
    which orders the units of a layer as the mean does; means can be compared between layers.
    """
    means = weight.abs().flatten(1).mean(1) if weight.dim() > 1 else weight.abs()
    return means.view(-1, *[1] * (weight.dim() - 1)).expand_as(weight)


@criteria.register("magnitude_increase", needs={"initial"})
def magnitude_increase(weight: Tensor, evidence: Evidence) -> Tensor:
    """|w| − |w at the rewind step|: weights that grew survive (Zhou et al. 2019, section 2)."""
    return weight.abs() - _initial(evidence, "magnitude_increase").abs()


@criteria.register("small_final")
def small_final(weight: Tensor, evidence: Evidence) -> Tensor:
    """−|w|: small weights survive, the control that turns `magnitude` round (Zhou et al. 2019, figure 2)."""
    return -weight.abs()


@criteria.register("large_init", needs={"initial"})
def large_init(weight: Tensor, evidence: Evidence) -> Tensor:
    """|w at the rewind step|: weights that were large before training survive (Zhou et al. 2019, figure 2)."""
    return _initial(evidence, "large_init").abs()


@criteria.register("movement", needs={"initial"})
def movement(weight: Tensor, evidence: Evidence) -> Tensor:
    """|w − w₀|: weights that went far from the rewind step survive (Zhou et al. 2019, figure 2)."""
    return (weight - _initial(evidence, "movement")).abs()


@criteria.register("large_final_same_sign", needs={"initial"})
def large_final_same_sign(weight: Tensor, evidence: Evidence) -> Tensor:
    """w · sign(w₀): large weights that kept the sign of the rewind step survive (Zhou et al. 2019, section 5).

    The paper cuts off at 0; here weights that changed sign have an order too, below all others: far ones go first.
    """
    return weight * _initial(evidence, "large_final_same_sign").sign()


@criteria.register("magnitude_increase_same_sign", needs={"initial"})
def magnitude_increase_same_sign(weight: Tensor, evidence: Evidence) -> Tensor:
    """(w − w₀) · sign(w₀): weights that moved in the direction of their sign survive (Zhou et al. 2019, section 5).

    |w| − |w₀| where the sign is the same; negative where it changed.
    """
    initial = _initial(evidence, "magnitude_increase_same_sign")
    return (weight - initial) * initial.sign()


def _initial(evidence: Evidence, criterion: str) -> Tensor:
    return _known(evidence.initial, criterion, "the weights at the rewind step")


@criteria.register("extrapolated", needs={"initial"})
def extrapolated(weight: Tensor, evidence: Evidence, *, power: float = 0.5) -> Tensor:
    """|w₀ + (w − w₀) / progress^power|: the magnitude that a weight is on its way to; |w| at the end of training.

    For tickets drawn early. Weights wander from their start about as the root of the steps, so that after a quarter
    of the training they have gone half their way (docs/early-bird.md has the measurements).
    """
    initial = _initial(evidence, "extrapolated")
    if evidence.progress <= 0:
        return weight.abs()
    return torch.lerp(initial, weight, evidence.progress**-power).abs()


@criteria.register("snip", needs={"gradient"})
def snip(weight: Tensor, evidence: Evidence) -> Tensor:
    """|w · ∂L/∂w|: weights survive whose removal would change the loss most, to first order.

    Connection sensitivity at initialisation (Lee, Ajanthan & Torr 2019, SNIP, equation 4; without its normalisation,
    which orders nothing); of a trained network the first-order Taylor criterion (Molchanov et al. 2017).
    """
    return (weight * _known(evidence.gradient, "snip", "gradients")).abs()


@criteria.register("grasp", needs={"hessian_gradient"})
def grasp(weight: Tensor, evidence: Evidence) -> Tensor:
    """w · Hg: weights survive whose removal would lower the norm of the gradient most.

    The negative of the score in Wang, Zhang & Grosse 2020 (GraSP), equation 8, of which the highest are removed.
    """
    return weight * _known(evidence.hessian_gradient, "grasp", "Hessian-gradient products")


@criteria.register("synflow", needs={"flow_gradient"})
def synflow(weight: Tensor, evidence: Evidence) -> Tensor:
    """|w| · ∂R/∂|w|: weights survive through which most of the network's flow goes; it looks at no data.

    Source: Tanaka et al. 2020 (SynFlow), equation 2; meant for `pruning.rounds: 100`.
    """
    return weight.abs() * _known(evidence.flow_gradient, "synflow", "the gradient of the flow")


@criteria.register("obd", needs={"curvature"})
def obd(weight: Tensor, evidence: Evidence) -> Tensor:
    """½ h w², h = ∂²L/∂w²: weights survive whose removal raises the loss most, at a minimum of it.

    Source: LeCun, Denker & Solla 1990 (optimal brain damage), equation 5.
    """
    return _known(evidence.curvature, "obd", "second derivatives") * weight.double().square() / 2


@criteria.register("obs", needs={"inverse_hessian"})
def obs(weight: Tensor, evidence: Evidence) -> Tensor:
    """½ w² / [H⁻¹]_qq: how much the layer's squared error rises without the weight if the others make up for it.

    Source: Hassibi & Stork 1993 (optimal brain surgeon), equation 5; with `pruning.compensate: true` they do.
    """
    return weight.double().square() / _known(evidence.inverse_hessian, "obs", "inverse Hessians") / 2


@criteria.register("fisher", needs={"squared_gradient"})
def fisher(weight: Tensor, evidence: Evidence) -> Tensor:
    """½ F w², F the mean of squared gradients of single examples: optimal brain damage with the empirical Fisher.

    Source: Theis et al. 2018, equation 7.
    """
    return _known(evidence.squared_gradient, "fisher", "squared gradients") * weight.double().square() / 2


def _known(found: Tensor | None, criterion: str, what: str) -> Tensor:
    """Evidence; raises PruningError that names the criterion where there is none."""
    if found is None:
        raise PruningError(f"{criterion} needs {what}")
    return found


@criteria.register("random", needs={"generator"})
def random(weight: Tensor, evidence: Evidence) -> Tensor:
    """A uniform draw for each weight: the control that a criterion has to beat."""
    if evidence.generator is None:
        raise PruningError("random needs a generator")
    return torch.rand(weight.shape, generator=evidence.generator).to(weight.device)


@criteria.register("flipout", needs={"flips"})
def flipout(weight: Tensor, evidence: Evidence, *, p: float = 2.0) -> Tensor:
    """|w|^p / (flips + 1): large weights with a steady sign survive (Apostol, Stol & Forré 2020, FlipOut).

    The paper divides by the flips; its code and this one add 1, so that no flip is no division by zero. In double
    precision: squares of small weights leave the range of single precision.
    """
    if evidence.flips is None:
        raise PruningError("flipout needs sign flips")
    if not 0 <= p <= 16:
        raise PruningError(f"flipout: p is a number from 0 (flips alone) to 16 (got {p})")
    return weight.double().abs().pow(p) / (evidence.flips + 1)


@criteria.register("hybrid", needs={"magnitude_rank", "steadiness_rank"})
def hybrid(weight: Tensor, evidence: Evidence, *, mix: float = 0.5) -> Tensor:
    """(1 − mix) · rank of |w| + mix · rank of steadiness: magnitude alone at 0, sign flips alone at 1.

    Ranks are among the weights that compete, so that neither unit nor distribution matters. Source: our own.
    """
    if evidence.magnitude_rank is None or evidence.steadiness_rank is None:
        raise PruningError("hybrid needs ranks of magnitude and steadiness")
    if not 0 <= mix <= 1:
        raise PruningError(f"hybrid: mix is a number from 0 (magnitude alone) to 1 (flips alone) (got {mix})")
    return torch.lerp(evidence.magnitude_rank, evidence.steadiness_rank, mix)
