"""A data set's files: found in order, checked by MD5, unpacked or downloaded so that nothing half-done stays."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import socket
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ticketlab.errors import DataError, MissingData

DOWNLOAD_TIMEOUT = 30  # seconds without a byte


@dataclass(frozen=True)
class Places:
    """Where to look: the folder the user named (if any), then the user's cache."""

    root: Path | None
    cache: Path
    may_download: bool = True

    @classmethod
    def default(cls, root: Path | None = None) -> Places:
        """`root`, else `$TICKETLAB_DATA`; the cache under `$XDG_CACHE_HOME` or `~/.cache`."""
        named = root or (Path(os.environ["TICKETLAB_DATA"]) if os.environ.get("TICKETLAB_DATA") else None)
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cls(named, cache / "ticketlab" / "data")

    def roots(self) -> list[Path]:
        """The folders to search, in order; raises DataError when the one the user named is unusable."""
        if self.root is None:
            return [self.cache]
        try:
            next(self.root.iterdir(), None)
        except OSError as error:
            raise DataError(
                f"data folder {self.root}: {error.strerror}; name a readable folder with --data or $TICKETLAB_DATA"
            ) from error
        return [self.root, self.cache]


@dataclass(frozen=True)
class FileSet:
    """What a data set consists of on disk."""

    name: str
    folder: str
    """Folder under a data root, laid out as torchvision does where it knows the data set."""
    files: dict[str, str]
    """Unpacked file → MD5."""
    torchvision: str | None = None
    """Class in torchvision.datasets that downloads it; None where nothing does."""
    archives: tuple[str, ...] = ()
    """Tar archives under a data root that hold the folder."""
    packaged: tuple[Path, ...] = field(default=())
    """Folders where a system package puts the files."""

    def wanted(self) -> str:
        """Which files to put where, for an error message."""
        return f"{self.folder}/ with {', '.join(self.files)} (each may be gzipped)"


def read_files(files: FileSet, places: Places) -> tuple[dict[str, bytes], str]:
    """The verified bytes of each file and the folder they came from.

    Order: the user's folder, the cache, system packages, download. Raises DataError when a file found is not
    the published one, MissingData when there is none and it cannot be downloaded.
    """
    found = find(files, places)
    if found is None:
        if files.torchvision is None:
            roots = " or ".join(map(str, places.roots()))
            raise MissingData(
                f"{files.name} is not on this machine and cannot be fetched; put {files.wanted()} into {roots}"
            )
        if not places.may_download:
            raise MissingData(f"{files.name} is not on this machine; get it with: ticketlab data fetch {files.name}")
        download(files, places.cache)
        found = places.cache / files.folder
    if found.is_file():
        _unpack(found, places.cache, files)
        found = places.cache / files.folder
    return {name: _verified(found, name, files) for name in files.files}, str(found)


def find(files: FileSet, places: Places) -> Path | None:
    """The first folder that holds every file, or archive that holds the folder; nothing is read or written."""
    for root in places.roots():
        if _holds_all(root / files.folder, files):
            return root / files.folder
    for root in places.roots():
        for archive in files.archives:
            if (root / archive).is_file():
                return root / archive
    return next((folder for folder in files.packaged if _holds_all(folder, files)), None)


def _holds_all(folder: Path, files: FileSet) -> bool:
    return all((folder / name).is_file() or (folder / f"{name}.gz").is_file() for name in files.files)


def _verified(folder: Path, name: str, files: FileSet) -> bytes:
    """The unpacked bytes of one file; raises DataError that names it and the checksum it should have."""
    path = folder / name if (folder / name).is_file() else folder / f"{name}.gz"
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.strerror:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        content = b""
    found, md5 = hashlib.md5(content, usedforsecurity=False).hexdigest(), files.files[name]
    if found != md5:
        way_out = (
            "put a good copy there" if files.torchvision is None else "delete it and run again to fetch a good copy"
        )
        raise DataError(
            f"{path}: damaged or not the published file: unpacked MD5 should be {md5}, is {found}; {way_out}"
        )
    return content


def _unpack(archive: Path, cache: Path, files: FileSet) -> None:
    with _staging(cache, files) as staging:
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(staging, filter="data")
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            raise DataError(f"{archive}: cannot be unpacked into {cache} ({error})") from error


def download(files: FileSet, cache: Path) -> None:
    """Fetch a data set with torchvision (mirrors, progress, checksums) into the cache, whole or not at all."""
    import torchvision.datasets

    assert files.torchvision is not None
    with _staging(cache, files) as staging, _timeout(DOWNLOAD_TIMEOUT):
        try:
            getattr(torchvision.datasets, files.torchvision)(staging, download=True)
        except (OSError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            raise MissingData(
                f"{files.name} is not on this machine and cannot be downloaded ({reason}); put the files into "
                f"{cache / files.folder}, or name a folder with --data that has {files.wanted()}"
            ) from error


@contextmanager
def _staging(cache: Path, files: FileSet) -> Iterator[Path]:
    """A folder that becomes `cache/files.folder` if the block succeeds and vanishes if it does not."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".partial-", dir=cache))
    except OSError as error:
        raise DataError(f"cache folder {cache}: cannot be written ({error.strerror})") from error
    try:
        yield staging
        target = cache / files.folder
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        (staging / files.folder).replace(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Give up on a silent server; torchvision sets no time limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
