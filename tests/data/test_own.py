"""Examples of a client's own in a file: what is read, and what is refused."""

import numpy as np
import pytest
import torch

from ticketlab.data.batches import normalise
from ticketlab.data.own import own_examples
from ticketlab.errors import DataError

FACTS = {"input_shape": [2, 1, 3], "classes": 4, "mean": [0.5, 0.25], "std": [0.5, 0.25], "per_unit": [10.0, 1.0]}


def write(folder, images, labels):
    np.savez(folder / "examples.npz", images=images, labels=labels)


def good(count=5):
    return np.arange(count * 6, dtype=np.float32).reshape(count, 2, 1, 3), np.arange(count) % 4


def test_without_a_file_there_are_none(tmp_path):
    assert own_examples(tmp_path, FACTS) is None


def test_measurements_are_normalised_as_the_networks_own(tmp_path):
    images, labels = good()
    write(tmp_path, images, labels.astype(np.uint8))
    found = own_examples(tmp_path, FACTS)
    assert len(found) == 5 and found.labels.dtype == torch.int64 and found.labels.tolist() == [0, 1, 2, 3, 0]
    normal = normalise(found.images, found)
    assert normal[1, 0, 0].tolist() == pytest.approx([(value / 10 - 0.5) / 0.5 for value in (6, 7, 8)], abs=1e-6)
    assert normal[1, 1, 0].tolist() == pytest.approx([(value - 0.25) / 0.25 for value in (9, 10, 11)], abs=1e-5)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float64, np.float16])
def test_pictures_and_measurements_may_be_of_any_type_of_numbers(tmp_path, kind):
    images, labels = good()
    write(tmp_path, images.astype(kind), labels)
    found = own_examples(tmp_path, FACTS)
    assert normalise(found.images, found).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, y: (x[:, :1], y), r"images are \(5, 1, 1, 3\)"),
        (lambda x, y: (x.reshape(5, 6), y), r"wants images of \(2, 1, 3\)"),
        (lambda x, y: (x, y[:4]), r"labels \(4,\)"),
        (lambda x, y: (x, y[:, None]), r"labels \(5, 1\)"),
        (lambda x, y: (x[:0], y[:0]), "one label for each"),
        (lambda x, y: (x, y + 1), "labels lie in 1…4, not 0…3"),
        (lambda x, y: (x, y - 1), "labels lie in -1…2"),
        (lambda x, y: (x * np.nan, y), "not finite"),
        (lambda x, y: (x, y + 0.5), "whole numbers"),
        (lambda x, y: (x, y.astype(str)), "cannot be read"),
        (lambda x, y: (x.astype(str), y), "cannot be read"),
        (lambda x, y: (x.astype(complex), y), "not real"),
        (lambda x, y: (np.array([{"a": 1}] * 5), y), "cannot be read"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_with_what_is_wrong(tmp_path, change, said):
    write(tmp_path, *change(*good()))
    with pytest.raises(DataError, match=said):
        own_examples(tmp_path, FACTS)


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_nothing_is_unpickled(tmp_path):
    mark = tmp_path / "harmed"
    write(tmp_path, np.array([Harmful(str(mark))], dtype=object), np.zeros(1))
    with pytest.raises(DataError, match="cannot be read"):
        own_examples(tmp_path, FACTS)
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 cut off", b"\x93NUMPY\x01\x00v\x00{'descr'"])
def test_damaged_files_are_told(tmp_path, content):
    (tmp_path / "examples.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"examples\.npz: cannot be read"):
        own_examples(tmp_path, FACTS)


def test_a_file_cut_in_the_middle_is_told(tmp_path):
    write(tmp_path, *good(200))
    whole = (tmp_path / "examples.npz").read_bytes()
    (tmp_path / "examples.npz").write_bytes(whole[:1000] + bytes(200) + whole[1200:])
    with pytest.raises(DataError, match="cannot be read"):
        own_examples(tmp_path, FACTS)


def test_a_file_without_labels_and_a_single_array_are_told(tmp_path):
    np.savez(tmp_path / "examples.npz", images=good()[0])
    with pytest.raises(DataError, match="it holds two arrays, images and labels"):
        own_examples(tmp_path, FACTS)
    with (tmp_path / "examples.npz").open("wb") as file:
        np.save(file, good()[0])
    with pytest.raises(DataError, match="cannot be read"):
        own_examples(tmp_path, FACTS)
