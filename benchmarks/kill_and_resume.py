"""Kill a run with SIGKILL at random moments, take it up each time, and compare with one that was left alone.

Run: python benchmarks/kill_and_resume.py [RECIPE] [--kills N] [--seed S] [--set A.B=C …]

Every other kill hits one worker process instead of the command itself. Tickets and weights must be equal bit for bit.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHORT = ["pruning.levels=9", "train.steps=2000it"]
"""Long enough for ten kills, and deep enough for levels with sparse layers."""


def command(recipe: str, runs: Path, settings: list[str]) -> list[str]:
    """The command line of one run; saves its state every half second, so that kills hit saves too."""
    sets = [part for setting in settings for part in ("--set", setting)]
    fixed = ["--runs", str(runs), "--checkpoint-seconds", "0.5", "--quiet"]
    return [sys.executable, "-m", "ticketlab", "prune", recipe, *fixed, *sets]


def results(runs: Path) -> dict[str, str]:
    """Digest of every ticket and every weight file, by its path in the run."""
    return {
        str(path.relative_to(runs)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(runs.rglob("*.safetensors"))
    }


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def leave_alone(started: list[str], runs: Path) -> tuple[float, float]:
    """Run to the end; seconds until training begins, and in all."""
    began = time.monotonic()
    process = subprocess.Popen(started, stdout=subprocess.DEVNULL)
    while process.poll() is None and not list(runs.glob("*/replicate_1/rewind.safetensors")):
        time.sleep(0.05)
    startup = time.monotonic() - began
    if process.wait():
        sys.exit("the uninterrupted run failed")
    return startup, time.monotonic() - began


def kill_once(started: list[str], number: int, wait: float) -> str:
    """Start the run, wait, kill it or one of its workers; says what happened."""
    process = subprocess.Popen(started, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    time.sleep(wait)
    workers = children(process.pid)
    if number % 2 and workers:
        subprocess.run(["kill", "-KILL", str(random.choice(workers))], check=False)
        time.sleep(1.0)
        kind = "worker, then run"
    else:
        kind = "run"
    ended = process.poll()
    process.send_signal(signal.SIGKILL)
    process.wait()
    return f"kill {number}: {kind} after {wait:.2f} s" + ("" if ended is None else f" (had ended with {ended})")


def main() -> None:
    """Exit status 1 when the results differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="recipes/lenet_mnist.yaml")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    settings = [*SHORT, *arguments.settings]
    with tempfile.TemporaryDirectory() as folder:
        left, killed = Path(folder) / "left", Path(folder) / "killed"
        startup, whole = leave_alone(command(arguments.recipe, left, settings), left)
        print(f"uninterrupted: {whole:.1f} s, of these {startup:.1f} s before training; {len(results(left))} files")
        for number in range(arguments.kills):
            share = random.uniform(0, 1) * (whole - startup) / arguments.kills
            print(kill_once(command(arguments.recipe, killed, settings), number, 0.7 * startup + share), flush=True)
        subprocess.run(command(arguments.recipe, killed, settings), check=True, stdout=subprocess.DEVNULL)
        one, other = results(left), results(killed)
        same = sum(one[name] == other.get(name) for name in one)
        print(f"after {arguments.kills} kills: {same} of {len(one)} files identical, {len(other) - len(one)} extra")
        sys.exit(0 if one == other else 1)


if __name__ == "__main__":
    main()
