"""A network from its name, or from a function in a user's own file; its weights come later."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ticketlab.errors import PluginError
from ticketlab.models import models
from ticketlab.models.compact import rebuild
from ticketlab.recipe import ModelSection
from ticketlab.registry import load_file


def find_builder(model: ModelSection, folder: Path) -> Callable[..., Any]:
    """The function that builds a model, built in or in the user's own file, which stands in `folder`."""
    if model.file is None:
        return models.find(model.name)
    path = folder / model.file
    function = getattr(load_file(path), model.name, None)
    if not callable(function):
        raise PluginError(f"{path} has no function '{model.name}'")
    return function


def call_builder(
    builder: Callable[..., Any], options: Mapping[str, Any], shape: tuple[int, int, int], classes: int
) -> Any:
    """What a builder makes for inputs of a shape; its weights come from torch's global generator."""
    positional = (shape, classes) if _takes_shape(builder) else ()
    return builder(*positional, **options)


def _takes_shape(builder: Callable[..., Any]) -> bool:
    """Whether a builder asks for (input shape, classes); a user's own may do without."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    asked = inspect.signature(builder).parameters.values()
    return sum(p.kind in positional and p.default is inspect.Parameter.empty for p in asked) == 2


@contextmanager
def unfilled() -> Iterator[None]:
    """Networks that are built here have sizes and no numbers: no memory is taken and nothing is drawn."""
    with torch.device("meta"), _NothingDrawn():
        yield


class _NothingDrawn(TorchFunctionMode):
    """Initialisations return what they were given: drawing numbers that nobody keeps would load half of torch."""

    FILLS = frozenset({"normal_", "uniform_", "zero_", "fill_", "trunc_normal_"})

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if getattr(func, "__name__", "") in self.FILLS:
            return next(iter((*args, *named.values())))
        return func(*args, **named)


def network_from(state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> nn.Module:
    """The network that facts of a file describe, with its state, compact ones at their own size; for evaluation.

    Of a built-in model no weights are made but the state's own, whatever size the facts claim.
    """
    section = ModelSection.model_validate(facts["model"])
    builder = find_builder(section, Path.cwd())
    is_built_in = section.file is None and builder.__module__.startswith("ticketlab.")
    with unfilled() if is_built_in else nullcontext():
        model = call_builder(builder, section.options, tuple(facts["input_shape"]), facts["classes"])
    return rebuild(model, state).eval()
