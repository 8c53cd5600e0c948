"""Flower's programs as child processes: started with what they need and no more, stopped by their own pid."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ticketlab.errors import FailedRun

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
}
"""No word to the makers of Flower and Ray, nothing installed while running, one thread each."""
TESTED = ((1, 41), (1, 43))
"""Versions of Flower from the first up to, not including, the second."""
GRACE = 12.0  # seconds to end in order


@dataclass(frozen=True)
class Child:
    """A running program and where it writes what it says."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raise FailedRun with its last line where it has ended."""
        if self.process.poll() is not None:
            status = self.process.returncode
            raise FailedRun(f"{self.name} ended with status {status}: {last_line(self.log)} ({self.log})")


def was_tested(version: str) -> bool:
    """Whether this version of Flower was tested: its transport changes between releases."""
    return TESTED[0] <= tuple(int(part) for part in version.split(".")[:2]) < TESTED[1]


def environment(home: Path) -> dict[str, str]:
    """What Flower's programs see: they start each other by name, and each keeps its state in a home of its own."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, **QUIET, "PATH": path, "FLWR_HOME": str(home)}


def start(
    name: str,
    command: Sequence[str],
    home: Path,
    log: Path,
    more: Mapping[str, str] | None = None,
    is_tied: bool = True,
) -> Child:
    """Start a program in a process group of its own, so that its children can be stopped with it.

    Args:
        more: Further environment variables.
        is_tied: Whether it is told to end where this process is killed (Linux); else it looks after that itself.
    """
    tie = [sys.executable, "-m", "ticketlab.federate.tied", str(os.getpid())] if is_tied else []
    with log.open("ab") as out:
        process = subprocess.Popen(
            [*tie, *command],
            env={**environment(home), **(more or {})},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Child(name, process, log)


def stop(children: Sequence[Child]) -> None:
    """End programs, all at once; what does not end in order is killed with its children."""
    for child in children:
        if child.process.poll() is None:
            child.process.terminate()
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(2 * GRACE)  # a supervisor gives its own child as long as GRACE
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.process.pid, signal.SIGKILL)
        child.process.wait()


def flwr(home: Path, *arguments: str) -> Any:
    """What a `flwr` command answers, from its JSON; raises FailedRun with its own words."""
    command = [str(Path(sys.executable).parent / "flwr"), *arguments, "--format", "json"]
    try:
        ran = subprocess.run(command, env=environment(home), capture_output=True, text=True, check=False, timeout=120)
    except subprocess.TimeoutExpired as error:
        raise FailedRun(
            f"flwr {arguments[0]}: no answer within {error.timeout:.0f} s; the machine is very busy"
        ) from error
    try:
        answer: Mapping[str, Any] = json.loads(ran.stdout)
    except ValueError:
        answer = {}
    if ran.returncode or not answer.get("success", False):
        said = answer.get("error-message") or (ran.stderr or ran.stdout).strip()
        raise FailedRun(f"flwr {arguments[0]}: {said}")
    return answer


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def is_free(host: str, port: int) -> bool:
    """Whether a program could listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError:
            return False
    return True


def wait_for(port: int, child: Child, seconds: float = 60.0, host: str = "127.0.0.1") -> None:
    """Return once a program listens; raises FailedRun where it ends or takes too long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        child.check()
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5):
            return
        time.sleep(0.1)
    raise FailedRun(f"{child.name} does not answer within {seconds:.0f} s ({child.log})")


def last_line(log: Path) -> str:
    """The last thing a program said."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return "nothing"
    return lines[-1] if lines else "nothing"
