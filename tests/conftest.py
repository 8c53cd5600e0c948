"""Shared by all tests: one thread, small data, no network, no user cache."""

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from support import TINY

from ticketlab.data.dataset import Dataset
from ticketlab.data.files import Places
from ticketlab.data.sources import load_dataset
from ticketlab.recipe_file import RecipeFile, parse_recipe, read_recipe, recipe_yaml
from ticketlab.runs.store import Level, RunStore


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start processes and watch the clock run one after the other, whatever runs beside them."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.xdist_group("processes"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """No data but what packages ship, and no download."""
    return Places(None, tmp_path / "cache", may_download=False)


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    """Write a recipe's text and return its path."""

    def write(text: str = TINY, name: str = "tiny.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def tiny(write_recipe: Callable[..., Path]) -> Callable[..., RecipeFile]:
    """The tiny recipe with `--set` overrides."""

    def read(*overrides: str) -> RecipeFile:
        return read_recipe(write_recipe(), overrides)

    return read


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunStore]:
    """A run directory from a recipe's overrides and records of levels, nothing trained."""
    base = {"model": {"name": "lenet_300_100"}, "data": {"name": "mnist"}, "train": {"steps": "10it"}}

    def made(name: str, levels: Iterable[Level], *overrides: str, **facts: Any) -> RunStore:
        store = RunStore(tmp_path / name)
        store.write_manifest({"data": "mnist", "method": "imp", "state": "finished", **facts})
        store.write_recipe(recipe_yaml(parse_recipe(tmp_path / "r.yaml", deepcopy(base), overrides, "r").recipe))
        for one in levels:
            store.write_level(one, {}, {})
        return store

    return made


@pytest.fixture(scope="session")
def real_places() -> Places:
    """Where real data may be: $TICKETLAB_DATA, the user's cache, system packages; nothing is downloaded."""
    found = Places.default()
    return Places(found.root, found.cache, may_download=False)


@pytest.fixture(scope="session")
def mnist(real_places: Places) -> Dataset:
    """Real MNIST, or a skip that says where to put it."""
    from ticketlab.errors import MissingData

    try:
        return load_dataset("mnist", real_places)
    except MissingData as error:
        pytest.skip(str(error))
