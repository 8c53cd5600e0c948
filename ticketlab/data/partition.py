"""One data set split over clients: evenly, by Dirichlet, in shards, or by person; examples in, indices out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Dirichlet

from ticketlab.data.batches import Examples, permutation
from ticketlab.errors import DataError
from ticketlab.registry import Registry
from ticketlab.seeds import derive_seed

LEAST_ALPHA = 1e-3  # of smaller ones draws in float32 are no longer what they should be
DRAWS = 1000
"""Of a Dirichlet partition, until every client has enough examples."""

partitions: Registry[Callable[..., list[Tensor]]] = Registry("partition")
"""Name → (examples, clients, seed, *, options) → indices of each client's examples; none is used twice."""


@partitions.register("iid")
def iid(examples: Examples, clients: int, seed: int) -> list[Tensor]:
    """Equal shares of a random order; sizes differ by one at most."""
    _check(examples, clients, least=1)
    return list(permutation(len(examples), derive_seed(seed, "iid")).tensor_split(clients))


@partitions.register("dirichlet")
def dirichlet(
    examples: Examples, clients: int, seed: int, *, alpha: float = 0.5, least: int | None = None
) -> list[Tensor]:
    """Each class is divided over the clients by a draw from Dir(α): the smaller α, the more a client's classes differ.

    Drawn anew until every client has `least` examples, 20 or a tenth of an equal share where that is fewer; raises
    DataError when that does not come about. The axis is clients within each class (Hsu et al. 2019 draw classes
    within each client instead).
    """
    if least is None:
        least = max(1, min(20, len(examples) // (10 * max(clients, 1))))
    if alpha < LEAST_ALPHA:
        raise DataError(f"dirichlet: alpha must be {LEAST_ALPHA:g} or more (got {alpha:g})")
    _check(examples, clients, least)
    labels = examples.labels
    classes = [(labels == label).nonzero().flatten() for label in labels.unique()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "dirichlet"))
        for _ in range(DRAWS):
            shares = Dirichlet(torch.full((clients,), alpha)).sample((len(classes),))
            parts: list[list[Tensor]] = [[] for _ in range(clients)]
            for members, share in zip(classes, shares, strict=True):
                order = members[torch.randperm(len(members))]
                cuts = (share.cumsum(0)[:-1] * len(members)).round().long()
                for part, chosen in zip(parts, order.tensor_split(cuts), strict=True):
                    part.append(chosen)
            found = [torch.cat(part) for part in parts]
            if min(map(len, found)) >= least:
                return [part.sort().values for part in found]
    raise DataError(
        f"dirichlet: no draw in {DRAWS} gives each of {clients} clients {least} examples; raise alpha ({alpha:g}) or "
        "lower least"
    )


@partitions.register("shards")
def shards(examples: Examples, clients: int, seed: int, *, per_client: int = 2) -> list[Tensor]:
    """Examples sorted by class, cut into equal shards, so many dealt to each client (McMahan et al. 2017)."""
    count = clients * per_client
    _check(examples, count, least=1)
    pieces = examples.labels.argsort(stable=True).tensor_split(count)
    dealt = permutation(count, derive_seed(seed, "shards")).tensor_split(clients)
    return [torch.cat([pieces[int(index)] for index in mine]).sort().values for mine in dealt]


@partitions.register("group")
def group(examples: Examples, clients: int, seed: int) -> list[Tensor]:
    """One client for each person or hospital, in order of their numbers; nothing is drawn."""
    if examples.groups is None:
        raise DataError("group: the data set does not tell its examples apart by person or hospital; hapt and heart do")
    found = examples.groups.unique()
    if not 1 <= clients <= len(found):
        raise DataError(f"group: {clients} clients, but examples of {len(found)} groups")
    return [(examples.groups == each).nonzero().flatten() for each in found[:clients]]


def _check(examples: Examples, clients: int, least: int) -> None:
    if clients < 1 or len(examples) < clients * max(least, 1):
        raise DataError(f"{len(examples)} examples are too few for {clients} parts of {max(least, 1)} or more")
