"""Bodies of worker processes; in a module of their own, so that a spawned process can import them."""

import os
import signal
import time
from pathlib import Path

from ticketlab.errors import FailedRun


def count(replicate, should_stop):
    yield from ((replicate, number) for number in range(3))


def fail_second(replicate, should_stop):
    yield replicate
    if replicate == 2:
        raise FailedRun("replicate 2 cannot go on")
    while not should_stop():
        time.sleep(0.01)
    yield f"{replicate} saved"


def die_once(replicate, should_stop):
    marker = Path(os.environ["TICKETLAB_TEST_MARKER"])
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    yield "alive"


def die_always(replicate, should_stop):
    yield replicate
    os.kill(os.getpid(), signal.SIGKILL)


def never_ends(replicate, should_stop):
    while not should_stop():
        time.sleep(0.01)
    yield "saved"
