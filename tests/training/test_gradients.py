"""Evidence from examples, against formulas and brute force in double precision."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from ticketlab.data.batches import Examples
from ticketlab.errors import PruningError
from ticketlab.pruning.criteria import Evidence, criteria
from ticketlab.training.gradients import (
    BATCH,
    DAMPING,
    MEASURED,
    TEMPERATURE,
    Probe,
    input_moments,
    measure,
    passes,
)  # fmt: skip

ONE = torch.ones(1, 1, 1)


def examples(count, *shape, classes=3):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, *shape, generator=generator)
    return Examples(images, torch.randint(0, classes, (count,), generator=generator), ONE, 0 * ONE)


def mlp():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))


def conv():
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, stride=2), nn.BatchNorm2d(3), nn.ReLU(inplace=True),
        nn.Conv2d(3, 3, 2, groups=3), nn.Flatten(), nn.Linear(3, 3),
    )  # fmt: skip


def weights_of(model):
    return [name for name, p in model.named_parameters() if p.dim() > 1]


def flat_loss(model, names, images, labels, temperature=1.0):
    """The loss as a function of all weights in one row, and where it stands; by torch.func, not by hooks."""
    state = {name: value.detach().double() for name, value in model.state_dict().items()}
    shapes = [state[name].shape for name in names]

    def loss(row):
        parts = row.split([shape.numel() for shape in shapes])
        own = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        logits = torch.func.functional_call(model, {**state, **own}, (images.double(),))
        return functional.cross_entropy(logits / temperature, labels)

    return loss, torch.cat([state[name].flatten() for name in names])


def row(found):
    return torch.cat([value.flatten() for value in found.values()])


def test_gradients_of_a_linear_network_are_errors_times_inputs():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    data = examples(BATCH + 7, 4, 1, 1)  # more than one batch
    found = MEASURED["gradient"].of(Probe(model, data, ["1.weight"]))["1.weight"]
    images = data.images.flatten(1).double()
    errors = (images @ model[1].weight.double().T + model[1].bias.double()).softmax(1)
    errors = errors - functional.one_hot(data.labels, 3)
    torch.testing.assert_close(found, errors.T @ images / len(data))


def test_hessian_gradient_products_are_those_of_the_whole_hessian():
    model, data = mlp().double(), examples(9, 4, 1, 1)
    loss, at = flat_loss(model, weights_of(model), data.images, data.labels, TEMPERATURE)
    hessian = torch.autograd.functional.hessian(loss, at)
    gradient = torch.autograd.functional.jacobian(loss, at)
    found = row(MEASURED["hessian_gradient"].of(Probe(model, data, weights_of(model))))
    torch.testing.assert_close(found, hessian @ gradient, rtol=1e-9, atol=0)


def test_curvatures_are_the_diagonal_of_the_hessian():
    model, data = mlp().double(), examples(BATCH + 5, 4, 1, 1)
    loss, at = flat_loss(model, weights_of(model), data.images, data.labels)
    expected = torch.autograd.functional.hessian(loss, at).diagonal()
    found = row(MEASURED["curvature"].of(Probe(model, data, weights_of(model))))
    torch.testing.assert_close(found, expected)
    assert (found > 0).any()


@pytest.mark.parametrize(("make", "shape"), [(mlp, (4, 1, 1)), (conv, (2, 4, 4))])
def test_squared_gradients_are_those_of_single_examples(make, shape):
    model, data = make().double().eval(), examples(7, *shape)
    expected = 0
    for at in range(len(data)):
        loss, where = flat_loss(model, weights_of(model), data.images[[at]], data.labels[[at]])
        expected = expected + torch.autograd.functional.jacobian(loss, where).square() / len(data)
    found = row(MEASURED["squared_gradient"].of(Probe(model, data, weights_of(model))))
    torch.testing.assert_close(found, expected)


def test_curvatures_of_convolutions_are_the_diagonal_of_the_hessian():
    model, data = conv().double().eval(), examples(5, 2, 4, 4)
    loss, at = flat_loss(model, weights_of(model), data.images, data.labels)
    expected = torch.autograd.functional.hessian(loss, at).diagonal()
    torch.testing.assert_close(row(MEASURED["curvature"].of(Probe(model, data, weights_of(model)))), expected)


def test_flow_goes_through_products_of_absolute_weights():
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, -2.0], [0.0, 3.0]]))
        model[3].weight.copy_(torch.tensor([[-4.0, 5.0]]))
    found = MEASURED["flow_gradient"].of(Probe(model, examples(1, 2, 1, 1), ["1.weight", "3.weight"]))
    assert found["1.weight"].tolist() == [[4.0, 4.0], [5.0, 5.0]]  # the way out of each unit
    assert found["3.weight"].tolist() == [[3.0, 3.0]]  # what comes into each unit: 1 + 2, 0 + 3


def test_the_network_is_not_changed_and_dropout_drops_nothing():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    before, data = copy.deepcopy(model.state_dict()), examples(8, 4, 1, 1)
    probe = Probe(model, data, ["2.weight", "4.weight"])
    for kind in MEASURED.values():
        assert all(torch.equal(found, kind.of(probe)[name]) for name, found in kind.of(probe).items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert next(model.parameters()).dtype == torch.float32


def test_only_what_is_needed_is_measured():
    probe = Probe(mlp(), examples(3, 4, 1, 1), ["1.weight"])
    assert list(measure(probe, {"flips", "gradient"})) == ["gradient"]
    assert measure(probe, {"flips"}) == {}
    assert (passes({"gradient"}, 100, 10), passes({"curvature"}, 100, 10), passes(set(), 100, 10)) == (100, 1000, 0)


def damped(moments):
    return moments + DAMPING * moments.diagonal().mean() * torch.eye(len(moments), dtype=torch.float64)


def test_the_surgeons_saliency_is_the_error_that_is_left_when_the_others_make_up():
    model, data = mlp(), examples(BATCH + 9, 4, 1, 1)
    probe = Probe(model, data, ["1.weight"])
    rows = data.images.flatten(1).double()
    hessian = damped(rows.T @ rows / len(rows))
    torch.testing.assert_close(input_moments(probe)["1.weight"], hessian)
    weight = model[1].weight.detach().double()
    found = criteria.find("obs")(model[1].weight.detach(), Evidence(**{
        name: values["1.weight"] for name, values in measure(probe, {"inverse_hessian"}).items()
    }))  # fmt: skip
    for unit, at in ((0, 0), (4, 3)):
        others = [place for place in range(4) if place != at]
        part = torch.linalg.solve(hessian[others][:, others], hessian[others] @ weight[unit])
        moved = -weight[unit].clone()
        moved[others] += part
        assert float(found[unit, at]) == pytest.approx(float(moved @ hessian @ moved / 2))


def test_moments_of_a_convolution_are_those_of_what_its_filters_see():
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, stride=2, bias=False))
    data = examples(6, 2, 5, 5)
    moments = input_moments(Probe(model, data, ["0.weight"]))["0.weight"]
    direction = torch.randn(3, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    outputs = functional.conv2d(data.images.double(), direction, padding=1, stride=2)
    rows = direction.flatten(1)
    measured = (rows @ moments * rows).sum(1)
    spread = DAMPING * (moments.diagonal().mean() / (1 + DAMPING)) * rows.square().sum(1)
    torch.testing.assert_close(measured, outputs.square().sum((0, 2, 3)) / len(data) + spread)


def test_layers_that_the_surgeon_cannot_treat_are_told():
    model = nn.Sequential(nn.Conv2d(2, 2, 1, groups=2))
    with pytest.raises(PruningError, match=r"0\.weight: optimal brain surgeon is for linear layers"):
        input_moments(Probe(model, examples(2, 2, 3, 3), ["0.weight"]))
