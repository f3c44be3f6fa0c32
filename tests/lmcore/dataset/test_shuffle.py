"""The order of an epoch is a permutation, and a pure function."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lmcore.dataset.mixture import shuffled


@given(n=st.integers(1, 5000), seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 1000))
def test_it_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    assert np.array_equal(np.sort(shuffled(np.arange(n), n, seed, epoch)), np.arange(n))


@given(n=st.integers(1, 5000), data=st.data())
def test_any_part_is_reached_without_the_rest(n: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, n - 1))
    assert np.array_equal(shuffled(np.arange(n), n, 1, 2)[start:], shuffled(np.arange(start, n), n, 1, 2))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(shuffled(np.arange(100), 100, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_orders_stay_what_they_were() -> None:
    # A run that resumes under a newer version of this project still sees its own batches.
    assert shuffled(np.arange(12), 1000, 3, 5).tolist() == [264, 765, 794, 546, 985, 180, 566, 192, 428, 605, 618, 22]


@given(epochs=st.lists(st.integers(0, 5), min_size=1, max_size=50))
def test_every_place_may_be_of_an_epoch_of_its_own(epochs: list[int]) -> None:
    places = np.arange(len(epochs))
    expected = [int(shuffled(np.array([place]), 77, 1, epoch)[0]) for place, epoch in enumerate(epochs)]
    assert shuffled(places, 77, 1, np.array(epochs)).tolist() == expected


def test_a_thousand_million_need_no_list() -> None:
    n = 10**9
    items = shuffled(np.arange(n - 1000, n), n, 0, 0)
    assert len(set(items.tolist())) == 1000
    assert items.min() >= 0
    assert items.max() < n


def test_places_are_spread_evenly() -> None:
    n = 10_000
    first_half = shuffled(np.arange(n // 2), n, 3, 0)
    assert abs(first_half.mean() - n / 2) < n / 50
