"""Whether a device is ready to join: each thing that goes wrong on small boards, and what to do about it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from ticketlab.data.files import Places
from ticketlab.federate.address import read_address
from ticketlab.federate.join_file import JoinFile
from ticketlab.federate.probe import Seen, look
from ticketlab.federate.processes import was_tested
from ticketlab.workflows.join import read_join, readable_by_others

CPU_INDEX = "pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu"
ASK_TORCH = "import json, torch; print(json.dumps([torch.__version__, torch.version.cuda, torch.cuda.is_available()]))"
LEAST, ENOUGH = 1.0, 1.8  # GiB of memory: SuperNode and helpers take 0.27, a client's training 0.3 and more
SOON = 14  # days


@dataclass(frozen=True)
class Check:
    """One thing that a device needs."""

    what: str
    state: Literal["ok", "warning", "problem"]
    detail: str
    do: str = ""


def check_device(path: Path, data: Path | None) -> Iterator[Check]:
    """Look at everything, the slow things too; changes nothing."""
    told = read_join(path)
    yield join_file(told, path, datetime.now(UTC))
    yield bits(sys.maxsize > 2**32, platform.machine())
    yield python(sys.version_info[:2])
    yield torch_build(ask_torch(), platform.machine())
    yield flower(_version("flwr"))
    yield memory(_memory())
    seen = look(read_address(told.server), told.authority)
    yield server(told, seen)
    yield clock(seen, is_synchronised())
    yield data_folder(data)


def join_file(told: JoinFile, path: Path, now: datetime) -> Check:
    """Whether the join file is in date, and nobody else's to read."""
    again = f"on the coordinator: ticketlab client enroll {told.name} --server {told.server} --again"
    left = (datetime.fromisoformat(told.expires) - now).days
    detail = f"{told.name} at {told.server}, until {told.expires[:10]}"
    if told.is_expired(now):
        return Check("join file", "problem", f"expired on {told.expires[:10]}", again)
    if readable_by_others(path):
        return Check("join file", "warning", f"{detail}; other users can read the key in it", f"chmod 600 {path}")
    if left < SOON:
        return Check("join file", "warning", f"{detail}: {left} days left", again)
    return Check("join file", "ok", detail)


def bits(is_64: bool, machine: str) -> Check:
    """Torch has no builds for 32-bit systems."""
    if is_64:
        return Check("system", "ok", f"64 bits, {machine}")
    return Check("system", "problem", f"32-bit Python on {machine}", "install the 64-bit edition of the system")


def python(found: tuple[int, ...]) -> Check:
    """Flower was tested with some versions of Python."""
    detail = ".".join(map(str, found))
    if found < (3, 11):
        return Check("Python", "problem", detail, "install Python 3.11 or newer")
    if found > (3, 13):
        return Check("Python", "warning", f"{detail} is newer than what Flower names", "3.11 to 3.13 are known to work")
    return Check("Python", "ok", detail)


def ask_torch() -> tuple[str, str | None, bool] | str:
    """Version, CUDA version and whether there is a GPU; else what went wrong.

    Asked in a process of its own: a build for another processor dies with a signal.
    """
    try:
        ran = subprocess.run(
            [sys.executable, "-c", ASK_TORCH], capture_output=True, text=True, check=False, timeout=180
        )
    except subprocess.TimeoutExpired:
        return "does not load within 180 s"
    if ran.returncode < 0:
        return f"dies with signal {-ran.returncode} when it loads: a build for another processor"
    if ran.returncode:
        return (ran.stderr.strip().splitlines() or ["cannot be loaded"])[-1]
    name, cuda, has_gpu = json.loads(ran.stdout.strip().splitlines()[-1])
    return name, cuda, has_gpu


def torch_build(found: tuple[str, str | None, bool] | str, machine: str) -> Check:
    """Which torch is there; CUDA's libraries on a board without a GPU are gigabytes for nothing."""
    if isinstance(found, str):
        return Check("torch", "problem", found, CPU_INDEX)
    name, cuda, has_gpu = found
    detail = f"{name}, {'CUDA ' + cuda if cuda else 'CPU'} build"
    if cuda and not has_gpu and machine == "aarch64":
        return Check(
            "torch", "warning", f"{detail} and no GPU: gigabytes for nothing", f"{CPU_INDEX} --force-reinstall"
        )
    return Check("torch", "ok", detail)


def flower(found: str | None) -> Check:
    """Flower's transport changes between releases: both sides need a tested one."""
    wanted = "pip install 'flwr>=1.41,<1.43'"
    if found is None:
        return Check("flwr", "problem", "not installed", wanted)
    if not was_tested(found):
        return Check("flwr", "problem", f"{found} was not tested", wanted)
    if not (Path(sys.executable).parent / "flower-supernode").exists():
        return Check("flwr", "problem", f"{found} without its program flower-supernode", f"{wanted} --force-reinstall")
    return Check("flwr", "ok", found)


def memory(gibibytes: float | None) -> Check:
    """Whether Flower and torch fit."""
    if gibibytes is None:
        return Check("memory", "warning", "not told by this system", f"have at least {ENOUGH} GiB")
    detail = f"{gibibytes:.1f} GiB"
    if gibibytes < LEAST:
        return Check("memory", "problem", f"{detail}: too little for Flower and torch", "use a board with 2 GB or more")
    if gibibytes < ENOUGH:
        return Check("memory", "warning", f"{detail}: tight", "small networks only; close other programs")
    return Check("memory", "ok", detail)


def server(told: JoinFile, seen: Seen) -> Check:
    """Whether the coordinator is reached over TLS and is the one of the join file."""
    if seen.problem is None or seen.ahead is not None:
        return Check("coordinator", "ok", f"{told.server}, over TLS, certificate of this lab")
    if "no federation is running" in seen.problem:
        return Check("coordinator", "warning", seen.problem, "nothing here; it listens while a federation runs")
    return Check("coordinator", "problem", seen.problem, "see docs/federate.md, section Firewall")


def clock(seen: Seen, synchronised: bool | None) -> Check:
    """Flower's signatures hold the time: compared with the coordinator's, else asked of the system."""
    if seen.ahead is not None:
        detail = f"{abs(seen.ahead):.0f} s {'ahead of' if seen.ahead > 0 else 'behind'} the coordinator's"
        if seen.problem is not None:
            return Check("clock", "problem", detail, "sudo timedatectl set-ntp true, then wait a minute")
        return Check("clock", "ok", detail)
    if synchronised is None:
        return Check("clock", "warning", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC; nobody to compare with", "check it")
    if synchronised:
        return Check("clock", "ok", "synchronised (NTP)")
    return Check("clock", "warning", "not synchronised", "sudo timedatectl set-ntp true")


def is_synchronised() -> bool | None:
    """Whether NTP has set the clock; None where the system does not tell."""
    program = shutil.which("timedatectl")
    if program is None:
        return None
    command = [program, "show", "--property=NTPSynchronized", "--value"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    return {"yes": True, "no": False}.get(ran.stdout.strip())


def data_folder(data: Path | None) -> Check:
    """Whether training examples can be read."""
    named = Places.default(data).root
    if named is None:
        return Check("data", "ok", "the default: the user's cache, system packages, or a download")
    if not named.is_dir() or not os.access(named, os.R_OK | os.X_OK):
        return Check("data", "problem", f"{named} is no folder that can be read", "name one with --data")
    count = sum(1 for _ in named.iterdir())
    if not count:
        return Check(
            "data", "warning", f"{named} is empty", "put the data set's files there: ticketlab data ls tells which"
        )
    return Check("data", "ok", f"{named}, {count} entries")


def as_dict(told: JoinFile, checks: list[Check]) -> dict[str, Any]:
    """The checks as `--json` prints them."""
    rows = [{"what": one.what, "state": one.state, "detail": one.detail, "do": one.do} for one in checks]
    return {"name": told.name, "server": told.server, "ready": is_ready(checks), "checks": rows}


def is_ready(checks: list[Check]) -> bool:
    """Whether nothing is a problem."""
    return all(one.state != "problem" for one in checks)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _memory() -> float | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (ValueError, OSError, AttributeError):
        return None
