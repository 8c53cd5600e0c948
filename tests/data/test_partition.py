import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ticketlab.data.batches import Examples
from ticketlab.data.partition import dirichlet, group, iid, partitions, shards
from ticketlab.errors import DataError

LABELS = torch.arange(600) % 10


def labelled(labels, groups=None):
    """Examples of which only labels and groups matter."""
    return Examples(torch.zeros(len(labels), 1, 1, 1), labels, torch.ones(1, 1, 1), torch.zeros(1, 1, 1), groups)


EXAMPLES = labelled(LABELS)


def covers(parts, count):
    return torch.cat(parts).sort().values.tolist() == list(range(count))


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(["iid", "dirichlet", "shards"]),
    clients=st.integers(1, 12),
    seed=st.integers(0, 2**31),
)
def test_every_example_has_one_client_and_the_same_seed_gives_the_same_parts(name, clients, seed):
    find = partitions.find(name)
    options = {"least": 1} if name == "dirichlet" else {}
    parts = find(EXAMPLES, clients, seed, **options)
    assert len(parts) == clients and all(len(part) for part in parts)
    assert covers(parts, len(LABELS))
    again = find(EXAMPLES, clients, seed, **options)
    assert all(torch.equal(one, other) for one, other in zip(parts, again, strict=True))


def test_iid_sizes_differ_by_one_at_most_and_seeds_differ():
    parts = iid(labelled(torch.zeros(103)), 10, 0)
    assert sorted(map(len, parts)) == [10] * 7 + [11] * 3
    assert not torch.equal(parts[0], iid(labelled(torch.zeros(103)), 10, 1)[0])


def test_two_shards_hold_at_most_two_classes_where_shards_divide_classes():
    for part in shards(EXAMPLES, 10, 0):  # 20 shards of 30 of the 60 examples of each class
        assert len(part) == 60
        assert len(LABELS[part].unique()) <= 2


def test_a_small_alpha_concentrates_classes_and_a_large_one_spreads_them():
    def largest_share(alpha):
        parts = dirichlet(EXAMPLES, 5, 0, alpha=alpha, least=1)
        return sum(LABELS[part].bincount(minlength=10).max().item() / len(part) for part in parts) / 5

    assert largest_share(0.05) > 0.35
    assert largest_share(1000.0) < 0.14


def test_dirichlet_asks_less_of_a_part_where_an_equal_share_is_small():
    examples = labelled(torch.arange(5000) % 10)
    assert min(map(len, dirichlet(examples, 5, 0, alpha=0.1))) >= 20
    assert min(map(len, dirichlet(examples, 100, 0))) >= 5  # a tenth of 50
    with pytest.raises(DataError, match="100 clients 40 examples"):
        dirichlet(examples, 100, 0, least=40)


def test_dirichlet_leaves_the_callers_randomness_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    dirichlet(EXAMPLES, 4, 3)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: iid(labelled(LABELS[:3]), 4, 0), "3 examples are too few for 4 parts"),
        (lambda: dirichlet(EXAMPLES, 40, 0, least=20), "too few for 40 parts of 20"),
        (lambda: dirichlet(EXAMPLES, 25, 0, alpha=0.01, least=20), "no draw in 1000 gives each of 25 clients 20"),
        (lambda: dirichlet(EXAMPLES, 2, 0, alpha=0.0), "alpha must be 0.001 or more"),
        (lambda: shards(labelled(LABELS[:5]), 3, 0), "too few for 6 parts"),
    ],
)
def test_what_cannot_be_divided_is_an_error(call, message):
    with pytest.raises(DataError, match=message):
        call()


PEOPLE = labelled(torch.zeros(6), torch.tensor([3, 1, 3, 3, 7, 1]))


def test_each_group_is_a_client_in_order_of_its_number():
    assert [part.tolist() for part in group(PEOPLE, 3, 0)] == [[1, 5], [0, 2, 3], [4]]
    assert [part.tolist() for part in group(PEOPLE, 2, 9)] == [[1, 5], [0, 2, 3]]


@pytest.mark.parametrize(
    ("examples", "clients", "message"),
    [
        (PEOPLE, 4, "4 clients, but examples of 3 groups"),
        (PEOPLE, 0, "0 clients"),
        (EXAMPLES, 2, "does not tell its examples apart by person or hospital"),
    ],
)
def test_no_client_is_made_without_a_group(examples, clients, message):
    with pytest.raises(DataError, match=message):
        group(examples, clients, 0)
