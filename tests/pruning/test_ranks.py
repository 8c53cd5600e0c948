import torch

from ticketlab.pruning.allocate import Pool
from ticketlab.pruning.ranks import ranks


def test_a_rank_is_the_share_below_with_equal_ones_counted_half():
    values = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0, 3.0, 9.0])}
    mask = {"a": torch.tensor([True, True]), "b": torch.tensor([True, True, False])}
    found = ranks(values, mask, [Pool(("a", "b"), 0.5)])
    # of 1 2 3 3: 1 → ½/4, 2 → 1½/4, both 3 → (2 + 1)/4; the removed 9 is nobody's rival
    assert found["a"].tolist() == [0.75, 0.125]
    assert found["b"].tolist() == [0.375, 0.75, 0.0]


def test_pools_are_ranked_apart():
    values = {"a": torch.tensor([5.0, 6.0]), "b": torch.tensor([-1.0, -2.0])}
    mask = {name: torch.ones(2, dtype=torch.bool) for name in values}
    found = ranks(values, mask, [Pool(("a",), 0.5), Pool(("b",), 0.5)])
    assert found["a"].tolist() == [0.25, 0.75]
    assert found["b"].tolist() == [0.75, 0.25]
