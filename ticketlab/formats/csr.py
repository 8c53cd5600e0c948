"""Sparse matrices by rows (scipy's CSR): the one way in which a mask by itself saves time on a CPU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.sparse import csr_array
from torch import nn

from ticketlab.errors import FormatError
from ticketlab.formats.format import Images, Network


def csr_runner(network: Network) -> Callable[[Images], Images]:
    """Images → logits with the remaining weights alone.

    Raises FormatError for a network that is not a chain of linear layers and ReLUs: there is no such product for
    convolutions.
    """
    steps: list[Callable[[Images], Images]] = []
    for layer in network.model.children() if isinstance(network.model, nn.Sequential) else ():
        if isinstance(layer, nn.Linear):
            steps.append(_product(layer))
        elif isinstance(layer, nn.ReLU):
            steps.append(lambda values: np.maximum(values, 0))
        elif not isinstance(layer, nn.Flatten | nn.Identity | nn.Dropout):
            raise FormatError(f"{type(layer).__name__} has no product with a sparse matrix")
    if not steps:
        raise FormatError("only a chain of linear layers and ReLUs has products with sparse matrices")

    def run(images: Images) -> Images:
        values = images.reshape(len(images), -1).T
        for step in steps:
            values = step(values)
        return np.ascontiguousarray(values.T)

    return run


def _product(layer: nn.Linear) -> Callable[[Images], Images]:
    matrix = csr_array(layer.weight.detach().numpy())
    bias = layer.bias.detach().numpy()[:, None] if layer.bias is not None else np.float32(0)

    def product(values: Images) -> Images:
        return matrix @ values + bias

    return product
