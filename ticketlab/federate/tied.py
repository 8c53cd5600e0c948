"""Become a program that is told to end where the one that started it is killed (Linux; elsewhere it lives on).

python -m ticketlab.federate.tied PARENT PROGRAM [ARGUMENT…]
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie this process to its parent, then run the program in its place."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("the program that started this one has ended")
    os.execvp(program[0], program)


if __name__ == "__main__":
    main()
