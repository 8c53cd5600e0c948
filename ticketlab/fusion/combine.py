"""What the kept units do for those that go: one function per method, (units, kept) → FusionMap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import linprog
from scipy.sparse import coo_array
from sklearn.cluster import AgglomerativeClustering
from torch import Tensor

from ticketlab.errors import FusionError
from ticketlab.fusion.least_squares import RIDGE, channel_map, refit
from ticketlab.fusion.units import FusionMap, Units, seen
from ticketlab.registry import Registry

combiners: Registry[Callable[..., FusionMap]] = Registry("combination")


@combiners.register("drop")
def drop(units: Units, kept: Tensor) -> FusionMap:
    """Nothing: the units that go are missing."""
    return FusionMap(kept, _selection(units, kept), _zeros(units))


@combiners.register("mean_bias", needs={"activations"})
def mean_bias(units: Units, kept: Tensor) -> FusionMap:
    """Consumers' biases take up the mean activation of the units that go."""
    gone = torch.ones(len(units), dtype=torch.double)
    gone[kept] = 0
    mixing = _selection(units, kept)
    readings = {a.layer: (mixing, a.reference_mean * gone) for a in seen(units)}
    return FusionMap(kept, mixing, _zeros(units), readings)


@combiners.register("neuron_merging")
def neuron_merging(units: Units, kept: Tensor, *, threshold: float = 0.45) -> FusionMap:
    """A unit goes to the kept one with the most similar direction, scaled by the ratio of their norms.

    Without the ratio where an activation does not keep multiples. Units with no kept one above the cosine
    `threshold` are dropped. Biases and folded norms are part of a unit's
    row, for linear layers and convolutions alike.

    Source: Kim et al. 2020, section 3.2; its scale through batch norm is corrected here (docs/fusion.md).
    """
    rows = units.rows()
    norms = rows.norm(dim=1).clamp(min=1e-30)
    cosine = (rows / norms[:, None]) @ (rows[kept] / norms[kept, None]).T
    best, nearest = cosine.max(dim=1)
    ratio = norms / norms[kept][nearest] if units.scales else torch.ones_like(best)
    ratio = torch.where(best >= threshold, ratio, torch.zeros_like(best))
    mixing = torch.zeros(len(units), len(kept), dtype=torch.double)
    mixing[torch.arange(len(units)), nearest] = ratio
    mixing[kept] = torch.eye(len(kept), dtype=torch.double)
    return FusionMap(kept, mixing, _zeros(units))


@combiners.register("fold")
def fold(units: Units, kept: Tensor) -> FusionMap:
    """Model folding: Ward clusters of (rows, columns); a cluster's rows are averaged, its columns added.

    Only the number of `kept` units counts. Source: Wang et al. 2025, section 3 (clustering as in its code).
    """
    labels = _ward(torch.cat((units.rows(), units.outgoing), dim=1), len(kept))
    return _membership(units, labels, torch.ones(len(units)).double())


@combiners.register("fold_directions")
def fold_directions(units: Units, kept: Tensor) -> FusionMap:
    """Folding for positively homogeneous units: clusters of directions, scales moved to the columns.

    A unit of row s·d counts as s times a unit of row d, so that parallel units of any length fold exactly.
    Ours: Ward clusters of unit rows; a cluster's direction is the mean, weighted by ‖row‖ · ‖column‖. The same as
    `fold` where an activation does not keep multiples.
    """
    if not units.scales:
        return fold(units, kept)
    rows = units.rows()
    norms = rows.norm(dim=1).clamp(min=1e-30)
    labels = _ward(rows / norms[:, None], len(kept))
    weight = (norms * units.outgoing.norm(dim=1)).clamp(min=1e-30)
    return _membership(units, labels, norms, weight)


@combiners.register("optimal_transport")
def optimal_transport(units: Units, kept: Tensor) -> FusionMap:
    """Rows of the kept places become averages of the units transported there, columns follow the same plan.

    Uniform mass, cost = L1 distance of unit rows and columns. Source: Intra-Fusion (Theus et al. 2024, section 3);
    rows are averaged here, where its code adds them up.
    """
    features = torch.cat((_unit(units.incoming), _unit(units.outgoing)), dim=1)
    plan = _transport(torch.cdist(features, features[kept], p=1).numpy())
    return FusionMap(kept, plan * len(units), _zeros(units), R=plan.T * len(kept))


@combiners.register("correlation", needs={"activations"})
def correlation(units: Units, kept: Tensor, *, alpha: float = 0.3) -> FusionMap:
    """ZipIt inside one network: merge the most correlated pair again and again; rows averaged, columns added.

    A merged pair's correlation with others is the smaller of the two, times `alpha`; activations are as the first
    consumer sees them. Only the number of `kept`
    units counts. Source: Stoica et al. 2024, section 4 and appendix.
    """
    cov = seen(units)[0].cov
    deviation = cov.diagonal().clamp(min=1e-30).sqrt()
    alike = (cov / torch.outer(deviation, deviation)).numpy().copy()
    np.fill_diagonal(alike, -np.inf)
    labels = np.arange(len(units))
    for _ in range(len(units) - len(kept)):
        one, other = sorted(divmod(int(alike.argmax()), len(units)))
        labels[labels == other] = one
        alike[one] = alpha * np.minimum(alike[one], alike[other])
        alike[one, one] = -np.inf
        alike[:, one] = alike[one]
        alike[other], alike[:, other] = -np.inf, -np.inf
    return _membership(units, np.unique(labels, return_inverse=True)[1], torch.ones(len(units)).double())


@combiners.register("least_squares_channel", needs={"activations"})
def least_squares_channel(units: Units, kept: Tensor, *, ridge: float = RIDGE) -> FusionMap:
    """Each unit's activation regressed on those of the kept ones, the same at every position."""
    readings = {a.layer: channel_map(a, kept, ridge) for a in seen(units)}
    return FusionMap(kept, *next(iter(readings.values())), readings)


@combiners.register("least_squares", needs={"patches"})
def least_squares(units: Units, kept: Tensor, *, ridge: float = RIDGE) -> FusionMap:
    """Each consumer regressed on the patches that it still sees, towards its outputs in the reference network.

    Consumers too large for that are served by the regression of activations.
    """
    plan = least_squares_channel(units, kept, ridge=ridge)
    return replace(plan, consumers={r.layer: refit(r, kept, ridge) for r in units.regressions})


def _zeros(units: Units) -> Tensor:
    return torch.zeros(len(units), dtype=torch.double)


def _selection(units: Units, kept: Tensor) -> Tensor:
    return torch.eye(len(units), dtype=torch.double)[:, kept]


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-30)


def _ward(features: Tensor, clusters: int) -> np.ndarray:
    """Cluster of each unit, exactly so many."""
    if clusters == len(features):
        return np.arange(clusters)
    return np.asarray(AgglomerativeClustering(clusters, linkage="ward").fit(features.numpy()).labels_)


def _membership(units: Units, labels: np.ndarray, scale: Tensor, weight: Tensor | None = None) -> FusionMap:
    """Clusters as a map: old unit u ≈ scale of u · its cluster; a cluster's row is the weighted mean of rows / scale.

    A cluster stands in the place of its heaviest member.
    """
    count = int(labels.max()) + 1
    member = torch.nn.functional.one_hot(torch.from_numpy(labels.astype(np.int64)), count).double()
    heavy = torch.ones(len(units)).double() if weight is None else weight
    places = (member * heavy[:, None]).argmax(dim=0)
    order = places.argsort()
    member, places = member[:, order], places[order]
    share = (member * heavy[:, None]) / (member * heavy[:, None]).sum(dim=0)
    return FusionMap(places, member * scale[:, None], _zeros(units), R=(share / scale[:, None]).T)


def _transport(cost: np.ndarray) -> Tensor:
    """The cheapest plan (sources, targets) between uniform distributions; it sums to 1."""
    sources, targets = cost.shape
    index = np.arange(sources * targets)
    rows = np.concatenate((index // targets, sources + index % targets))
    equal = coo_array((np.ones(2 * len(index)), (rows, np.concatenate((index, index)))))
    mass = np.concatenate((np.full(sources, 1 / sources), np.full(targets, 1 / targets)))
    found = linprog(cost.reshape(-1), A_eq=equal.tocsr(), b_eq=mass, method="highs")
    if found.x is None:
        raise FusionError(f"optimal transport found no plan: {found.message}")
    return torch.from_numpy(np.asarray(found.x)).view(sources, targets)
