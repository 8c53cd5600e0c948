"""ticketlab from Python: prune a recipe, load a run, look at its levels, masks and networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from multiprocessing import current_process
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ticketlab.cli.progress import follow
from ticketlab.data.files import Places
from ticketlab.errors import RunError, TicketlabError
from ticketlab.pruning.masks import Mask
from ticketlab.recipe import Recipe
from ticketlab.recipe_file import read_recipe
from ticketlab.report import run_levels, state, summarise
from ticketlab.runs.find import prune_first
from ticketlab.runs.store import RunStore
from ticketlab.words import counted
from ticketlab.workflows.run import Machine, prune_run
from ticketlab.workflows.source import from_run

if TYPE_CHECKING:
    from pandas import DataFrame


class Run:
    """A pruning run on disk, finished or not; read anew at every call."""

    def __init__(self, store: RunStore) -> None:
        self._store = store

    def __repr__(self) -> str:
        rows = self.summary()
        replicates = max((row["test_accuracy"]["n"] for row in rows), default=0)
        return f"<Run {self.path}: {self.state}, {counted(len(rows), 'level')} of {counted(replicates, 'replicate')}>"

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self._store.path

    @property
    def name(self) -> str:
        """The recipe's name and a hash of what decides the results."""
        return self._store.name

    @property
    def state(self) -> str:
        """Finished, running, interrupted or failed."""
        return state(self._store, self.manifest)

    @property
    def manifest(self) -> dict[str, Any]:
        """What made the run: versions, commit, machine, data, seeds."""
        return self._store.read_manifest()

    @property
    def recipe(self) -> Recipe:
        """The recipe as it was run, with every default."""
        return read_recipe(self._store.witness).recipe

    def levels(self) -> list[dict[str, Any]]:
        """One plain dict for each finished level of each replicate: density, accuracies, steps, times, layers, …"""
        return [level.summary() for level in run_levels(self._store)]

    def summary(self) -> list[dict[str, Any]]:
        """One plain dict for each level over its replicates; means with 95 % intervals and n."""
        return [asdict(row) for row in summarise(run_levels(self._store))]

    def frame(self) -> DataFrame:
        """`levels` as a pandas table with a column for each layer's density; raises RunError without pandas."""
        try:
            import pandas
        except ImportError as error:
            raise RunError("a frame needs pandas, which is not installed; levels() gives plain dicts") from error
        return pandas.json_normalize(self.levels())

    def curve(self, level: int, replicate: int = 1) -> list[dict[str, float]]:
        """A level's training, a dict for each evaluation: step, train_loss, val_loss, val_accuracy, lr, step_ms."""
        self._check(replicate, level)
        return list(self._store.read_level(replicate, level).curve)

    def mask(self, level: int, replicate: int = 1) -> Mask:
        """Of each pruned tensor, or group of channels, True where one remains; raises RunError without such a level."""
        self._check(replicate, level)
        ticket = self._store.read_ticket(replicate, level)
        if ticket is None:
            raise RunError(f"{self._store.level_dir(replicate, level)}: there is no ticket")
        return ticket.mask

    def weights(
        self, level: int, replicate: int = 1, at: Literal["early_stop", "final"] = "early_stop"
    ) -> dict[str, Tensor]:
        """The trained state of a level, at its early-stop step or at the end of its training."""
        self._check(replicate, level)
        return self._store.read_weights(replicate, level, at)

    def _check(self, replicate: int, level: int) -> None:
        """Raise RunError that says what there is where a level is not."""
        if not self._store.has_level(replicate, level):
            known = {found.level for found in self._store.levels(replicate)}
            there = f"levels {', '.join(map(str, sorted(known)))}" if known else "no finished level"
            raise RunError(f"{self.path}: no finished level {level} of replicate {replicate}; it has {there}")

    def network(self, level: int | None = None, replicate: int = 1, data: Path | None = None) -> nn.Module:
        """The trained network of a level at its early-stop step, in evaluation mode.

        Args:
            level: Left out, the deepest; of an early-bird run the sparsest ticket that the search chose.
            data: Folder with data sets, which tell the shapes of input and output; as `--data` of the commands.
        """
        return from_run(self._store, Places.default(data), level, replicate, ()).model


def load_run(run: str | Path | None = None, runs: str | Path = "runs") -> Run:
    """A run by its path, its name or a unique prefix of it; the newest if none is named.

    Raises RunError where there is no such run, or where another command than `ticketlab prune` made it.
    """
    store = prune_first(Path(runs), None if run is None else str(run))
    if store.kind != "prune":
        raise RunError(f"{store.path}: was made by ticketlab {store.kind}; load_run reads pruning runs")
    return Run(store)


def prune(
    recipe: str | Path,
    overrides: str | Sequence[str] = (),
    *,
    runs: str | Path = "runs",
    data: str | Path | None = None,
    workers: int = 1,
    threads: int = 1,
    device: str = "auto",
    quiet: bool = False,
) -> Run:
    """Find lottery tickets as `ticketlab prune RECIPE` does, with the same runs: a finished one is only read.

    Args:
        overrides: A change to the recipe as `--set` has it, such as `"pruning.levels=3"`, or several.
        runs: Folder of all runs.
        data: Folder with data sets, as `--data` of the commands.
        workers: Replicates at a time; more than one are processes of their own, so that a script needs
            `if __name__ == "__main__":` around the call.
        threads: Of each replicate; this process has its own number back afterwards.
        device: `auto`, `cpu`, `cuda` or `mps`.
        quiet: Without progress and notices.

    Raises TicketlabError where the command would end with an error.
    """
    if getattr(current_process(), "_inheriting", False):  # as the standard library tells it
        raise TicketlabError(
            "ticketlab.prune is called while one of its own processes starts: put the call of your script under "
            '`if __name__ == "__main__":`, or leave workers=1'
        )
    if min(workers, threads) < 1:
        raise TicketlabError(f"workers={workers}, threads={threads}: both are 1 or more")
    changes = [overrides] if isinstance(overrides, str) else list(overrides)
    machine = Machine(Path(runs), Places.default(None if data is None else Path(data)), device, workers, threads)
    before = torch.get_num_threads()
    try:
        store, _ = follow(prune_run(read_recipe(Path(recipe), changes), machine), quiet)
    finally:
        torch.set_num_threads(before)
    return Run(store)
