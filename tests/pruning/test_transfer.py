import pytest
import torch

from ticketlab.errors import PruningError
from ticketlab.pruning.transfer import carry_over


def source():
    weights = {
        "fc.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        "fc.bias": torch.tensor([5.0, 6.0]),
        "output.weight": torch.tensor([[7.0, 8.0], [9.0, 10.0]]),
        "output.bias": torch.tensor([11.0, 12.0]),
    }
    mask = {
        "fc.weight": torch.tensor([[True, False], [False, True]]),
        "output.weight": torch.tensor([[True, False], [True, True]]),
    }
    return weights, mask


def fresh(features=2, classes=2):
    shapes = {"fc.weight": (2, features), "fc.bias": (2,), "output.weight": (classes, 2), "output.bias": (classes,)}
    return {name: torch.full(shape, -1.0) for name, shape in shapes.items()}


def test_what_fits_is_taken_whole_with_its_classifier():
    weights, mask = source()
    dense, kept = carry_over(weights, mask, fresh())
    assert all(torch.equal(dense[name], weights[name]) for name in weights)
    assert all(torch.equal(kept[name], mask[name]) for name in mask)
    dense["fc.weight"].zero_()
    assert weights["fc.weight"].sum() == 10


def test_for_another_number_of_classes_the_output_layer_is_new_and_dense():
    weights, mask = source()
    dense, kept = carry_over(weights, mask, fresh(classes=3))
    assert dense["output.weight"].tolist() == [[-1.0, -1.0]] * 3
    assert dense["output.bias"].tolist() == [-1.0] * 3
    assert kept["output.weight"].tolist() == [[True, True]] * 3
    assert dense["fc.weight"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert kept["fc.weight"].tolist() == [[True, False], [False, True]]


def test_another_input_is_refused_with_both_shapes():
    weights, mask = source()
    with pytest.raises(PruningError, match=r"^fc\.weight is 2×2 there and 2×3 here$"):
        carry_over(weights, mask, fresh(features=3))


def test_another_network_is_refused_with_what_is_absent():
    weights, mask = source()
    other = {**fresh(), "norm.steps": torch.tensor(0)}
    del other["fc.bias"]
    with pytest.raises(PruningError, match=r"fc\.bias is 2 there and absent here; norm\.steps is absent there and a n"):
        carry_over(weights, mask, other)
