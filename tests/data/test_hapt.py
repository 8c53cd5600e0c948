import io

import numpy as np
import pytest
import torch

from ticketlab.data import hapt
from ticketlab.data.hapt import WINDOW, last_fifth, stretches, windows
from ticketlab.data.sources import load_dataset
from ticketlab.errors import MissingData

# subject, run, label, samples
PIECES = [
    (1, 1, -1, 100), (1, 1, 5, 320), (1, 1, 7, 200), (1, 1, 5, 130), (1, 2, 5, 256), (2, 2, 5, 127), (2, 2, 1, 448),
]  # fmt: skip
STARTS = [100, 164, 228, 292, 620, 750, 814, 878, 1133, 1197, 1261, 1325, 1389, 1453]
"""By hand: pieces start at 0, 100, 420, 620, 750, 1006, 1133 and end at 1581."""


def archive(pieces):
    told = [np.concatenate([np.full(piece[3], piece[i]) for piece in pieces]) for i in range(3)]
    samples = len(told[0])
    counts = np.arange(samples)[None] * np.array([1, 1, 1, 1, 1, -1])[:, None]
    content = io.BytesIO()
    np.savez(
        content, counts=counts.astype(np.int16), scale=np.array([0.5] * 3 + [0.25] * 3),
        subject=told[0].astype(np.uint8), run=told[1].astype(np.uint8), label=told[2].astype(np.int8),
    )  # fmt: skip
    return content.getvalue()


def recording(pieces):
    return hapt._read(archive(pieces))


def starts_of(images):
    """The first channel counts samples."""
    return images[:, 0, 0, 0].tolist()


def test_a_stretch_ends_where_person_run_or_activity_changes():
    assert stretches(recording(PIECES)) == [(100, 420), (620, 750), (750, 1006), (1006, 1133), (1133, 1581)]


def test_windows_lie_within_a_stretch():
    assert [start for stretch in stretches(recording(PIECES)) for start in windows(*stretch)] == STARTS
    assert [len(windows(0, end)) for end in (127, 128, 191, 192, 256)] == [0, 1, 1, 2, 3]


@pytest.mark.parametrize(
    ("count", "train", "test"), [(0, 0, 0), (1, 1, 0), (2, 2, 0), (3, 1, 1), (7, 5, 1), (8, 5, 2), (15, 11, 3)]
)
def test_the_last_fifth_is_for_testing_and_one_window_between_is_dropped(count, train, test):
    starts = windows(1000, 1000 + 64 * (count + 1)) if count else windows(1000, 1000)
    first, last = last_fifth(starts)
    assert (len(first), len(last)) == (train, test)
    assert list(first) == list(starts)[:train] and list(last) == list(starts)[count - test :]
    assert not first or not last or first[-1] + WINDOW <= last[0]


def test_known_people_are_tested_on_later_moments():
    found = hapt.known_people(archive(PIECES), "here")
    # stretches of 4, 1, 3, 0 and 6 windows: the last is for testing, the one before it is dropped
    assert starts_of(found.test_images) == [292, 878, 1453]
    assert starts_of(found.train_images) == [100, 164, 620, 750, 1133, 1197, 1261, 1325]
    assert found.test_labels.tolist() == [4, 4, 0] and found.test_groups.tolist() == [1, 1, 2]
    assert found.train_labels.tolist() == [4, 4, 4, 4, 0, 0, 0, 0]
    assert found.train_groups.tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
    assert found.input_shape == (6, 1, 128) and found.train_images.dtype == torch.int16
    assert found.test_images[1, :, 0, -1].tolist() == [1005] * 5 + [-1005]


def test_unseen_people_are_in_no_training_window():
    found = hapt.unseen_people(archive(PIECES), "here")
    assert starts_of(found.train_images) == STARTS[:8] and set(found.train_groups.tolist()) == {1}
    assert starts_of(found.test_images) == STARTS[8:] and set(found.test_groups.tolist()) == {2}


def test_mean_and_deviation_are_those_of_training_in_physical_units():
    found = hapt.unseen_people(archive(PIECES), "here")
    values = np.concatenate([np.arange(start, start + 128) for start in STARTS[:8]]) * 0.5
    assert found.per_unit == (2.0, 2.0, 2.0, 4.0, 4.0, 4.0)
    assert found.mean == pytest.approx([values.mean()] * 3 + [values.mean() / 2] * 2 + [-values.mean() / 2])
    assert found.std == pytest.approx([values.std(ddof=1)] * 3 + [values.std(ddof=1) / 2] * 3)


@pytest.fixture(scope="module")
def real(real_places):
    try:
        return {name: load_dataset(name, real_places) for name in ("hapt", "hapt_unseen")}
    except MissingData as error:
        pytest.skip(str(error))


def test_unseen_people_are_ucis(real):
    found = real["hapt_unseen"]
    assert (len(found.train_labels), len(found.test_labels)) == (7415, 2996)
    assert found.test_groups.unique().tolist() == [2, 4, 9, 10, 12, 13, 18, 20, 24]
    assert len(found.train_groups.unique()) == 21 and found.labels[5] == "lying"


def test_everybody_does_everything_in_training_and_test(real):
    found = real["hapt"]
    for labels, groups in ((found.train_labels, found.train_groups), (found.test_labels, found.test_groups)):
        assert len((6 * groups + labels).unique()) == 30 * 6
    assert (len(found.train_labels), len(found.test_labels)) == (7435, 2128)


def test_no_real_window_of_the_test_set_is_also_in_training(real):
    found = real["hapt"]
    halves = {half.numpy().tobytes() for half in found.train_images.unflatten(3, (2, 64)).transpose(1, 3).flatten(0, 1)}
    assert not any(
        half.numpy().tobytes() in halves
        for half in found.test_images.unflatten(3, (2, 64)).transpose(1, 3).flatten(0, 1)
    )


def test_a_pickle_in_the_archive_is_refused():
    content = io.BytesIO()
    np.savez(content, scale=np.array([1.0]), counts=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        hapt._read(content.getvalue())
