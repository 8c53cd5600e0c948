"""What every format answers: write a network, quantise it, run its file; which packages it needs for that."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ticketlab.errors import FormatError, TicketlabError
from ticketlab.models.build import network_from
from ticketlab.models.compact import LINEAR, rebuild
from ticketlab.pruning.masks import Mask

LARGEST = 1 << 14
"""Pixels that an image may be high or wide."""
Images = NDArray[np.float32]
"""Normalised images, (n, channels, height, width)."""
Precision = Literal["float32", "float16", "int8", "int8_dynamic"]
"""Of weights; int8 stands for static quantisation where the format also computes in int8."""


@dataclass(frozen=True)
class Network:
    """A trained network as it is to be shipped."""

    name: str
    model: nn.Module
    """In evaluation mode, every tensor in memory of its own."""
    mask: Mask
    """Which weights remain; empty where the network is dense."""
    facts: dict[str, Any]
    """What rebuilds it and what a program must know to use it: input_shape, mean, std, labels, …"""

    def zeros(self, count: int = 1) -> Tensor:
        """An example input that gives nothing of the data away, (count, channels, height, width)."""
        return torch.zeros(count, *self.facts["input_shape"])

    def has_convolutions(self) -> bool:
        """Whether any layer is a convolution."""
        return any(isinstance(layer, LINEAR) and not isinstance(layer, nn.Linear) for layer in self.model.modules())


@dataclass(frozen=True)
class Loaded:
    """A file that was read: how to run it, and what it says about itself."""

    run: Callable[[Images], Images]
    """Images → logits (n, classes), in the file's own runtime on one thread."""
    facts: dict[str, Any]


@dataclass(frozen=True)
class Format:
    """One format. `write` and `quantise` take how many images at a time the program is for, where that is fixed."""

    suffix: str
    write: Callable[[Network, int], bytes]
    read: Callable[[bytes, nn.Module | None], Loaded]
    """Bytes, and a network of the same kind to put weights into; needed only for a user's own model."""
    precisions: tuple[Precision, ...] = ("float32",)
    quantise: Callable[[Network, Precision, Tensor, int], bytes] | None = None
    """Network, precision, calibration images (normalised), images at a time."""
    refuses: Callable[[Network, Precision], str | None] | None = None
    """Why a network cannot, or should not, be written in a precision."""
    needs: tuple[str, ...] = ()
    """Packages that writing imports."""
    runs_on: tuple[str, ...] = ()
    """Packages that running imports."""
    install: str = ""
    tolerance: float = 1e-4
    """Largest difference of a logit from torch's that float32 may make."""
    alone: str = ""
    """A script that runs a file with nothing but what a device needs, so that its memory can be measured; its arguments
    are the path and the shape of the images as JSON."""

    def check(self, name: str, packages: tuple[str, ...] | None = None) -> None:
        """Raise FormatError that says what to install where a package is missing."""
        missing = [package for package in (packages or self.needs) if importlib.util.find_spec(package) is None]
        if missing:
            raise FormatError(f"{name} needs {' and '.join(missing)}, which this Python lacks: {self.install}")

    def open(self, content: bytes, like: nn.Module | None = None) -> Loaded:
        """The network in a file, ready to run; raises FormatError for bytes that are no such file."""
        try:
            with quiet():
                loaded = self.read(content, like)
        except (TicketlabError, OSError, MemoryError):
            raise
        except Exception as error:
            raise FormatError(f"cannot be read as {self.suffix}, damaged or cut off? ({first_line(error)})") from error
        check_facts(loaded.facts)
        return loaded

    def make(self, network: Network, precision: Precision, images: Tensor, batch: int = 1) -> bytes:
        """The file of a network; raises FormatError where the exporter cannot follow it."""
        if precision not in self.precisions:
            raise FormatError(f"{self.suffix} has no {spoken(precision)}; it has {self.offers()}")
        try:
            with quiet():
                if precision == "float32":
                    return self.write(network, batch)
                assert self.quantise is not None  # a format with more precisions than one has it
                return self.quantise(network, precision, images, batch)
        except (TicketlabError, OSError, MemoryError):
            raise
        except Exception as error:
            raise FormatError(f"{network.name} cannot be written as {self.suffix}: {first_line(error)}") from error

    def offers(self) -> str:
        """Its precisions, as people say them."""
        return ", ".join(map(spoken, self.precisions))


def spoken(precision: str) -> str:
    """`int8_dynamic` as people say it."""
    return precision.replace("_", " ")


def first_line(error: Exception) -> str:
    """What an error says first, without the colours of a terminal."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines()]
    return f"{type(error).__name__}: {next((line for line in lines if line), 'no more is said')}"


def check_facts(facts: Any) -> None:
    """Raise FormatError where a file does not say what its inputs and its answers are."""

    def numbers(key: str, kind: type | tuple[type, ...]) -> list[Any]:
        found = facts.get(key) if isinstance(facts, dict) else None
        return found if isinstance(found, list) and all(type(value) in (kind, int) for value in found) else []

    shape, mean, std = numbers("input_shape", int), numbers("mean", float), numbers("std", float)
    labels = facts.get("labels") if isinstance(facts, dict) else None
    fits = (
        isinstance(labels, list)
        and len(shape) == 3
        and all(0 < size <= LARGEST for size in shape)
        and len(mean) == len(std) == shape[0]
        and all(value > 0 for value in std)
        and all(isinstance(label, str) for label in labels)
        and len(labels) == facts.get("classes")
        and all(isinstance(facts.get(key), str) for key in ("name", "data"))
    )
    if not fits:
        raise FormatError("does not say what its inputs and its answers are, or contradicts itself")


def torch_runner(model: nn.Module) -> Callable[[Images], Images]:
    """Images → logits, by torch itself."""

    def run(images: Images) -> Images:
        with torch.inference_mode():
            return model(torch.from_numpy(images)).numpy()

    return run


def rebuilt(state: Mapping[str, Tensor], facts: dict[str, Any], like: nn.Module | None) -> Loaded:
    """A network from its weights, run by torch; raises FormatError where a user's own code would be needed."""
    own = facts["model"].get("file")
    if like is None and own:
        raise FormatError(
            f"holds the weights of '{facts['model']['name']}' from {own}, and no code; export it as onnx or pt2 to run "
            "it"
        )
    model = rebuild(deepcopy(like), state).eval() if like is not None else network_from(state, facts)
    return Loaded(torch_runner(model), facts)


def batches(images: Tensor, batch: int) -> list[Tensor]:
    """Calibration images, so many at a time; the first ones again where there are too few for one batch."""
    count = -(-max(batch - len(images), 0) // max(len(images), 1)) + 1
    enough = images.repeat(count, *[1] * (images.dim() - 1))
    return [enough[start : start + batch] for start in range(0, len(enough) - batch + 1, batch)]


def one_at_a_time(run: Callable[[Images], Images], batch: int = 1) -> Callable[[Images], Images]:
    """A program for a fixed number of images, run on any number."""

    def many(images: Images) -> Images:
        if len(images) == batch:
            return run(images)
        padded = np.concatenate([images, np.zeros((-len(images) % batch, *images.shape[1:]), images.dtype)])
        parts = [run(np.ascontiguousarray(padded[start : start + batch])) for start in range(0, len(padded), batch)]
        return np.concatenate(parts)[: len(images)]

    return many


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing on stdout or stderr, from Python or from below it: exporters tell of themselves at length."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    silent = io.StringIO()
    try:
        with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)
        logging.disable(before)
