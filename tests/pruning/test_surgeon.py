import torch

from ticketlab.pruning.surgeon import compensated


def test_the_others_make_up_for_what_is_removed():
    # two inputs that are always alike: what one weight loses the other gives
    moments = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0001, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    weight = torch.tensor([[1.0, 2.0, 5.0], [4.0, 1.0, 3.0]])
    found = compensated(weight, torch.tensor([[True, False, True], [True, True, True]]), moments)
    torch.testing.assert_close(found, torch.tensor([[3.0, 0.0, 5.0], [4.0, 1.0, 3.0]]))
    assert torch.equal(found[1], weight[1]) and found.dtype == torch.float32


def test_the_answer_is_that_of_least_squares():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 8, dtype=torch.float64, generator=generator)
    weight = torch.randn(3, 2, 2, 2, dtype=torch.float64, generator=generator)
    kept = torch.rand(3, 2, 2, 2, generator=generator) < 0.5
    kept[2] = False
    found = compensated(weight, kept, inputs.T @ inputs)
    assert not found[~kept].any()
    for unit in (0, 1):
        places = kept[unit].flatten()
        wanted = inputs @ weight[unit].flatten()
        best = torch.linalg.lstsq(inputs[:, places], wanted.unsqueeze(1)).solution.squeeze(1)
        torch.testing.assert_close(found[unit].flatten()[places], best)
