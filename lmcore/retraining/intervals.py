"""Differences of two models over units of text, and confidence intervals of them.

A unit is what the split draws into the held-out set by one throw: a document. With the bits B and the bytes W of each
unit, theta = sum B / sum W is the difference in bits per byte, h = W / sum W a unit's share, and r = B - theta W its
residual. The variance is the CR2 estimate (Bell and McCaffrey 2002), sum of r^2 / (1 - 2 h + H) over (sum W)^2 with
H = sum h^2, and the interval is Student's with 1/H - 1 degrees of freedom: the effective number of units less one.
Nothing is drawn, so the same scores give the same interval.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_NORMAL = NormalDist()
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


@dataclass(frozen=True)
class Difference:
    """A difference in bits per byte and its standard error."""

    value: float
    error: float
    """Infinite for a single unit."""
    degrees: float
    """Effective number of units less one."""
    units: int

    @classmethod
    def of_units(cls, bits: Floats, sizes: Floats) -> "Difference":
        """The difference over units: ``bits`` (n) are differences of the two models, ``sizes`` (n) bytes above 0."""
        total = float(sizes.sum())
        value, shares = float(bits.sum()) / total, sizes / total
        concentration = float((shares**2).sum())
        if len(bits) == 1:
            return cls(value, math.inf, 0.0, 1)
        squares = (bits - value * sizes) ** 2 / (1 - 2 * shares + concentration)
        return cls(value, math.sqrt(squares.sum()) / total, 1 / concentration - 1, len(bits))

    def low(self, level: float) -> float:
        """The lower end of the one-sided interval of a level such as 0.975."""
        return self.value - self._reach(level)

    def high(self, level: float) -> float:
        """The upper end of the one-sided interval of a level such as 0.975."""
        return self.value + self._reach(level)

    def power(self, limit: float, level: float) -> float:
        """The probability that the upper end of an equal model is at most ``limit``.

        The error is taken for known and the difference for normal, so it is an estimate.
        """
        if self.error == 0:
            return float(limit >= 0)
        return _NORMAL.cdf(limit / self.error - _NORMAL.inv_cdf(level))

    def units_for(self, power: float, limit: float, level: float) -> float:
        """The number of such units that gives a power; infinite for a single unit or a limit of 0."""
        wanted = limit / (_NORMAL.inv_cdf(level) + _NORMAL.inv_cdf(power))
        return self.units * (self.error / wanted) ** 2 if wanted > 0 else math.inf

    def _reach(self, level: float) -> float:
        if self.error == 0:
            return 0.0
        return math.inf if math.isinf(self.error) else self.error * student_quantile(level, self.degrees)


def pooled(parts: Iterable[tuple[Floats, Floats]]) -> list[Difference]:
    """The difference of each part, with one standard deviation of units for all: one unit is enough for a part.

    Parts are (bits, sizes) as for ``Difference.of_units``.
    """
    alone = [(Difference.of_units(bits, sizes), float((sizes**2).sum()), float(sizes.sum())) for bits, sizes in parts]
    several = [(each, squares, total) for each, squares, total in alone if each.units > 1]
    weights, degrees = sum(squares for _, squares, _ in several), sum(each.degrees for each, *_ in several)
    residuals = sum((each.error * total) ** 2 for each, _, total in several)
    deviation = math.sqrt(residuals / weights) if several else math.inf
    return [
        replace(each, error=deviation * math.sqrt(squares) / total, degrees=degrees) for each, squares, total in alone
    ]


@lru_cache(maxsize=1024)
def student_quantile(level: float, degrees: float) -> float:
    """The quantile of Student's t distribution for a level of at least 0.5 and any positive degrees of freedom.

    Found by bisection of the distribution function. With t = sqrt(n) tan(u) its density is a constant times
    cos(u)^(n-1), which is integrated by Gauss and Legendre's rule.
    """
    constant = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)

    def level_at(angle: float) -> float:
        values = np.cos(angle * (_NODES + 1) / 2) ** (degrees - 1)
        return 0.5 + constant * angle / 2 * float(_WEIGHTS @ values)

    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if level_at(middle) < level else (low, middle)
    return math.sqrt(degrees) * math.tan(low)
