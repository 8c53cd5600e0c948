import pytest
import torch

from ticketlab.pruning.sign_flips import BLOCK, SignFlips


def walk(steps, size=7, seed=0):
    """A random walk of weights; the tensor is changed in place."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(size, generator=generator)
    path = [weight.clone()]
    for _ in range(steps):
        path.append(path[-1] + torch.randn(size, generator=generator))
    return path


def count(path, **options):
    weight = path[0].clone()
    flips = SignFlips({"w": weight}, most=len(path), **options)
    for now in path[1:]:
        weight.copy_(now)
        flips.update_()
    return flips


def test_flips_are_counted_as_by_hand():
    weight = torch.tensor([[1.0, -1.0], [2.0, 0.5]])
    flips = SignFlips({"w": weight}, most=10)
    for values in ([[-1.0, -2.0], [2.0, 0.0]], [[1.0, -3.0], [2.0, 0.0]], [[1.0, 3.0], [2.0, -0.1]]):
        weight.copy_(torch.tensor(values))
        flips.update_()
    # zero counts as positive: 0.5 → 0 → 0 is no flip, 0 → −0.1 is one
    assert flips.counts()["w"].tolist() == [2, 1, 0, 1]
    assert flips.recent()["w"].tolist() == [2, 1, 0, 1]


def test_the_mask_of_the_last_step_says_which_weights_flipped():
    one, other = torch.tensor([1.0, 1.0]), torch.tensor([-1.0])
    flips = SignFlips({"a": one, "b": other}, most=3)
    one[1], other[0] = -1.0, 1.0
    assert flips.update_().tolist() == [0, 1, 1]
    assert flips.update_().tolist() == [0, 0, 0]


def test_counts_survive_the_limit_of_a_byte():
    weight = torch.tensor([1.0, 1.0, -1.0])
    flips = SignFlips({"w": weight}, most=3 * BLOCK)
    for index in range(3 * BLOCK - 1):
        weight[0].neg_()
        if index % 2:
            weight[2].neg_()
        flips.update_()
    assert flips.counts()["w"].tolist() == [764, 0, 382]


@pytest.mark.parametrize(("most", "kind"), [(2**15 - 1, torch.int16), (2**15, torch.int32)])
def test_totals_use_the_smallest_type_that_no_training_can_overflow(most, kind):
    assert SignFlips({"w": torch.ones(2)}, most=most).counts()["w"].dtype == kind


def test_with_a_half_life_old_flips_count_less():
    path = walk(200)
    flips = count(path, half_life=32)
    signs = torch.stack(path) < 0
    happened = (signs[1:] ^ signs[:-1]).double()
    # blocks of 32 / 16 = 2 steps: a flip loses half its weight 32 steps after its block's end
    expected = torch.zeros(7, dtype=torch.float64)
    for index in range(0, 200, 2):
        expected = expected * 2 ** (-2 / 32) + happened[index : index + 2].sum(dim=0)
    assert flips.recent()["w"].tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert flips.counts()["w"].tolist() == happened.sum(dim=0).tolist()


@pytest.mark.parametrize("half_life", [None, 50])
@pytest.mark.parametrize("cut", [0, 1, 100, 299])
def test_counting_taken_up_again_goes_on_bit_for_bit(half_life, cut):
    path = walk(300)
    whole, first = count(path, half_life=half_life), count(path[: cut + 1], half_life=half_life)
    weight = path[cut].clone()
    again = SignFlips({"w": weight}, most=len(path), half_life=half_life)
    again.restore_({name: value.clone() for name, value in first.state().items()})
    for now in path[cut + 1 :]:
        weight.copy_(now)
        again.update_()
    assert all(torch.equal(again.state()[name], value) for name, value in whole.state().items())


def test_looking_does_not_change_what_is_counted():
    path = walk(120)
    plain = count(path, half_life=40)
    weight = path[0].clone()
    looked_at = SignFlips({"w": weight}, most=len(path), half_life=40)
    for now in path[1:]:
        weight.copy_(now)
        looked_at.update_()
        looked_at.recent(), looked_at.counts()
    assert torch.equal(looked_at.recent()["w"], plain.recent()["w"])


def test_a_change_by_other_hands_is_no_flip():
    weight = torch.tensor([-1.0, 1.0])
    flips = SignFlips({"w": weight}, most=5)
    weight[0] = 0.0  # removed
    flips.look_()
    flips.update_()
    assert flips.counts()["w"].tolist() == [0, 0]


def test_counting_goes_on_from_counts_made_earlier():
    weight = torch.tensor([1.0, 1.0])
    flips = SignFlips({"w": weight}, most=10, half_life=160)
    flips.go_on_from_({"w": torch.tensor([3, 0], dtype=torch.int16)}, {"w": torch.tensor([1.5, 0.0])})
    weight[1] = -1.0
    flips.update_()
    assert flips.counts()["w"].tolist() == [3, 1]
    # one step into a block of ten: the old count fades, the new one is whole
    assert flips.recent()["w"].tolist() == pytest.approx([1.5 * 2 ** (-1 / 160), 1.0])
