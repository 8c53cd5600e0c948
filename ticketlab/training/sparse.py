"""A ticket gets cheaper as it shrinks: very sparse linear layers compute with their remaining weights only.

The result is the same sum in another order: removed weights add nothing to an output, and their gradients are
thrown away anyway. On a CPU this pays below about a quarter of the weights; elsewhere layers stay dense.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ticketlab.pruning.masks import Mask

PAYS_BELOW = 0.25
"""Density below which the sparse product is faster (benchmarks/prune_speed.py)."""
PAYS_FROM = 20_000
"""Weights of a layer from which the saving exceeds the overhead."""


class _SparseProduct(torch.autograd.Function):
    """features (n, inputs), values (remaining,) → (n, units), with gradients of remaining weights only."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, values: Tensor, layer: SparseLinear) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(features, values)
        return _bags(features.t().contiguous(), layer.columns, layer.row_starts, values).t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        features, values = ctx.saved_tensors
        layer: SparseLinear = ctx.layer
        by_unit = gradient.t().contiguous()
        to_values = torch.sparse.sampled_addmm(layer.pattern, by_unit, features, beta=0.0).values()
        to_features = None
        if ctx.needs_input_grad[0]:
            transposed = values.index_select(0, layer.by_column)
            to_features = _bags(by_unit, layer.rows, layer.column_starts, transposed).t()
        return to_features, to_values, None


def _bags(table: Tensor, chosen: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of rows of a table: a sparse matrix times a dense one."""
    return functional.embedding_bag(chosen, table, starts, mode="sum", per_sample_weights=weights)


class SparseLinear(nn.Module):
    """A linear layer that stores the remaining weights alone, row by row.

    `values` is (remaining,); the mask (units, inputs) is fixed.
    """

    def __init__(self, layer: nn.Linear, mask: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(layer.weight.detach()[mask])
        self.bias = layer.bias
        rows, self.columns = mask.nonzero(as_tuple=True)
        self.row_starts = _starts(mask.sum(dim=1))
        self.by_column = (self.columns * len(mask) + rows).argsort()
        self.rows = rows[self.by_column]
        self.column_starts = _starts(mask.sum(dim=0))
        with warnings.catch_warnings():  # torch calls its CSR support beta once per process
            warnings.simplefilter("ignore")
            ends = torch.cat([self.row_starts, torch.tensor([len(rows)])])
            blank = torch.zeros(len(rows), dtype=layer.weight.dtype)
            self.pattern = torch.sparse_csr_tensor(ends, self.columns, blank, mask.shape)

    def forward(self, features: Tensor) -> Tensor:
        """(n, inputs) → (n, units)."""
        # under autocast the layer before gives bfloat16
        product: Tensor = _SparseProduct.apply(features.to(self.values.dtype), self.values, self)
        return product if self.bias is None else product + self.bias


def _starts(counts: Tensor) -> Tensor:
    """Where each run of `counts` entries begins."""
    return counts.cumsum(0) - counts


def sparse_layers(model: nn.Module, mask: Mask, device: torch.device) -> Mask:
    """The part of a mask whose layers will compute with their remaining weights only."""
    return {name: kept for name, kept in mask.items() if device.type == "cpu" and _pays(model, name, kept)}


def _pays(model: nn.Module, name: str, mask: Tensor) -> bool:
    layer = model.get_submodule(name.removesuffix(".weight"))
    # only plain layers: a subclass may compute something else
    plain = type(layer) is nn.Linear
    return plain and mask.numel() >= PAYS_FROM and int(mask.sum()) <= PAYS_BELOW * mask.numel()
