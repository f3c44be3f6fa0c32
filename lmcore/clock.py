"""The wall clock, which is read here alone, and the time that a training takes, which the wall clock cannot change.

A wall clock may jump by hours, and back. So what was first, which version is in use, who holds a lock and how long
something takes is never asked of it; only how old a file is, by the time that the file system gave it.
"""

import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TypeVar

Item = TypeVar("Item")


def now() -> float:
    """Seconds since 1970, to be compared with the times of files."""
    return time.time()


def utc() -> datetime:
    """The same, for people and other programs."""
    return datetime.fromtimestamp(now(), UTC)


def stamp() -> str:
    """The same in ISO 8601, to the microsecond: no zone and no daylight saving can make it ambiguous."""
    return utc().isoformat(timespec="microseconds")


class Clock:
    """Splits time into laps, and tells how much of it went by waiting for data."""

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
