import math

import pytest
import torch
from scipy.integrate import quad
from torch import nn

from ticketlab.recipe import SparsifySection
from ticketlab.training.gates import HardConcrete, Variational, add_gates_, gates_of, through_gates, without_gates
from ticketlab.training.sparsify import make_sparsify
from ticketlab.training.trainable import make_trainable


def test_gates_in_evaluation_are_the_papers_formula():
    """clip(sigmoid(log α) · 1.2 − 0.1, 0, 1): closed below log(1/11), open above log 11, at 0 one half."""
    numbers = torch.tensor([0.0, math.log(1 / 11) - 0.01, math.log(11) + 0.01, math.log(3)])
    left = HardConcrete.left(torch.tensor([2.0, -2.0, -2.0, 2.0]), numbers)
    torch.testing.assert_close(left, torch.tensor([1.0, 0.0, -2.0, 2 * (0.75 * 1.2 - 0.1)]))
    assert not left[1].signbit(), "+0.0"


@pytest.mark.parametrize("log_alpha", [-2.0, 0.0, 1.5])
def test_the_l0_penalty_is_the_share_of_draws_that_are_not_closed(log_alpha):
    torch.manual_seed(0)
    gate = HardConcrete(torch.ones(100_000), log_alpha)
    drawn = gate(torch.ones(100_000))
    assert drawn.min() == 0 and drawn.max() == 1, "exactly closed and exactly open ones"
    expected = gate.penalty(torch.ones(100_000)).item() / 100_000
    assert abs(float((drawn > 0).double().mean()) - expected) < 0.005


def test_the_kl_term_is_the_divergence_from_a_log_uniform_prior():
    """KL = −½ log α + E_{ε ~ N(1, α)} log|ε| + constant (Molchanov, Ashukha & Vetrov 2017, equation 12)."""

    def by_integration(alpha):
        density = lambda e: math.exp(-((e - 1) ** 2) / (2 * alpha)) / math.sqrt(2 * math.pi * alpha)  # noqa: E731
        spread = 12 * math.sqrt(alpha)
        mean, _ = quad(lambda e: math.log(abs(e)) * density(e), 1 - spread, 1 + spread, points=[0, 1], limit=500)
        return mean - 0.5 * math.log(alpha)

    def ours(alpha):
        gate = Variational(torch.ones(1, dtype=torch.float64), math.log(alpha))
        return gate.penalty(torch.ones(1, dtype=torch.float64)).item()

    for one, other in ((0.1, 1.0), (1.0, 5.0), (0.1, 20.0)):
        assert ours(one) - ours(other) == pytest.approx(by_integration(one) - by_integration(other), abs=0.03)


def test_weights_that_are_noise_alone_go():
    """log α = log σ² − log w² > 3: with σ² = 1, |w| < e^−1.5 = 0.223."""
    left = Variational.left(torch.tensor([0.22, 0.23, -0.22, -0.23]), torch.zeros(4))
    assert left.tolist() == [0.0, pytest.approx(0.23), 0.0, pytest.approx(-0.23)]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 3), (4,)),
        (nn.Conv1d(2, 3, 3), (2, 6)),
        (nn.Conv2d(2, 3, 2, stride=2, padding=1), (2, 4, 4)),
        (nn.Conv3d(1, 2, 2), (1, 3, 2, 2)),
    ],
)
def test_noise_has_the_variance_of_noisy_weights(layer, shape):
    """The same moments as with weights w + σ ε drawn for each of many copies."""
    torch.manual_seed(0)
    model = nn.Sequential(layer)
    weight, image = layer.weight.detach().clone(), torch.randn(1, *shape)
    add_gates_(model, ["0.weight"], "variational_dropout", 0.5)
    [gate] = gates_of(model).values()
    nn.init.uniform_(gate.numbers, -3, -1)
    with torch.no_grad():
        outputs = model(image.expand(20_000, *shape))
        deviations = gate.numbers.exp().sqrt()
        plain = nn.Sequential(type(layer)(**_made(layer)))
        plain.load_state_dict(without_gates(model.state_dict()))
        drawn = []
        for _ in range(4000):
            plain[0].weight.copy_(weight + deviations * torch.randn_like(weight))
            drawn.append(plain(image)[0])
        expected = torch.stack(drawn)
    torch.testing.assert_close(outputs.mean(0), expected.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(outputs.var(0), expected.var(0), atol=0.05, rtol=0.15)


def _made(layer):
    if isinstance(layer, nn.Linear):
        return {"in_features": layer.in_features, "out_features": layer.out_features}
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding")
    return {name: getattr(layer, name) for name in names}


@pytest.mark.parametrize("kind", ["l0", "variational_dropout"])
def test_what_gates_leave_is_what_the_network_computes_with(kind):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    start = {name: value.clone() for name, value in plain.state_dict().items()}
    names = ["0.weight", "2.weight"]
    net = make_trainable(plain, start, {name: start[name].abs() >= 0 for name in names}, torch.device("cpu"))
    made = make_sparsify(SparsifySection(kind=kind), net, names)
    assert made.products == dict.fromkeys(names, 1 if kind == "l0" else 2)
    for gate in gates_of(net.model).values():
        nn.init.uniform_(gate.numbers, -4, 4)
    net.model.eval()
    left = through_gates(net.model, net.model.state_dict())
    assert left.keys() == start.keys() and all((left[name] == 0).any() and left[name].any() for name in names)
    plain.load_state_dict(left)
    images = torch.randn(3, 6)
    assert torch.equal(net.model(images), plain(images))
    unchanged = without_gates(net.model.state_dict())
    assert all(torch.equal(unchanged[name], value) for name, value in start.items())
    assert {*map(id, net.parameters())} == {id(p) for n, p in net.model.named_parameters() if "numbers" not in n}
    assert made.point()["gates_open/0.weight"] == float((left["0.weight"] != 0).double().mean())


def test_a_step_of_gates_is_adam_on_loss_and_penalty():
    """The first step of Adam is its learning rate against the sign of the gradient, which is written out here."""
    weight = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    net = make_trainable(
        nn.Sequential(nn.Linear(2, 1, bias=False, dtype=torch.float64)),
        {"0.weight": weight},
        {"0.weight": weight != 0},
        torch.device("cpu"),
    )
    made = make_sparsify(SparsifySection(kind="l0", strength=0.3, gate_lr=0.1, probability=0.2), net, ["0.weight"])
    [gate] = gates_of(net.model).values()
    images = torch.tensor([[3.0, 1.0]], dtype=torch.float64)
    torch.manual_seed(1)
    loss = net.model(images).sum()
    loss.backward()
    [parameter] = net.parameters()
    torch.manual_seed(1)
    uniform = torch.rand(1, 2, dtype=torch.float64)
    sharp = torch.sigmoid((uniform.logit() + math.log(4)) * 1.5)  # log((1 − 0.2) / 0.2)
    drawn = (sharp * 1.2 - 0.1).clamp(0, 1)
    torch.testing.assert_close(parameter.grad, images * drawn)  # ∂L/∂w = x · z
    inside = ((drawn > 0) & (drawn < 1)).double()
    by_loss = images * weight * inside * 1.2 * sharp * (1 - sharp) * 1.5
    torch.testing.assert_close(gate.numbers.grad, by_loss)
    probability = torch.sigmoid(torch.tensor(math.log(4) + 2 / 3 * math.log(11), dtype=torch.float64))
    whole = by_loss + 0.3 * probability * (1 - probability)
    made.after_()
    torch.testing.assert_close(gate.numbers.detach(), math.log(4) - 0.1 * whole.sign())
    assert gate.numbers.grad is None


def test_variational_dropout_draws_the_weights_themselves_too():
    """∂KL/∂w through log α = log σ² − log w²: the derivative of the formula, −2/w of that by log α."""
    weight = torch.tensor([[0.5, -0.02]], dtype=torch.float64)
    layer = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    net = make_trainable(nn.Sequential(layer), {"0.weight": weight}, {"0.weight": weight != 0}, torch.device("cpu"))
    made = make_sparsify(SparsifySection(kind="variational_dropout", strength=0.7), net, ["0.weight"])
    [gate] = gates_of(net.model).values()
    with torch.no_grad():
        gate.numbers.copy_(torch.tensor([[-3.0, -6.0]]))
    [parameter] = net.parameters()
    made.after_()
    for at, (w, number) in enumerate(((0.5, -3.0), (-0.02, -6.0))):
        log_alpha = number - math.log(w * w)
        s = 1 / (1 + math.exp(-(1.87320 + 1.48695 * log_alpha)))
        by_log_alpha = -0.63576 * 1.48695 * s * (1 - s) - 0.5 / (1 + math.exp(log_alpha))
        assert float(parameter.grad[0, at]) == pytest.approx(0.7 * by_log_alpha * -2 / w, rel=1e-5)


def test_zero_weights_and_dark_images_have_finite_gradients():
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    model = nn.Sequential(layer)
    net = make_trainable(model, model.state_dict(), {"0.weight": layer.weight == 0}, torch.device("cpu"))
    made = make_sparsify(SparsifySection(kind="variational_dropout"), net, ["0.weight"])
    [gate] = gates_of(net.model).values()
    net.model(torch.zeros(4, 3)).square().sum().backward()
    assert gate.numbers.grad.isfinite().all()
    made.after_()
    assert gate.numbers.isfinite().all() and all(p.grad.isfinite().all() for p in net.parameters())
