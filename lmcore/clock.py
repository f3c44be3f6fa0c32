"""The time that a training takes, and how much of it went by waiting for data."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


class Clock:
    """Splits time into laps."""

    def __init__(self) -> None:
        self._begun = self._lap = time.perf_counter()
        self._waited = 0.0

    def lap(self) -> tuple[float, float]:
        """Seconds since the last call, and those of them that ``waiting_for`` waited."""
        now = time.perf_counter()
        found = now - self._lap, self._waited
        self._lap, self._waited = now, 0.0
        return found

    def minutes(self) -> float:
        """Since the clock was made."""
        return (time.perf_counter() - self._begun) / 60

    def waiting_for(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; the time until each is there counts as waiting."""
        source, end = iter(items), object()
        while True:
            start = time.perf_counter()
            item = next(source, end)
            self._waited += time.perf_counter() - start
            if item is end:
                return
            yield item  # type: ignore[misc]
