import pytest
import torch

from ticketlab.errors import RunError
from ticketlab.pruning.masks import masked, pack, unpack
from ticketlab.runs.files import write_tensors
from ticketlab.runs.ticket import Ticket, digest, read_ticket, write_ticket

MASK = {"a.weight": torch.rand(7, 5) < 0.3, "b.weight": torch.rand(3, 3) < 0.5}
WEIGHTS = {"a.weight": torch.randn(7, 5), "a.bias": torch.randn(7), "b.weight": torch.randn(3, 3)}


def test_bits_are_packed_first_weight_highest():
    mask = torch.tensor([[True, False, False, False, False], [False, False, True, True, False]])
    assert pack(mask).tolist() == [0b10000001, 0b10000000]
    assert torch.equal(unpack(pack(mask), [2, 5]), mask)


@pytest.mark.parametrize("shape", [[1], [8], [9], [3, 3, 3], [2, 0]])
def test_any_mask_comes_back(shape):
    mask = torch.rand(shape) < 0.5
    assert torch.equal(unpack(pack(mask), shape), mask)


def test_a_ticket_with_weights_comes_back_bit_for_bit_and_holds_survivors_only(tmp_path):
    ticket = Ticket(MASK, masked(WEIGHTS, MASK), {"level": 3})
    write_ticket(tmp_path / "t", ticket)
    again = read_ticket(tmp_path / "t")
    assert again.facts == {"level": 3}
    assert all(torch.equal(again.mask[name], kept) for name, kept in MASK.items())
    assert again.weights is not None and ticket.weights is not None
    assert all(torch.equal(again.weights[name], value) for name, value in ticket.weights.items())
    big = {"w.weight": torch.rand(1000, 1000) < 0.01}
    write_ticket(tmp_path / "big", Ticket(big, masked({"w.weight": torch.randn(1000, 1000)}, big), {}))
    assert (tmp_path / "big").stat().st_size < 1_000_000 // 8 + int(big["w.weight"].sum()) * 4 + 1000


def test_a_ticket_drawn_by_a_seed_is_a_bit_per_weight(tmp_path):
    mask = {"fc1.weight": torch.rand(300, 784) < 0.2, "fc2.weight": torch.rand(100, 300) < 0.2}
    write_ticket(tmp_path / "t", Ticket(mask, None, {"init_seed": 5, "digest": "00"}))
    assert (tmp_path / "t").stat().st_size < 265_200 / 8 + 1000
    assert read_ticket(tmp_path / "t").weights is None


def test_another_file_or_version_is_refused(tmp_path):
    write_tensors(tmp_path / "t", {"x": torch.zeros(1)}, {"format": "ticketlab-ticket", "version": 99, "shapes": {}})
    with pytest.raises(RunError, match="not a ticketlab-ticket file of version 1"):
        read_ticket(tmp_path / "t")


def test_the_digest_sees_names_and_bits_but_not_order():
    first = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
    assert digest(first) == digest({"b": first["b"], "a": first["a"]})
    assert digest(first) != digest({"a": torch.tensor([1.0, 2.0]), "c": torch.tensor([3.0])})
    assert digest(first) != digest({"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([3.0])})
