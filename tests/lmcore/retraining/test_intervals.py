"""Intervals hold what they promise, for few units and many."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore.retraining.intervals import Difference, pooled, student_quantile

TABLE = [(1, 0.975, 12.7062), (2, 0.975, 4.3027), (5, 0.975, 2.5706), (10, 0.975, 2.2281), (30, 0.9, 1.3104)]


@pytest.mark.parametrize(("degrees", "level", "quantile"), [*TABLE, (4, 0.9, 1.5332), (99, 0.99, 2.3646)])
def test_students_quantiles_are_those_of_tables(degrees: int, level: float, quantile: float) -> None:
    assert student_quantile(level, degrees) == pytest.approx(quantile, abs=1e-4)


def test_many_degrees_are_the_normal_distribution() -> None:
    assert student_quantile(0.975, 1e7) == pytest.approx(1.95996, abs=1e-5)


@given(st.floats(0.3, 500), st.floats(0.6, 0.995))
def test_a_quantile_grows_with_the_level_and_falls_with_the_degrees(degrees: float, level: float) -> None:
    assert student_quantile(level, degrees) < student_quantile(level + 0.004, degrees)
    assert student_quantile(level, degrees + 1) < student_quantile(level, degrees)


def test_for_equal_sizes_it_is_the_textbooks_interval() -> None:
    draw = np.random.default_rng(0)
    bits = draw.normal(0.1, 1, 12) * 100
    found = Difference.of_units(bits, np.full(12, 100.0))
    assert found.value == pytest.approx(bits.mean() / 100)
    assert found.degrees == pytest.approx(11)
    assert found.error == pytest.approx(bits.std(ddof=1) / 100 / math.sqrt(12))
    assert found.high(0.975) - found.value == pytest.approx(2.2010 * found.error, abs=1e-4)


def test_one_unit_proves_nothing_alone_and_equal_models_differ_by_nothing() -> None:
    alone = Difference.of_units(np.array([5.0]), np.array([10.0]))
    assert (alone.low(0.9), alone.value, alone.high(0.9)) == (-math.inf, 0.5, math.inf)
    equal = Difference.of_units(np.zeros(7), np.arange(1.0, 8))
    assert (equal.low(0.9), equal.high(0.9), equal.power(0, 0.975)) == (0, 0, 1)


@pytest.mark.parametrize("units", [5, 20, 100])
def test_the_true_difference_is_above_the_interval_as_often_as_promised(units: int) -> None:
    """Nominal: 2.5 % on either side. Sizes from 1 to 500, heavy tails."""
    draw, above, below, rounds = np.random.default_rng(units), 0, 0, 2_000
    for _ in range(rounds):
        sizes = np.exp(draw.uniform(0, math.log(500), units))
        found = Difference.of_units(sizes * (0.1 + draw.standard_t(5, units)), sizes)
        above += found.high(0.975) < 0.1
        below += found.low(0.975) > 0.1
    assert 0.008 <= above / rounds <= 0.037
    assert 0.008 <= below / rounds <= 0.037


def test_one_unit_of_a_source_is_judged_by_the_spread_of_all_sources() -> None:
    draw, sizes = np.random.default_rng(1), np.full(50, 100.0)
    calm = [(draw.normal(0, 0.01, 50) * sizes, sizes) for _ in range(3)]
    *others, ruined = pooled([*calm, (np.array([8.0]), np.array([100.0]))])
    assert ruined.value == pytest.approx(0.08)
    assert ruined.low(0.99) > 0.04
    assert all(each.low(0.99) < 0 < each.high(0.99) for each in others)


def test_power_says_how_often_an_equal_model_passes() -> None:
    draw, passed, rounds, limit = np.random.default_rng(2), 0, 1_000, 0.005
    found = Difference.of_units(draw.normal(0, 0.02, 50) * 100, np.full(50, 100.0))
    for _ in range(rounds):
        passed += Difference.of_units(draw.normal(0, 0.02, 50) * 100, np.full(50, 100.0)).high(0.975) <= limit
    assert found.power(limit, 0.975) == pytest.approx(passed / rounds, abs=0.15)
    more = math.ceil(found.units_for(0.8, limit, 0.975))
    assert more > 50
    assert found.units_for(0.8, 0, 0.975) == math.inf
