"""Heart disease: the tables of four hospitals → features without gaps, and which of them were gaps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ticketlab.data.dataset import Dataset

COLUMNS = (
    "age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca", "thal",
)  # fmt: skip
POSITIVE = ("trestbps", "chol")
"""Blood pressure and cholesterol: 0 means that it was not measured."""
GAPS = ("chol", "fbs", "slope", "ca", "thal")
"""What most patients of some hospital lack: whether it was missing is a feature of its own."""
FEATURES = (*COLUMNS, *(f"{column} missing" for column in GAPS))

Table = NDArray[np.float64]


def dataset(tables: Sequence[str], source: str) -> Dataset:
    """Features (patients, features, 1, 1) of all hospitals, which are groups 1, 2, … in the order of their tables.

    For testing: the third of every five patients of each hospital with the disease, and of those without. Medians, mean
    and deviation are those of the other patients.
    """
    found = [read_table(table) for table in tables]
    rows = np.concatenate(found)
    groups = np.repeat(np.arange(1, len(found) + 1), [len(each) for each in found])
    values, labels = rows[:, :-1], (rows[:, -1] > 0).astype(np.int64)
    test = third_of_five(2 * groups + labels)
    features = torch.from_numpy(fill(values, np.nanmedian(values[~test], axis=0)).astype(np.float32))[:, :, None, None]
    is_test, targets, hospitals = (torch.from_numpy(each) for each in (test, labels, groups))
    train = features[~is_test].flatten(1).double()
    return Dataset(
        "heart",
        features[~is_test],
        targets[~is_test],
        features[is_test],
        targets[is_test],
        mean=tuple(train.mean(0).tolist()),
        std=tuple(deviation or 1.0 for deviation in train.std(0).tolist()),
        classes=2,
        source=source,
        named=("no disease", "disease"),
        per_unit=(1.0,),
        train_groups=hospitals[~is_test],
        test_groups=hospitals[is_test],
    )


def read_table(table: str) -> Table:
    """One hospital's patients, (patients, columns and diagnosis); NaN where nothing was measured."""
    rows = [[np.nan if value == "?" else float(value) for value in line.split(",")] for line in table.split()]
    values = np.array(rows)
    for column in map(COLUMNS.index, POSITIVE):
        values[values[:, column] == 0, column] = np.nan
    return values


def third_of_five(strata: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether a patient is the third of five in its stratum, in the order of the table: tables are sorted by age."""
    chosen = np.zeros(len(strata), bool)
    for stratum in np.unique(strata):
        chosen[np.flatnonzero(strata == stratum)[2::5]] = True
    return chosen


def fill(values: Table, medians: Table) -> Table:
    """Columns with medians in their gaps, then for each of GAPS 1 where it was one, else 0."""
    is_gap = np.isnan(values)
    return np.hstack([np.where(is_gap, medians, values), is_gap[:, [COLUMNS.index(column) for column in GAPS]]])
