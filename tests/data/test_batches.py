import itertools
from dataclasses import replace

import pytest
import torch

from ticketlab.data.batches import crop_and_flip, normalise, permutation, shuffled_batches, split, steps_per_epoch
from ticketlab.data.dataset import Dataset
from ticketlab.errors import DataError


def toy(count=23, channels=2, size=6):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count + 7, channels, size, size), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count + 7)
    return Dataset(
        "toy", images[:count], labels[:count], images[count:], labels[count:], (0.25, 0.5), (0.5, 0.25), 10, "here"
    )


def take(count, **changes):
    settings = {"batch_size": 5, "seed": 1, "start": 0, **changes}
    examples = split(toy(), 3, 0).train
    return list(itertools.islice(shuffled_batches(examples, **settings), count))


def test_the_split_is_seeded_disjoint_and_complete():
    splits = split(toy(), 5, seed=3)
    train, held_out = splits.train.labels.tolist(), splits.validation.labels.tolist()
    assert len(held_out) == 5
    assert sorted(train + held_out) == list(range(23))
    assert held_out == split(toy(), 5, seed=3).validation.labels.tolist()
    assert held_out != split(toy(), 5, seed=4).validation.labels.tolist()
    assert splits.test.labels.tolist() == list(range(23, 30))


def test_pixels_are_normalised_per_channel():
    examples = split(toy(), 5, 0).test
    found = normalise(examples.images, examples)
    by_hand = examples.images.double() / 255
    by_hand[:, 0] = (by_hand[:, 0] - 0.25) / 0.5
    by_hand[:, 1] = (by_hand[:, 1] - 0.5) / 0.25
    assert found.dtype == torch.float32
    assert (found - by_hand).abs().max() < 1e-6


def test_pixels_are_scaled_to_the_same_bits_as_ever():
    examples = split(toy(), 5, 0).test
    assert torch.equal(examples.scale, 1 / (255 * torch.tensor([0.5, 0.25]).view(-1, 1, 1)))


def test_measurements_are_normalised_in_their_unit_and_left_as_they_are():
    counts = torch.tensor([[-720, 0, 720]], dtype=torch.int16).view(1, 1, 1, 3)
    for images in (counts, counts.float()):
        labels = torch.zeros(1)
        data = Dataset("toy", images, labels, images, labels, (0.5,), (0.25,), 1, "here", per_unit=(720.0,))
        examples = split(data, 0, 0).test
        assert normalise(examples.images, examples).flatten().tolist() == pytest.approx([-6, -2, 2])
        assert torch.equal(examples.images, images) and examples.images.flatten().tolist() == [-720, 0, 720]


def test_groups_go_with_their_examples():
    data = replace(toy(), train_groups=torch.arange(23) * 2, test_groups=torch.arange(23, 30) * 2)
    splits = split(data, 5, seed=3).to(torch.device("cpu"))
    for examples in (splits.train, splits.validation, splits.test):
        assert torch.equal(examples.groups, examples.labels * 2)
    assert splits.test.some(torch.tensor([4, 1])).groups.tolist() == [54, 48]
    assert splits.test.first(2).groups.tolist() == [46, 48]
    assert split(toy(), 5, 0).train.groups is None


def test_an_epoch_shows_each_example_once_and_ends_with_a_smaller_batch():
    batches = take(4)
    assert [len(labels) for _, labels in batches] == [5, 5, 5, 5]
    assert steps_per_epoch(20, 5) == 4
    examples = split(toy(), 1, 0).train
    sizes = [len(labels) for _, labels in itertools.islice(shuffled_batches(examples, 5, 1, 0), 10)]
    assert sizes == [5, 5, 5, 5, 2] * 2
    seen = [
        label for _, labels in itertools.islice(shuffled_batches(examples, 5, 1, 0), 5) for label in labels.tolist()
    ]
    assert sorted(seen) == sorted(examples.labels.tolist())


@pytest.mark.parametrize("start", [0, 1, 3, 4, 7, 11])
@pytest.mark.parametrize("augment", [False, True])
def test_training_can_be_taken_up_at_any_step(start, augment):
    whole = take(12, augment=augment)
    for (images, labels), (again, labels_again) in zip(
        whole[start:], take(12 - start, start=start, augment=augment), strict=True
    ):
        assert torch.equal(images, again)
        assert torch.equal(labels, labels_again)


def test_epochs_and_seeds_have_orders_of_their_own():
    first, second = [labels.tolist() for _, labels in take(4)], [labels.tolist() for _, labels in take(8)[4:]]
    assert first != second
    assert first != [labels.tolist() for _, labels in take(4, seed=2)]
    assert permutation(10, 0).tolist() != list(range(10))


def test_a_crop_is_a_shifted_possibly_mirrored_copy_over_a_zero_border():
    images = torch.randint(1, 256, (40, 3, 8, 8), dtype=torch.uint8)
    shifted = crop_and_flip(images, seed=5)
    assert shifted.shape == images.shape and shifted.dtype == torch.uint8
    padded = torch.nn.functional.pad(images, [4] * 4)
    used = set()
    for before, after in zip(padded, shifted, strict=True):
        matches = [
            (top, left, flip)
            for top, left, flip in itertools.product(range(9), range(9), (False, True))
            if torch.equal(
                after,
                (
                    before[:, top : top + 8, left : left + 8].flip(2)
                    if flip
                    else before[:, top : top + 8, left : left + 8]
                ),
            )
        ]
        assert matches
        used.update(matches)
    assert {flip for *_, flip in used} == {False, True}
    assert len(used) > 20
    assert torch.equal(shifted, crop_and_flip(images, seed=5))
    assert not torch.equal(shifted, crop_and_flip(images, seed=6))


@pytest.mark.parametrize("examples", [1, 7, 18])
def test_used_and_unused_examples_are_disjoint_and_complete(examples):
    splits = split(toy(), 5, seed=3, examples=examples)
    train, unused = splits.train.labels.tolist(), splits.unused.labels.tolist()
    assert len(train) == examples
    assert sorted(train + unused + splits.validation.labels.tolist()) == list(range(23))
    assert torch.equal(splits.validation.images, split(toy(), 5, seed=3).validation.images)
    assert splits.test.labels.tolist() == list(range(23, 30))


def test_more_used_examples_hold_the_fewer_and_another_seed_draws_others():
    few, many = (set(split(toy(), 5, 3, count).train.labels.tolist()) for count in (6, 12))
    assert few < many
    assert few != set(split(toy(), 5, 4, 6).train.labels.tolist())


def test_clients_share_the_unused_examples_or_all_where_all_are_used():
    part, whole = split(toy(), 5, 3, 6), split(toy(), 5, 3)
    assert part.of_clients is part.unused and len(part.unused) == 12
    assert whole.of_clients is whole.train and len(whole.unused) == 0
    all_named = split(toy(), 5, 3, 18)
    assert torch.equal(all_named.train.images, whole.train.images)


def test_more_examples_than_there_are_are_refused():
    with pytest.raises(DataError, match=r"data\.examples: toy has 18 training examples, not 19"):
        split(toy(), 5, 3, 19)
