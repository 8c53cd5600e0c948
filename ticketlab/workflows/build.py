"""A recipe's network: its builder, initial weights from a seed, and whether it maps this data to its classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ticketlab.data.dataset import Dataset
from ticketlab.errors import PluginError
from ticketlab.models.build import call_builder, find_builder
from ticketlab.pruning.masks import full_mask
from ticketlab.recipe_file import RecipeFile
from ticketlab.registry import where_it_failed


def build_model(file: RecipeFile, dataset: Dataset, seed: int) -> nn.Module:
    """The recipe's network with initial weights drawn from `seed`; the caller's randomness is left alone."""
    builder = find_builder(file.recipe.model, file.path.parent)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = call_builder(builder, file.recipe.model.options, dataset.input_shape, dataset.classes)
        except Exception as error:
            raise PluginError(_blame(file, error, "cannot be built", dataset)) from error
    if not isinstance(model, nn.Module):
        raise PluginError(f"'{file.recipe.model.name}' returned {type(model).__name__}, not a torch nn.Module")
    return model


def check_model(model: nn.Module, dataset: Dataset) -> dict[str, tuple[int, ...]]:
    """Shapes of the prunable weights of a model that really maps this data to its classes."""
    model.eval()
    with torch.inference_mode():
        try:
            logits = model(torch.zeros(2, *dataset.input_shape))
        except Exception as error:
            raise PluginError(f"the model cannot read {_shape(dataset)} images: {error}") from error
    if not isinstance(logits, Tensor) or logits.shape != (2, dataset.classes):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise PluginError(f"the model should answer 2 images with logits (2, {dataset.classes}), gave {found}")
    mask = full_mask(model)
    if not mask:
        raise PluginError("the model has no linear or convolution layer to prune")
    return {name: tuple(kept.shape) for name, kept in mask.items()}


def _blame(file: RecipeFile, error: Exception, what: str, dataset: Dataset) -> str:
    own = file.recipe.model.file
    where = f"{where_it_failed(error, file.path.parent / own)}: " if own else ""
    name = file.recipe.model.name
    return f"{where}'{name}' {what} for {_shape(dataset)} images: {type(error).__name__}: {error}"


def _shape(dataset: Dataset) -> str:
    return "×".join(str(size) for size in dataset.input_shape)
