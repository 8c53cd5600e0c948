import hashlib
from dataclasses import replace

import pytest
import torch

from ticketlab.data.sources import datasets, load_dataset, load_with_stand_in, locate_all
from ticketlab.errors import DataError, MissingData, TicketlabError


def test_mnist_is_the_published_one(mnist):
    assert mnist.train_images.shape == (60000, 1, 28, 28)
    assert mnist.test_images.shape == (10000, 1, 28, 28)
    assert mnist.train_labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    scaled = mnist.train_images.double() / 255
    assert scaled.mean().item() == pytest.approx(mnist.mean[0], abs=5e-5)
    assert scaled.std().item() == pytest.approx(mnist.std[0], abs=5e-5)


@pytest.mark.parametrize(("name", "per_class"), [("fashion_mnist", 6000), ("cifar10", 5000)])
def test_other_downloaded_sets_are_the_published_ones(real_places, name, per_class):
    try:
        dataset = load_dataset(name, real_places)
    except MissingData as error:
        pytest.skip(str(error))
    assert dataset.train_labels.bincount().tolist() == [per_class] * 10
    assert dataset.test_labels.bincount().tolist() == [1000] * 10
    pixels = dataset.train_images.double().transpose(0, 1).flatten(1) / 255
    assert pixels.mean(1).tolist() == pytest.approx(dataset.mean, abs=1e-4)
    assert pixels.std(1).tolist() == pytest.approx(dataset.std, abs=1e-4)


@pytest.mark.parametrize(("name", "train", "test"), [("mnist_5k", 4000, 1000), ("digits", 1437, 360)])
def test_packaged_sets_need_no_files(places, name, train, test):
    dataset = load_dataset(name, places)
    assert (len(dataset.train_labels), len(dataset.test_labels)) == (train, test)
    assert dataset.train_images.dtype == torch.uint8
    assert dataset.test_labels.unique().tolist() == list(range(10))


def test_mnist_5k_is_a_part_of_mnist(places, mnist):
    known = {image.numpy().tobytes() for image in mnist.train_images}
    sample = load_dataset("mnist_5k", places).test_images
    assert all(image.numpy().tobytes() in known for image in sample)


def test_the_checksum_sees_one_changed_pixel(places):
    dataset = load_dataset("digits", places)
    before = dataset.checksum()
    dataset.train_images[3, 0, 4, 4] += 1
    assert dataset.checksum() != before


def test_a_stand_in_is_used_only_when_named_and_with_the_reason(places):
    dataset, reason = load_with_stand_in("mnist", "digits", places)
    assert dataset.name == "digits"
    assert reason is not None and "mnist is not on this machine" in reason
    assert load_with_stand_in("digits", "mnist_5k", places)[1] is None
    with pytest.raises(MissingData):
        load_with_stand_in("mnist", None, places)


def test_a_damaged_file_is_no_reason_for_a_stand_in(places):
    folder = places.cache / "MNIST/raw"
    folder.mkdir(parents=True)
    for name in ("train-images", "t10k-images"):
        (folder / f"{name}-idx3-ubyte").write_bytes(b"x")
    for name in ("train-labels", "t10k-labels"):
        (folder / f"{name}-idx1-ubyte").write_bytes(b"x")
    with pytest.raises(DataError, match="6bbc9ace898e44ae57da46a324031adb"):
        load_with_stand_in("mnist", "digits", places)


def test_an_unknown_data_set_is_suggested(places):
    with pytest.raises(TicketlabError, match="did you mean 'fashion_mnist'"):
        load_dataset("fashion-mnist", places)


def test_the_checksum_sees_groups_where_there_are_any(places):
    dataset = load_dataset("digits", places)
    pixels = b"".join(
        tensor.numpy().tobytes()
        for tensor in (dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels)
    )
    assert dataset.checksum() == hashlib.sha256(pixels).hexdigest()
    one, other = (replace(dataset, train_groups=torch.arange(1437) % people) for people in (3, 4))
    assert len({dataset.checksum(), one.checksum(), other.checksum()}) == 3


def test_what_is_missing_is_listed_with_what_to_do(places):
    located = {item.name: item for item in locate_all(places)}
    assert located["digits"].found == "package scikit-learn"
    assert located["mnist"].found is None
    assert "MNIST/raw/ with train-images-idx3-ubyte" in located["mnist"].wanted and located["mnist"].can_fetch
    assert "uci_hapt/ with hapt_raw.npz" in located["hapt_unseen"].wanted and not located["hapt_unseen"].can_fetch
    built_in = {name for name in datasets if datasets.find(name).__module__.startswith("ticketlab.")}
    assert set(located) == built_in
