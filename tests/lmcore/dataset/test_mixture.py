"""Shares are exact in every epoch, and within a source every block is drawn equally often."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lmcore.dataset.mixture import Mixture, open_blocks, shuffled
from lmcore.errors import ConfigError, CorpusError
from lmcore.settings.config import DatasetConfig
from tests.conftest import WriteDataset


class Counted:
    """Blocks of which only the number matters."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count


def mixture(blocks: list[int], draws: list[int]) -> Mixture:
    parts: Any = {str(number): Counted(count) for number, count in enumerate(blocks)}
    return Mixture(parts, dict(zip(parts, draws, strict=True)))


@given(
    parts=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 60)), min_size=2, max_size=4),
    epochs=st.integers(1, 4),
    seed=st.integers(0, 2**31 - 1),
)
def test_shares_are_exact_and_blocks_come_equally_often(parts: list[tuple[int, int]], epochs: int, seed: int) -> None:
    blocks, draws = map(list, zip(*parts, strict=True))
    mixed = mixture(blocks, draws)
    sources, numbers = mixed.order(np.arange(epochs * len(mixed)), seed, True)
    for epoch in sources.reshape(epochs, -1):
        assert np.bincount(epoch, minlength=len(draws)).tolist() == draws
    for source, count in enumerate(blocks):
        drawn = np.bincount(numbers[sources == source], minlength=count)
        assert len(drawn) == count
        assert drawn.max() - drawn.min() <= 1
    part = slice(len(mixed) // 2, len(mixed) // 2 + 50)
    again = mixed.order(np.arange(epochs * len(mixed))[part], seed, True)
    assert [array.tolist() for array in again] == [sources[part].tolist(), numbers[part].tolist()]


@given(n=st.integers(1, 100), first=st.integers(0, 10**6), seed=st.integers(0, 99), shuffle=st.booleans())
def test_one_source_is_its_own_permutation_every_epoch(n: int, first: int, seed: int, shuffle: bool) -> None:
    positions = np.arange(first, first + 30)
    _, numbers = mixture([n], [n]).order(positions, seed, shuffle)
    expected = [int(shuffled(np.array([p % n]), n, seed, p // n)[0]) if shuffle else p % n for p in positions.tolist()]
    assert numbers.tolist() == expected


def test_sources_are_mixed_throughout_an_epoch() -> None:
    sources, _ = mixture([10**6, 10**6], [700_000, 300_000]).order(np.arange(10_000), 0, True)
    assert abs(sources.mean() - 0.3) < 0.02
    assert abs(sources[:1000].mean() - 0.3) < 0.06


@pytest.fixture(scope="module")
def two_sources(write_dataset: WriteDataset) -> Path:
    """20 blocks of 4 in web, 10 in wiki."""
    return write_dataset([("web", [[10] * 80]), ("wiki", [[20] * 40])])


@pytest.mark.parametrize(
    ("settings", "draws"),
    [
        ({"weights": {"web": 0.7, "wiki": 0.3}}, {"web": 21, "wiki": 9}),
        ({"weights": {"web": 1, "wiki": 9}}, {"web": 3, "wiki": 27}),
        ({"weights": {"web": 1, "wiki": 0}}, {"web": 20}),
        ({"weights": {"web": 1, "wiki": 1e-9}}, {"web": 30, "wiki": 1}),
        ({}, {"corpus": 30}),
    ],
    ids=str,
)
def test_settings_become_blocks_of_an_epoch(two_sources: Path, settings: dict[str, Any], draws: dict[str, int]) -> None:
    blocks = open_blocks(two_sources, DatasetConfig(block_size=4, **settings))
    assert blocks.blocks_per_epoch == draws
    assert blocks.padding == 0


@pytest.mark.parametrize("packing", ["stream", "best_fit"])
def test_a_block_read_is_of_the_source_that_was_drawn(two_sources: Path, packing: Any) -> None:
    config = DatasetConfig(block_size=4, weights={"web": 2, "wiki": 1}, packing=packing)
    blocks = open_blocks(two_sources, config)
    sources, numbers = blocks.order(np.arange(len(blocks)), 0, True)
    inputs, labels = blocks.read(sources, numbers)
    assert inputs.shape == labels.shape == (len(blocks), 4)
    # A block of one source never holds the other's id; and some id of its own, unless it is the last EOS alone.
    found = Counter(zip(sources.tolist(), inputs.max(axis=1).tolist(), strict=True))
    assert {key for key in found if key[1] > 3} == {(0, 10), (1, 20)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": {"web": 1}}, r"missing are \['wiki'\], unknown .* \[\]"),
        ({"weights": {"web": 1, "wiki": 1, "books": 1}}, r"missing are \[\], unknown or left .* \['books'\]"),
    ],
)
def test_sources_and_settings_must_agree(two_sources: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_blocks(two_sources, DatasetConfig(block_size=4, **settings))


def test_a_source_smaller_than_a_block_is_refused_unless_left_out(two_sources: Path) -> None:
    with pytest.raises(CorpusError, match="source wiki is smaller than one block: 41 training tokens"):
        open_blocks(two_sources, DatasetConfig(block_size=60, weights={"web": 1, "wiki": 1}))
    assert len(open_blocks(two_sources, DatasetConfig(block_size=60, weights={"web": 1, "wiki": 0}))) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"weights": {"a": 1}, "shuffle": False},
        {"weights": {"a": 0}},
        {"weights": {"a": -1}},
        {"epochs": {"a": 1}},
    ],
    ids=str,
)
def test_a_mixture_that_makes_no_sense_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DatasetConfig.model_validate(settings)


# --- shuffling ---


@given(n=st.integers(1, 5000), seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 1000))
def test_it_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    assert np.array_equal(np.sort(shuffled(np.arange(n), n, seed, epoch)), np.arange(n))


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
