"""ε of Gaussian noise against published numbers and a root found another way."""

import math

import pytest

from ticketlab.federate.privacy import epsilon


@pytest.mark.parametrize(
    ("noise", "releases", "known"),
    [(1.0, 1, 4.3772), (1.0, 10, 17.8566), (4.0, 10, 3.3414)],
)
def test_known_values_at_delta_1e_5(noise, releases, known):
    assert epsilon(noise, releases, 1e-5) == pytest.approx(known, abs=1e-4)


def delta_of(noise, value):
    """δ of one Gaussian mechanism at ε, by integrating max(0, p − e^ε q) over a fine grid: the definition itself."""
    step, total = 1e-3, 0.0
    for index in range(int(-30 * noise / step), int(30 * noise / step)):
        x = index * step
        p = math.exp(-((x - 1) ** 2) / (2 * noise**2))
        q = math.exp(-(x**2) / (2 * noise**2))
        total += max(0.0, p - math.exp(value) * q) * step / (noise * math.sqrt(2 * math.pi))
    return total


@pytest.mark.parametrize(("noise", "delta"), [(1.0, 1e-5), (2.0, 1e-3), (0.7, 1e-4)])
def test_the_definition_gives_the_delta_back(noise, delta):
    assert delta_of(noise, epsilon(noise, 1, delta)) == pytest.approx(delta, rel=1e-3)


def test_more_releases_cost_more_and_more_noise_less():
    of_rounds = [epsilon(1.5, releases, 1e-5) for releases in range(6)]
    assert of_rounds[0] == 0
    assert of_rounds == sorted(set(of_rounds))
    of_noise = [epsilon(noise, 3, 1e-5) for noise in (0.5, 1, 2, 4, 8)]
    assert of_noise == sorted(set(of_noise), reverse=True)
    assert epsilon(1.0, 1, 1e-6) > epsilon(1.0, 1, 1e-5)


def test_four_releases_cost_what_one_with_half_the_noise_does():
    assert epsilon(2.0, 4, 1e-5) == pytest.approx(epsilon(1.0, 1, 1e-5), abs=1e-8)


@pytest.mark.parametrize("noise", [1e-1, 1e-2, 1e-3, 1e-4])
def test_tiny_noise_overflows_nothing_and_is_near_what_the_tail_says(noise):
    # far out q is nothing: δ = Φ(1/2σ − εσ) − rest, so ε lies between (1/2σ)/σ and (1/2σ + 5)/σ
    found = epsilon(noise, 1, 1e-5)
    assert 0.5 / noise**2 < found < (0.5 / noise + 5) / noise


def test_noise_so_large_that_even_epsilon_0_holds_costs_nothing():
    assert epsilon(1e6, 1, 1e-5) == 0
