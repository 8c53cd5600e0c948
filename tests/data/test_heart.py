import numpy as np
import pytest
import torch

from ticketlab.data import heart
from ticketlab.data.heart import COLUMNS, FEATURES, fill, read_table, third_of_five
from ticketlab.data.sources import load_dataset
from ticketlab.errors import MissingData


def patient(num, **told):
    return ",".join([str(told.get(column, 1)) for column in COLUMNS] + [str(num)])


def column(images, name):
    return images[:, FEATURES.index(name)].flatten().tolist()


# trestbps and chol 0 are no measurements; the third of each five with the same outcome is for testing
FIRST = [
    patient(0, age=40, chol=200, ca="?"), patient(0, age=50, chol=0), patient(0, age=90, chol=900),
    patient(0, age=60, chol=220), patient(3, age=70, trestbps=0),
]  # fmt: skip
SECOND = [patient(1, age=30, chol="?"), patient(2, age=31, chol=240), patient(4, age=32, chol="?")]


@pytest.fixture
def tiny():
    return heart.dataset(["\n".join(FIRST) + "\n", "\n".join(SECOND)], "here")


def test_a_table_has_gaps_where_nothing_was_measured():
    values = read_table("\n".join(FIRST))
    assert values.shape == (5, 14) and values[:, 0].tolist() == [40, 50, 90, 60, 70]
    gaps = {(int(row), COLUMNS[int(index)]) for row, index in np.argwhere(np.isnan(values))}
    assert gaps == {(0, "ca"), (1, "chol"), (4, "trestbps")}


def test_the_third_of_five_of_each_stratum_is_chosen():
    strata = np.array([0, 0, 1, 0, 0, 0, 1, 0, 0, 1, 0, 2])
    assert np.flatnonzero(third_of_five(strata)).tolist() == [3, 9, 10]


def test_each_hospital_is_a_group_and_has_its_own_test_patients(tiny):
    assert (column(tiny.train_images, "age"), tiny.train_groups.tolist()) == (
        [40, 50, 60, 70, 30, 31],
        [1] * 4 + [2] * 2,
    )
    assert (column(tiny.test_images, "age"), tiny.test_groups.tolist()) == ([90, 32], [1, 2])
    assert (tiny.train_labels.tolist(), tiny.test_labels.tolist()) == ([0, 0, 0, 1, 1, 1], [0, 1])
    assert tiny.input_shape == (18, 1, 1) and tiny.train_images.dtype == torch.float32


def test_gaps_get_the_median_of_training_and_are_told(tiny):
    # of 200, 220, 1 and 240, which leaves out the 900 of the test patient
    assert column(tiny.train_images, "chol") == [200, 210, 220, 1, 210, 240]
    assert column(tiny.train_images, "chol missing") == [0, 1, 0, 0, 1, 0]
    assert column(tiny.test_images, "chol") == [900, 210] and column(tiny.test_images, "chol missing") == [0, 1]
    assert column(tiny.train_images, "ca missing") == [1, 0, 0, 0, 0, 0]
    assert column(tiny.train_images, "trestbps") == [1] * 6


def test_mean_and_deviation_are_those_of_training(tiny):
    ages = [40, 50, 60, 70, 30, 31]
    assert tiny.mean[0] == pytest.approx(np.mean(ages)) and tiny.std[0] == pytest.approx(np.std(ages, ddof=1))
    assert tiny.std[1] == 1.0  # the same for all


def test_what_is_not_missing_stays():
    values = np.arange(13.0)[None]
    assert fill(values, np.full(13, -1.0)).tolist() == [[*range(13), 0, 0, 0, 0, 0]]


def test_the_real_tables_are_the_published_ones(real_places):
    try:
        found = load_dataset("heart", real_places)
    except MissingData as error:
        pytest.skip(str(error))
    labels = torch.cat([found.train_labels, found.test_labels])
    groups = torch.cat([found.train_groups, found.test_groups])
    assert groups.bincount().tolist() == [0, 303, 294, 123, 200]
    assert groups[labels == 1].bincount().tolist() == [0, 139, 106, 115, 149]
    for targets, hospitals in ((found.train_labels, found.train_groups), (found.test_labels, found.test_groups)):
        assert len((2 * hospitals + targets).unique()) == 8
    assert all(bool(images.isfinite().all()) for images in (found.train_images, found.test_images))
