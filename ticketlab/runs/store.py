"""A run directory: layout, what is finished, locks, finding runs again.

    lenet_mnist-3f9a1c/
      recipe.yaml              resolved, as run
      manifest.json            versions, commit, seeds, data checksum, host, state
      replicate_1/rewind.safetensors
      replicate_1/level_3/     ticket, checkpoint while training, early_stop and final weights, metrics, events

A level is finished when its `metrics.json` exists: it is written last.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from ticketlab.errors import RunError
from ticketlab.runs.files import (
    damaged,
    read_json,
    read_tensors,
    remove_partial,
    write_bytes,
    write_json,
    write_tensors,
)
from ticketlab.runs.manifest import environment, now
from ticketlab.runs.ticket import Ticket, read_ticket, write_ticket

MANIFEST = "manifest.json"
"""Of each run: what is known about it as a whole."""
ORPHAN_PATIENCE = 10  # seconds for the workers of a killed run to notice and stop


@dataclass(frozen=True)
class Level:
    """A finished level. Accuracies are fractions of 1; test figures without `final_` are at the early-stop step."""

    replicate: int
    seed: int
    level: int
    density: float
    remaining: int
    total: int
    val_accuracy: float
    val_loss: float
    test_accuracy: float
    test_loss: float
    early_stop_step: int
    final_val_accuracy: float
    final_test_accuracy: float
    final_test_loss: float
    steps: int
    """Optimizer steps of this level."""
    seconds: float
    step_ms: float
    """Milliseconds per optimizer step, evaluation not counted."""
    layers: dict[str, float]
    """Density of each layer."""
    curve: tuple[dict[str, float], ...]
    """At each point of the evaluation grid: step, train_loss, val_loss, val_accuracy, lr, step_ms."""
    effective_density: float | None = None
    """Density of the weights on paths from input to output; None where it is unknown."""
    flops: float | None = None
    """Floating-point operations of this level's training as executed, evaluation not counted."""
    remaining_flops: float | None = None
    """The same without multiplications by removed weights."""
    looking_flops: float = 0.0
    """Of these, operations of looking at examples for the mask."""
    looking_seconds: float = 0.0
    """Of the level's seconds, those in which its mask was made; 0 where another process made it."""
    sign_flips: dict[str, dict[str, float]] | None = None
    """Of each layer, where they were counted: flips per remaining weight, and the share that never flipped."""

    def summary(self) -> dict[str, Any]:
        """The record without its curve."""
        return {name: value for name, value in asdict(replace(self, curve=())).items() if name != "curve"}


class RunStore:
    """One run directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """The run's name: recipe's stem and hash."""
        return self.path.name

    @property
    def witness(self) -> Path:
        """A file that stays as it is while the run goes on: who sees it as it is here sees the run."""
        return self.path / "recipe.yaml"

    def replicate_dir(self, replicate: int) -> Path:
        """Folder of one replicate; replicates count from 1."""
        return self.path / f"replicate_{replicate}"

    def level_dir(self, replicate: int, level: int) -> Path:
        """Folder of one level; level 0 is the dense network."""
        return self.replicate_dir(replicate) / f"level_{level}"

    # --- manifest and recipe

    def read_manifest(self) -> dict[str, Any]:
        """What is known about the run as a whole; empty before its first start."""
        path = self.path / MANIFEST
        if not path.exists():
            return {}
        manifest = read_json(path)
        if not manifest:
            raise damaged(path, "empty")
        return manifest

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Replace the manifest."""
        write_json(self.path / MANIFEST, manifest)

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Write the manifest of a run that starts, or goes on, now."""
        created = self.read_manifest().get("created", now())
        self.write_manifest({**facts, **environment(), "created": created, "updated": now(), "state": "running"})

    def write_recipe(self, text: str) -> None:
        """Keep the resolved recipe."""
        write_bytes(self.witness, text.encode())

    def set_state(self, state: str) -> None:
        """Record how the run stands, as far as a full or missing disk allows."""
        with suppress(OSError, RunError):
            known = self.read_manifest()
            if known.get("state") != state:
                self.write_manifest({**known, "state": state, "updated": now()})

    def write_log(self, text: str) -> Path:
        """Keep a traceback; returns where."""
        path = self.path / "error.log"
        with suppress(OSError):
            write_bytes(path, text.encode())
        return path

    def check(self) -> None:
        """Read every record and unfinished state; raises RunError for a damaged one before anything starts."""
        for replicate in self.replicates():
            for level in range(len(self.levels(replicate)) + 1):
                self.read_ticket(replicate, level)
                self.read_checkpoint(replicate, level)

    def discard(self) -> None:
        """Forget that the run was started; its lock then takes the folder away."""
        (self.path / MANIFEST).unlink(missing_ok=True)

    # --- results of other commands

    @property
    def kind(self) -> str:
        """What made the run: prune, fuse, study or federate."""
        return str(self.read_manifest().get("kind", "prune"))

    def has_result(self, name: str) -> bool:
        """Whether a result has been written."""
        return (self.path / name).exists()

    def read_result(self, name: str) -> dict[str, Any]:
        """A result: one JSON object."""
        return read_json(self.path / name)

    def write_result(self, name: str, result: Mapping[str, Any]) -> None:
        """Keep a result."""
        write_json(self.path / name, result)

    def results(self, pattern: str) -> list[str]:
        """Names of the results that fit a pattern, in order."""
        return sorted(str(path.relative_to(self.path)) for path in self.path.glob(pattern))

    def read_file(self, name: str) -> bytes:
        """A file, such as a ticket; raises RunError where it cannot be read."""
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise RunError(f"{self.path / name}: cannot be read ({error.strerror})") from error

    def write_file(self, name: str, content: bytes) -> None:
        """Keep a file, such as a figure."""
        write_bytes(self.path / name, content)

    def write_secret(self, name: str, content: bytes) -> None:
        """Keep a file that its owner alone may read, such as a private key."""
        write_bytes(self.path / name, content, mode=0o600)

    def forget(self, name: str) -> None:
        """Delete a result, if there is one."""
        (self.path / name).unlink(missing_ok=True)

    def read_state(self, number: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and facts after a round of a federation."""
        return read_tensors(self.path / f"round_{number}.safetensors")

    def write_state(self, number: int, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Keep the tensors after a round of a federation."""
        write_tensors(self.path / f"round_{number}.safetensors", state, facts)

    def write_scores(self, replicate: int, scores: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Keep the scores that a learned mask came from."""
        write_tensors(self.replicate_dir(replicate) / "scores.safetensors", scores, facts)

    def write_map(self, unit_map: Mapping[str, Tensor]) -> None:
        """Keep which old units each new one stands in for."""
        write_tensors(self.path / "map.safetensors", unit_map, {})

    def make_folder(self) -> Path:
        """The store's own folder, for another program's files; made where it is not there."""
        self.path.mkdir(parents=True, exist_ok=True)
        return self.path.resolve()

    def part(self, name: str) -> RunStore:
        """A store of its own inside this one."""
        return RunStore(self.path / name)

    def beside(self, name: str) -> RunStore:
        """A folder beside this one."""
        return RunStore(self.path.parent / name)

    def parts(self, folder: str) -> list[str]:
        """Names of the stores in a folder of this one."""
        return sorted(path.name for path in (self.path / folder).glob("*") if path.is_dir())

    # --- levels

    def has_level(self, replicate: int, level: int) -> bool:
        """Whether the level is finished."""
        return (self.level_dir(replicate, level) / "metrics.json").exists()

    def read_level(self, replicate: int, level: int) -> Level:
        """A finished level."""
        path = self.level_dir(replicate, level) / "metrics.json"
        content = read_json(path)
        known = {field.name: field.default is MISSING for field in fields(Level)}
        # records of before a field was added lack it
        if not set(content) <= set(known) or not {name for name in known if known[name]} <= set(content):
            raise damaged(path, "not the record of a level")
        return Level(**{**content, "curve": tuple(content["curve"])})

    def write_level(self, level: Level, early_stop: Mapping[str, Tensor], final: Mapping[str, Tensor]) -> None:
        """Finish a level: its weights, then its record, then the checkpoint is of no more use."""
        folder = self.level_dir(level.replicate, level.level)
        write_tensors(folder / "early_stop.safetensors", early_stop, {"step": level.early_stop_step})
        write_tensors(folder / "final.safetensors", final, {})
        write_json(folder / "metrics.json", asdict(level))
        (folder / "checkpoint.safetensors").unlink(missing_ok=True)

    def levels(self, replicate: int) -> list[Level]:
        """Finished levels of a replicate without a gap, from 0."""
        found: list[Level] = []
        while self.has_level(replicate, len(found)):
            found.append(self.read_level(replicate, len(found)))
        return found

    def replicates(self) -> list[int]:
        """Replicates that have a folder."""
        numbers = [p.name.removeprefix("replicate_") for p in self.path.glob("replicate_*") if p.is_dir()]
        return sorted(int(number) for number in numbers if number.isdecimal())

    def read_weights(self, replicate: int, level: int, which: str) -> dict[str, Tensor]:
        """Weights of a finished level, `early_stop` or `final`."""
        return read_tensors(self.level_dir(replicate, level) / f"{which}.safetensors")[0]

    # --- what goes from one level to the next

    def read_flips(self, replicate: int, level: int) -> dict[str, Tensor]:
        """Sign flips of a finished level as `counts/…` and `recent/…`, in the weights' shapes; empty if not counted."""
        path = self.level_dir(replicate, level) / "sign_flips.safetensors"
        return read_tensors(path)[0] if path.exists() else {}

    def write_flips(self, replicate: int, level: int, flips: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Keep how often each weight flipped."""
        write_tensors(self.level_dir(replicate, level) / "sign_flips.safetensors", flips, facts)

    def read_optimizer(self, replicate: int, level: int) -> dict[str, Tensor]:
        """What the optimizer remembered at the end of a level."""
        return read_tensors(self.level_dir(replicate, level) / "optimizer.safetensors")[0]

    def write_optimizer(self, replicate: int, level: int, state: Mapping[str, Tensor]) -> None:
        """Keep the optimizer's memory for the level that goes on from here."""
        write_tensors(self.level_dir(replicate, level) / "optimizer.safetensors", state, {})

    def drop_optimizer(self, replicate: int, level: int) -> None:
        """The next level is finished: the memory at the end of this one is of no more use."""
        (self.level_dir(replicate, level) / "optimizer.safetensors").unlink(missing_ok=True)

    # --- tickets, rewind point, checkpoint

    def read_ticket(self, replicate: int, level: int) -> Ticket | None:
        """The ticket of a level, if it has been drawn."""
        path = self.level_dir(replicate, level) / "ticket.safetensors"
        return read_ticket(path) if path.exists() else None

    def ticket_bytes(self, replicate: int, level: int) -> int:
        """Size of a ticket's file; 0 where there is none."""
        path = self.level_dir(replicate, level) / "ticket.safetensors"
        return path.stat().st_size if path.exists() else 0

    def write_ticket(self, replicate: int, level: int, ticket: Ticket) -> None:
        """Keep the ticket that a level trains."""
        write_ticket(self.level_dir(replicate, level) / "ticket.safetensors", ticket)

    def read_rewind(self, replicate: int) -> dict[str, Tensor]:
        """Dense weights at the rewind step."""
        return read_tensors(self.replicate_dir(replicate) / "rewind.safetensors")[0]

    def write_rewind(self, replicate: int, weights: Mapping[str, Tensor], step: int) -> None:
        """Keep the dense weights at the rewind step."""
        write_tensors(self.replicate_dir(replicate) / "rewind.safetensors", weights, {"step": step})

    def read_checkpoint(self, replicate: int, level: int) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """State inside an unfinished level, if there is any."""
        path = self.level_dir(replicate, level) / "checkpoint.safetensors"
        return read_tensors(path) if path.exists() else None

    def write_checkpoint(
        self, replicate: int, level: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
    ) -> None:
        """Keep the state inside a level."""
        write_tensors(self.level_dir(replicate, level) / "checkpoint.safetensors", tensors, facts)

    # --- locks

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run; raises RunError when another process does. A killed process holds nothing."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            held = FileLock(self.path / ".lock", timeout=0)
            held.acquire()
        except Timeout as error:
            raise RunError(f"{self.path}: another process is writing this run; wait for it or stop it") from error
        except OSError as error:
            raise RunError(
                f"{self.path}: cannot be written ({error.strerror}); name another folder with --runs"
            ) from error
        try:
            yield
        finally:
            if not (self.path / MANIFEST).exists():
                shutil.rmtree(self.path, ignore_errors=True)  # a run that never started leaves nothing
            held.release()

    @contextmanager
    def lock_replicate(self, replicate: int) -> Iterator[None]:
        """Hold one replicate; waits a little for the orphaned worker of a killed run to go away."""
        folder = self.replicate_dir(replicate)
        folder.mkdir(parents=True, exist_ok=True)
        held = FileLock(folder / ".lock", timeout=ORPHAN_PATIENCE)
        try:
            held.acquire()
        except Timeout as error:
            raise RunError(f"{folder}: another process is writing this replicate") from error
        try:
            remove_partial(folder)
            yield
        finally:
            held.release()

    def is_held(self) -> bool:
        """Whether a process is writing this run now."""
        held = FileLock(self.path / ".lock", timeout=0)
        try:
            with held:
                return False
        except Timeout:
            return True
        except OSError:
            return False  # who may not lock it is told so when something is to be written
