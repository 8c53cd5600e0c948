"""Jobs as tasks of Ray, on one machine or on many that share the folder of runs; the same bodies, the same results."""

from __future__ import annotations

import importlib.util
import os
import platform
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ticketlab.errors import FailedRun, Interrupted, Stop, TicketlabError
from ticketlab.runs.files import scratch
from ticketlab.workflows.workers import PATIENCE, Body, died

LOOK = 0.2
"""Seconds between looks for messages and for a wish to stop."""
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Nothing is reported to anybody; workers are as urgent as those of the local engine; GPUs are left as they are."""
ANSWER_SECONDS = 5
"""A cluster's head that has not answered by then is not there."""
STORE = 80_000_000
"""Bytes of a local cluster's object store: messages are small, and Ray takes no less."""


@dataclass
class Task:
    """A job at work on the cluster."""

    job: int
    messages: Any
    """Ray's generator of references to what the body yields."""


def check_ray(address: str | None, device: str) -> None:
    """Raise TicketlabError where Ray is not installed, or is asked for what it is not used for here."""
    if importlib.util.find_spec("ray") is None:
        raise TicketlabError(
            "--engine ray needs Ray, which is not installed; install it with: python -m pip install 'ticketlab[ray]'"
        )
    if address is not None and "://" in address:
        raise TicketlabError(
            f"--address {address}: run the command on a machine of the cluster and name its head as HOST:6379, or auto"
        )
    if device not in ("auto", "cpu"):
        raise TicketlabError(f"--device {device}: on Ray, training is on CPUs; leave --device out")
    if address not in (None, "auto"):
        _check_answers(address)


def _check_answers(address: str) -> None:
    """Ray itself tries for minutes, and listens to no signal meanwhile."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise TicketlabError(f"--address {address}: name the cluster's head as HOST:6379, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise TicketlabError(f"--address {address}: no Ray cluster answers there ({error})") from error


def run_on_ray(
    body: Body,
    jobs: Mapping[int, str],
    workers: int,
    should_stop: Stop,
    address: str | None,
    witness: Path | None,
) -> Iterator[object]:
    """Run each job as a task of one CPU, at most `workers` at a time, and yield what they yield as it comes.

    As with local processes: an error in one is raised here after the others have saved their state; a job whose worker
    or machine died is started again. Raises Interrupted when asked to stop.
    """
    with _cluster(address, workers) as ray:
        flag = _flag_here(ray)
        remote = ray.remote(num_cpus=1, max_retries=0, max_calls=1, num_returns="streaming")(_work)
        seen = (witness.resolve(), witness.read_bytes()) if witness else None
        waiting, deaths, running = list(jobs), dict.fromkeys(jobs, 0), list[Task]()
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    job = waiting.pop(0)
                    running.append(Task(job, remote.remote(body, job, flag, str(Path.cwd()), seen)))
                ready = _wait(ray, running)
                if should_stop():
                    raise Interrupted("stopped; the state is saved, and the same command goes on")
                for task in ready:
                    try:
                        yield _message(ray, task)
                    except StopIteration:
                        running.remove(task)
                    except ray.exceptions.RayError as error:
                        running.remove(task)
                        deaths[task.job] += 1
                        yield died(jobs[task.job], f"died ({_reason(error)})", deaths[task.job])
                        waiting.insert(0, task.job)
        finally:
            _stop(ray, flag, running)


@contextmanager
def _cluster(address: str | None, workers: int) -> Iterator[Any]:
    """Ray, connected: to a cluster that is there, or to one on this machine that ends with this command."""
    os.environ |= QUIET
    if address is None:
        # Ray listens to every network, so it asks who calls
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    import ray

    with scratch() as folder:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "CRITICAL"}
        if address is None:
            options |= {
                "address": "local", "num_cpus": workers, "num_gpus": 0, "include_dashboard": False,
                "object_store_memory": STORE, "_temp_dir": str(folder), "_node_ip_address": "127.0.0.1",
            }  # fmt: skip
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(**({"address": address} | options))
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise TicketlabError(f"--address {address}: no Ray cluster answers ({_reason(error)})") from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_sigterm)  # Ray has taken it for itself
        try:
            resources: dict[str, float] = ray.cluster_resources()
            if resources.get("CPU", 0) < 1:
                raise TicketlabError("the Ray cluster has no CPU to give; start its nodes with --num-cpus 1 or more")
            yield ray
        finally:
            ray.shutdown()


def _wait(ray: Any, running: list[Task]) -> list[Task]:
    """Tasks that have something to tell, or have ended."""
    ready, _ = ray.wait([task.messages for task in running], num_returns=len(running), timeout=LOOK, fetch_local=False)
    return [task for task in running if any(task.messages is messages for messages in ready)]


def _flag_here(ray: Any) -> Any:
    """The flag, on the machine of the command: on another one it could die with its machine, and stop every task."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(_Flag).remote()


def _message(ray: Any, task: Task) -> object:
    """What a task has to tell; its error is raised here, Ray's where it died, StopIteration at its end."""
    message = ray.get(next(task.messages))
    if isinstance(message, Interrupted):
        # nobody asked: a worker whose machine died saves its state for the one that takes over
        raise ray.exceptions.RayError("its machine lost the cluster")
    if isinstance(message, TicketlabError):
        raise message
    return message


def _stop(ray: Any, flag: Any, running: list[Task]) -> None:
    """Ask tasks to save their state and end; Ray kills those that do not in time, as the command leaves it."""
    if not running:
        return
    flag.set.remote()
    deadline = time.monotonic() + PATIENCE
    while running and time.monotonic() < deadline:
        for task in _wait(ray, running):
            try:
                next(task.messages)  # there is nobody left to tell
            except (StopIteration, ray.exceptions.RayError):
                running.remove(task)


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


# --- on the cluster


class _Flag:
    """Whether the command was asked to stop; an actor that everybody waits for."""

    def __init__(self) -> None:
        import asyncio

        self._is_set = asyncio.Event()

    async def set(self) -> None:
        """Ask to stop."""
        self._is_set.set()

    async def wait(self) -> bool:
        """End when a stop is asked for."""
        return await self._is_set.wait()


def _work(body: Body, job: int, flag: Any, folder: str, witness: tuple[Path, bytes] | None) -> Iterator[object]:
    """One job in a worker; its error is told like a message."""
    stop, done = threading.Event(), threading.Event()
    listener = threading.Thread(target=_listen, args=(flag, stop, done), daemon=True)
    try:
        _check_sight(folder, witness)
        os.chdir(folder)  # relative names mean what they mean to the command
        listener.start()
        yield from body(job, stop.is_set)
    except TicketlabError as error:
        yield error
    finally:
        done.set()


def _listen(flag: Any, stop: threading.Event, done: threading.Event) -> None:
    """Hear of a stop: one call for the whole job. An actor that is gone means that the command is."""
    import ray

    asked = flag.wait.remote()
    while not done.is_set():
        if ray.wait([asked], timeout=LOOK)[0]:
            stop.set()
            return


def _check_sight(folder: str, witness: tuple[Path, bytes] | None) -> None:
    """Raise FailedRun on a machine that does not see the command's folders."""
    sees = Path(folder).is_dir()
    if sees and witness is not None:
        path, content = witness
        sees = path.is_file() and path.read_bytes() == content
    if not sees:
        what = witness[0].parent if witness else folder
        raise FailedRun(
            f"{platform.node()}, a machine of the Ray cluster, does not see {what} as it is where the command runs; "
            "runs, recipe and data need a folder that all machines share, under the same name"
        )
