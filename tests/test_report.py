import dataclasses

import pytest

from ticketlab.report import estimate, summarise
from ticketlab.runs.store import Level


def level(replicate, index, accuracy):
    values = {field.name: 0 for field in dataclasses.fields(Level)}
    return Level(**{**values, "replicate": replicate, "level": index, "test_accuracy": accuracy, "density": 0.5})


def test_the_interval_is_students_t():
    """Mean 3, deviation √2.5, t(0.975, 4 degrees of freedom) = 2.776 from a printed table."""
    found = estimate([1, 2, 3, 4, 5])
    assert found.mean == 3 and found.n == 5
    assert found.high - 3 == pytest.approx(2.776 * (2.5 / 5) ** 0.5, abs=1e-3)
    assert 3 - found.low == pytest.approx(found.high - 3)


def test_a_single_value_has_no_interval():
    found = estimate([0.9])
    assert (found.mean, found.low, found.high, found.n) == (0.9, None, None, 1)


def test_each_level_is_summarised_over_the_replicates_that_finished_it():
    rows = summarise([level(1, 0, 0.9), level(2, 0, 0.8), level(1, 1, 0.7)])
    assert [(row.level, row.test_accuracy.mean, row.test_accuracy.n) for row in rows] == [
        (0, pytest.approx(0.85), 2),
        (1, 0.7, 1),
    ]
    assert (rows[0].lowest, rows[0].highest) == (0.8, 0.9)


def test_there_is_no_gain_over_a_dense_network_whose_training_ended_early():
    search = dataclasses.replace(level(1, 0, 0.7), curve=({"step": 10},))
    ticket = dataclasses.replace(level(1, 1, 0.9), curve=({"step": 40},))
    assert [row.minus_dense for row in summarise([search, ticket])] == [None, None]
    whole = dataclasses.replace(search, curve=({"step": 40},))
    assert summarise([whole, ticket])[1].minus_dense.mean == pytest.approx(0.2)


def test_gains_over_dense_are_paired_by_replicate():
    """Gains 0.02, 0.03, 0.04: mean 0.03, deviation 0.01, t(0.975, 2) = 4.303 from a printed table."""
    dense = [level(1, 0, 0.90), level(2, 0, 0.80), level(3, 0, 0.85)]
    gain = summarise([*dense, level(1, 1, 0.92), level(2, 1, 0.83), level(3, 1, 0.89)])[1].minus_dense
    assert gain.mean == pytest.approx(0.03)
    assert gain.high - gain.mean == pytest.approx(4.303 * 0.01 / 3**0.5, abs=1e-5)
