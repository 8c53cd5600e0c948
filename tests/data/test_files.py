import gzip
import hashlib
import tarfile

import pytest

from ticketlab.data.files import FileSet, Places, find, read_files
from ticketlab.errors import DataError, MissingData

CONTENT = {"train": b"training bytes", "test": b"test bytes"}
SET = FileSet(
    name="toy",
    folder="Toy/raw",
    files={name: hashlib.md5(content).hexdigest() for name, content in CONTENT.items()},
    torchvision="NoSuchClass",
    archives=("toy.tar.gz",),
)


@pytest.fixture
def roots(tmp_path):
    return Places(tmp_path / "named", tmp_path / "cache", may_download=False)


def put(folder, content=CONTENT, zipped=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(data) if zipped else data)


@pytest.mark.parametrize("zipped", [False, True])
def test_files_are_read_from_the_named_folder_first(roots, zipped):
    put(roots.cache / "Toy/raw")
    put(roots.root / "Toy/raw", zipped=zipped)
    content, where = read_files(SET, roots)
    assert content == CONTENT
    assert where == str(roots.root / "Toy/raw")


def test_the_cache_comes_after_the_named_folder_and_before_packages(roots, tmp_path):
    roots.root.mkdir()
    packaged = FileSet(**{**vars(SET), "packaged": (tmp_path / "system",)})
    put(tmp_path / "system")
    assert find(packaged, roots) == tmp_path / "system"
    put(roots.cache / "Toy/raw")
    assert find(packaged, roots) == roots.cache / "Toy/raw"


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("damage", [lambda b: b[:-3], lambda b: b"", lambda b: b[:-9] + bytes([b[-9] ^ 1]) + b[-8:]])
def test_a_damaged_file_is_named_with_its_checksum_and_never_replaced_by_another(roots, zipped, damage):
    put(roots.cache / "Toy/raw")
    put(roots.root / "Toy/raw", zipped=zipped)
    path = roots.root / "Toy/raw" / ("train.gz" if zipped else "train")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError) as caught:
        read_files(SET, roots)
    assert not isinstance(caught.value, MissingData)
    assert str(path) in str(caught.value)
    assert SET.files["train"] in str(caught.value)


def test_an_archive_is_unpacked_into_the_cache_once(roots, tmp_path):
    put(tmp_path / "staging/Toy/raw")
    roots.root.mkdir()
    with tarfile.open(roots.root / "toy.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "staging/Toy", "Toy")
    assert find(SET, roots) == roots.root / "toy.tar.gz"
    content, where = read_files(SET, roots)
    assert (content, where) == (CONTENT, str(roots.cache / "Toy/raw"))
    (roots.root / "toy.tar.gz").unlink()
    assert read_files(SET, roots)[0] == CONTENT


def test_a_truncated_archive_leaves_nothing_behind(roots):
    roots.root.mkdir()
    (roots.root / "toy.tar.gz").write_bytes(gzip.compress(b"not a tar")[:-4])
    with pytest.raises(DataError, match="cannot be unpacked"):
        read_files(SET, roots)
    assert list(roots.cache.iterdir()) == []


def test_a_broken_download_leaves_nothing_behind_and_says_where_files_go(roots, monkeypatch):
    import torchvision.datasets

    def breaks(root, download):
        (root / "Toy/raw").mkdir(parents=True)
        (root / "Toy/raw/train").write_bytes(b"half")
        raise ConnectionError("connection reset")

    monkeypatch.setattr(torchvision.datasets, "NoSuchClass", breaks, raising=False)
    roots.root.mkdir()
    with pytest.raises(MissingData, match=r"connection reset.*Toy/raw"):
        read_files(SET, Places(roots.root, roots.cache))
    assert list(roots.cache.iterdir()) == []


def test_a_download_arrives_whole_in_the_cache(roots, monkeypatch):
    import torchvision.datasets

    monkeypatch.setattr(
        torchvision.datasets, "NoSuchClass", lambda root, download: put(root / "Toy/raw"), raising=False
    )
    roots.root.mkdir()
    content, where = read_files(SET, Places(roots.root, roots.cache))
    assert (content, where) == (CONTENT, str(roots.cache / "Toy/raw"))
    assert [p.name for p in roots.cache.iterdir()] == ["Toy"]


def test_nothing_is_downloaded_where_that_is_not_allowed(roots):
    roots.root.mkdir()
    with pytest.raises(MissingData, match="ticketlab data fetch toy"):
        read_files(SET, roots)


def test_what_nothing_downloads_is_told_with_its_place(roots):
    given = FileSet(**{**vars(SET), "torchvision": None})
    roots.root.mkdir()
    for places in (roots, Places(roots.root, roots.cache)):
        with pytest.raises(MissingData, match=r"toy is not on .* cannot be fetched; put Toy/raw/ with") as told:
            read_files(given, places)
        assert f"into {roots.root} or {roots.cache}" in str(told.value)
    put(roots.root / "Toy/raw", {**CONTENT, "train": b"other bytes"})
    with pytest.raises(DataError, match="put a good copy there"):
        read_files(given, roots)


def test_a_named_folder_that_cannot_be_read_is_an_error(roots):
    with pytest.raises(DataError, match="name a readable folder with --data"):
        read_files(SET, roots)
    roots.root.write_text("a file, not a folder")
    with pytest.raises(DataError, match="name a readable folder"):
        read_files(SET, roots)


def test_places_come_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("TICKETLAB_DATA", str(tmp_path / "shared"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert Places.default() == Places(tmp_path / "shared", tmp_path / "cache/ticketlab/data")
    assert Places.default(tmp_path / "mine").root == tmp_path / "mine"
