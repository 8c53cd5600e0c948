"""Which run is meant: by path, by name, by a prefix of it, or the newest."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ticketlab.errors import RunError
from ticketlab.recipe import dotted, not_common
from ticketlab.registry import did_you_mean
from ticketlab.runs.store import MANIFEST, RunStore

TOLD = 3
"""Settings that are told of each run where a name fits several."""


def list_runs(root: Path) -> list[RunStore]:
    """All runs in a folder, the oldest first."""
    found = [p.parent for p in root.glob(f"*/{MANIFEST}")] if root.is_dir() else []
    return [RunStore(path) for path in sorted(found, key=lambda p: (p / MANIFEST).stat().st_mtime)]


def find_run(root: Path, name: str | None, kind: str | None = None) -> RunStore:
    """A run by path, name or unique prefix; the newest of a kind without a name.

    Runs that a command made to answer a question about another run count only where no other fits. Raises RunError that
    lists the choices.
    """
    if name is None:
        runs = [run for run in list_runs(root) if kind is None or is_kind(run, kind)]
        if not runs:
            raise RunError(f"no runs in {root}; make one with: ticketlab prune recipes/lenet_mnist.yaml")
        return (asked_for(runs) or runs)[-1]
    if not name.strip():
        raise RunError("the name of a run is empty; ticketlab runs ls names those that are there")
    if is_path_of_run(name):
        return RunStore(Path(name))
    runs = _known(root, kind)
    fitting = matching(runs, name)
    found = asked_for(fitting) or fitting
    if len(found) == 1:
        return found[0]
    if found:
        raise RunError("\n".join([f"'{name}' fits several runs, name one:", *_told_apart(found)]))
    raise _no_run(root, name, runs)


def _known(root: Path, kind: str | None) -> list[RunStore]:
    """Runs of a kind and damaged ones: who names a damaged run is told so, and gets no other in its place."""
    return [run for run in list_runs(root) if kind is None or is_kind(run, kind, if_damaged=True)]


def _told_apart(runs: Sequence[RunStore]) -> list[str]:
    """The name of each run with the settings that not all of them have."""
    settings = [_settings(run) for run in runs]
    fields = not_common(settings)
    lines = []
    for run, one in zip(runs, settings, strict=True):
        told = [f"{name}={one[name]}" for name in fields if name in one]
        more = f", and {len(told) - TOLD} more" if len(told) > TOLD else ""
        lines.append(f"{run.name}: {', '.join(told[:TOLD])}{more}" if told else run.name)
    return lines


def _settings(run: RunStore) -> dict[str, Any]:
    """What the recipe of a run says, by dotted names; nothing where it has none that can be read."""
    try:
        found = yaml.safe_load(run.witness.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return {name: value for name, value in dotted(found).items() if name != "claims"} if isinstance(found, dict) else {}


def prune_first(root: Path, name: str | None) -> RunStore:
    """A run by path, name or unique prefix, a pruning run before one that was made from it; as `find_run` else."""
    try:
        return find_run(root, name, "prune")
    except RunError:
        return find_run(root, name)


def is_path_of_run(name: str) -> bool:
    """Whether a name is the path of a run's folder."""
    return (Path(name) / MANIFEST).is_file()


def matching(runs: Sequence[RunStore], name: str) -> list[RunStore]:
    """The run of that name, else those of the recipe of that name, else those whose name begins so."""
    exact = [run for run in runs if run.name == name]
    of_recipe = [run for run in runs if run.name.startswith(f"{name}-")]
    return exact or of_recipe or [run for run in runs if run.name.startswith(name)]


def asked_for(runs: Sequence[RunStore]) -> list[RunStore]:
    """Those that were not made beside another run; a damaged one counts as asked for."""

    def is_derived(run: RunStore) -> bool:
        try:
            return bool(run.read_manifest().get("derived_from"))
        except RunError:
            return False

    return [run for run in runs if not is_derived(run)]


def find_runs(root: Path, name: str, kind: str) -> list[RunStore]:
    """All runs of a kind that a path or a name fits, as `matching` has it; raises RunError with the nearest name."""
    if is_path_of_run(name):
        run = RunStore(Path(name))
        if not is_kind(run, kind, if_damaged=True):
            raise RunError(f"{name} was made by ticketlab {run.kind}, not by ticketlab {kind}")
        return [run]
    known = _known(root, kind)
    found = matching(known, name)
    if not found:
        raise _no_run(root, name, known)
    return found


def _no_run(root: Path, name: str, known: Sequence[RunStore]) -> RunError:
    return RunError(f"no run '{name}' in {root}" + (did_you_mean(name, [run.name for run in known]) if known else ""))


def is_kind(run: RunStore, kind: str, if_damaged: bool = False) -> bool:
    """Whether a run is of a kind; a damaged one is of none, and hides no other, unless asked for by name."""
    try:
        return run.kind == kind
    except RunError:
        return if_damaged


def remove_run(run: RunStore) -> None:
    """Delete a run's folder; raises RunError while a process is writing it."""
    if run.is_held():
        raise RunError(f"{run.path}: another process is writing this run; stop it first")
    try:
        shutil.rmtree(run.path)
    except OSError as error:
        raise RunError(f"{error.filename or run.path}: cannot be deleted ({error.strerror})") from error
