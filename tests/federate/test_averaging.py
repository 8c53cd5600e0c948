import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ticketlab.federate.averaging import overlap_mean, weighted_mean


def test_a_weighted_mean_by_hand():
    states = [
        {"w": torch.tensor([1.0, 3.0]), "count": torch.tensor(5)},
        {"w": torch.tensor([5.0, 3.0]), "count": torch.tensor(9)},
    ]
    found = weighted_mean(states, [1, 3])
    assert found["w"].tolist() == [4.0, 3.0]
    assert found["count"].item() == 9


def test_an_overlap_mean_by_hand():
    before = {"w": torch.tensor([7.0, 7.0, 7.0, 7.0]), "b": torch.tensor([0.0])}
    states = [
        {"w": torch.tensor([1.0, 2.0, 0.0, 0.0]), "b": torch.tensor([1.0])},
        {"w": torch.tensor([4.0, 0.0, 6.0, 0.0]), "b": torch.tensor([4.0])},
    ]
    masks = [{"w": torch.tensor([True, True, False, False])}, {"w": torch.tensor([True, False, True, False])}]
    found = overlap_mean(before, states, masks, [1, 2])
    assert found["w"].tolist() == [3.0, 2.0, 6.0, 7.0]
    assert found["b"].tolist() == [3.0]
    assert overlap_mean(before, states, masks, [1, 1])["w"].tolist() == [2.5, 2.0, 6.0, 7.0]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), clients=st.integers(1, 5))
def test_the_means_equal_loops_over_single_weights(seed, clients):
    generator = torch.Generator().manual_seed(seed)
    states = [{"w": torch.randn(3, 4, generator=generator)} for _ in range(clients)]
    masks = [{"w": torch.rand(3, 4, generator=generator) < 0.5} for _ in range(clients)]
    examples = torch.randint(1, 50, (clients,), generator=generator).tolist()
    before = {"w": torch.randn(3, 4, generator=generator)}
    plain, overlapping = weighted_mean(states, examples)["w"], overlap_mean(before, states, masks, examples)["w"]
    for row in range(3):
        for column in range(4):
            values = [float(state["w"][row, column]) for state in states]
            expected = sum(n * v for n, v in zip(examples, values, strict=True)) / sum(examples)
            assert plain[row, column].item() == pytest.approx(expected, abs=1e-6)
            held = [(n, v) for n, v, m in zip(examples, values, masks, strict=True) if m["w"][row, column]]
            kept = sum(n * v for n, v in held) / sum(n for n, _ in held) if held else float(before["w"][row, column])
            assert overlapping[row, column].item() == pytest.approx(kept, abs=1e-6)


def test_a_shared_mask_stays_exactly():
    mask = torch.rand(50, 20) < 0.1
    states = [{"w": torch.randn(50, 20) * mask} for _ in range(3)]
    assert bool((weighted_mean(states, [3, 5, 7])["w"][~mask] == 0).all())
