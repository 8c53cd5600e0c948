"""What differential privacy costs: ε of rounds with Gaussian noise, exactly."""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.stats import norm


def epsilon(noise: float, releases: int, delta: float) -> float:
    """ε at this δ of so many releases whose noise has `noise` times the sensitivity's size; 0 for none.

    As many Gaussian mechanisms are exactly one with noise / √releases (Dong et al. 2022, corollary 3.3), whose privacy
    is known exactly (Balle & Wang 2018, theorem 8). Two neighbours differ by one client more or less. No credit is
    given for clients that were not drawn.
    """
    if not releases:
        return 0.0
    size = noise / math.sqrt(releases)
    if _delta(size, 0.0) <= delta:
        return 0.0
    high = 1.0
    while _delta(size, high) > delta:
        high *= 2
    return float(brentq(lambda value: _delta(size, value) - delta, 0.0, high, xtol=1e-9))


def _delta(size: float, value: float) -> float:
    """δ of one Gaussian mechanism at ε = `value`, its noise `size` times the sensitivity."""
    left = norm.cdf(1 / (2 * size) - value * size)
    return float(left - math.exp(min(value + norm.logcdf(-1 / (2 * size) - value * size), 700.0)))
