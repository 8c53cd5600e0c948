"""End with the program that started this one, also where that is killed (Linux; elsewhere it lives on).

python -m ticketlab.federate.tied PARENT PROGRAM [ARGUMENT…]
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
APPS = ("flwr-serverapp", "flwr-clientapp")
"""Programs in which Flower runs an app; in simulations it runs in a process that others share."""


def tie(end: signal.Signals) -> None:
    """Have this process sent a signal when the one that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, end)


def tie_app() -> None:
    """End with Flower: its own way asks the app to end in order, which can wait for ever for a lock it holds itself."""
    if Path(sys.argv[0]).name in APPS:
        tie(signal.SIGKILL)


def main() -> None:
    """Tie this process to its parent, then run the program in its place."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    tie(signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("the program that started this one has ended")
    os.execvp(program[0], program)


if __name__ == "__main__":
    main()
