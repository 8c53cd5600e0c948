"""Replicates as parallel processes; one that dies is started again and resumes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

from ticketlab.errors import FailedRun, Interrupted, Stop, TicketlabError

RESTARTS = 3
"""Times that a job is started again after its process died, before the run fails."""
PATIENCE = 30.0  # seconds for workers to save their state when the run is interrupted

Body = Callable[[int, Stop], Iterator[object]]
"""(number of the job, asked to stop?) → what the parent is to hear; must be picklable."""


@dataclass
class Worker:
    """A process at work on one job."""

    process: BaseProcess
    messages: Connection
    job: int
    is_done: bool = False


@dataclass(frozen=True)
class Died:
    """A process ended without a word; its job is started again."""

    name: str
    how: str


@dataclass(frozen=True)
class Engine:
    """What runs jobs: processes of this command, or Ray."""

    name: Literal["processes", "ray"] = "processes"
    address: str | None = None
    """Of the Ray cluster; left out, one is started on this machine and ends with the command."""


def run_jobs(
    body: Body,
    jobs: Mapping[int, str],
    workers: int,
    should_stop: Stop,
    engine: Engine = Engine(),
    witness: Path | None = None,
) -> Iterator[object]:
    """Run `body` for each job and yield what they yield: here one after the other, in processes, or on Ray.

    Args:
        jobs: Number of each job → what it is called, such as `replicate 1`.
        witness: A file that every machine must see as it is here.
    """
    if engine.name == "ray":
        from ticketlab.workflows.ray_engine import run_on_ray

        yield from run_on_ray(body, jobs, workers, should_stop, engine.address, witness)
    elif workers == 1:
        for job in jobs:
            yield from body(job, should_stop)
    else:
        yield from run_processes(body, jobs, workers, should_stop)


def run_processes(body: Body, jobs: Mapping[int, str], workers: int, should_stop: Stop) -> Iterator[object]:
    """Run each job in a process, `workers` at a time, and yield what they yield.

    An error in one is raised here after the others have saved their state. Raises Interrupted when asked to
    stop, FailedRun when a process dies again and again.
    """
    waiting, deaths = list(jobs), dict.fromkeys(jobs, 0)
    running: list[Worker] = []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(_start(body, waiting.pop(0)))
            wait([worker.messages for worker in running], timeout=0.2)
            if should_stop():
                raise Interrupted("stopped; the state is saved, and the same command goes on")
            for worker in running:
                yield from _messages(worker)
            for worker in [worker for worker in running if worker.is_done]:
                running.remove(worker)
                if worker.process.exitcode != 0:
                    deaths[worker.job] += 1
                    yield _died(worker, jobs[worker.job], deaths[worker.job])
                    waiting.insert(0, worker.job)
    finally:
        _stop(running)


def _start(body: Body, job: int) -> Worker:
    """A new process; `spawn`, because a forked copy of a process with threads is not safe."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(body, job, sender), daemon=True)
    with _deaf_to_ctrl_c():
        process.start()
    sender.close()
    return Worker(process, receiver, job)


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """What is started here ignores the terminal's Ctrl-C from its first moment; the parent decides."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _messages(worker: Worker) -> Iterator[object]:
    """What a worker sent since the last look; its error is raised here; the end of the pipe is its end."""
    try:
        while worker.messages.poll():
            message = worker.messages.recv()
            if isinstance(message, TicketlabError):
                raise message
            yield message
    except (EOFError, OSError):
        worker.process.join()
        worker.messages.close()
        worker.is_done = True


def _died(worker: Worker, name: str, times: int) -> Died:
    code = worker.process.exitcode or 0
    return died(name, f"was killed by signal {-code}" if code < 0 else f"ended with status {code}", times)


def died(name: str, how: str, times: int) -> Died:
    """What to tell of a death; raises FailedRun at one too many."""
    if times > RESTARTS:
        raise FailedRun(f"the process of {name} {how}, {times} times; giving up")
    return Died(name, how)


def _stop(running: list[Worker]) -> None:
    """Ask workers to save their state and end; kill those that do not in time."""
    for worker in running:
        worker.process.terminate()
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and not all(worker.is_done for worker in running):
        wait([worker.messages for worker in running if not worker.is_done], timeout=0.2)
        for worker in running:
            try:
                # emptied, so that no worker waits for a reader; there is nobody left to tell
                list(_messages(worker) if not worker.is_done else ())
            except TicketlabError:
                continue
    for worker in running:
        worker.process.kill()
        worker.process.join()


def _work(body: Body, job: int, messages: Connection) -> None:
    """Body of a worker process. SIGTERM means: save the state and end."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        for message in body(job, stop.is_set):
            messages.send(message)
    except TicketlabError as error:
        messages.send(error)
    except BrokenPipeError:
        return  # the parent is gone, and nobody is left to tell


def _end_with_parent(parent: int) -> None:
    """End this process when its parent is gone: an orphan must not write a run that is taken up again."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
