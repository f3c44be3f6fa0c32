"""The wall clock, which is read in this file only, and a clock for durations.

A wall clock may jump by hours, forward and back. Therefore it never decides what was first, which version is in use,
who holds a lock or how long something takes. It only decides how old a file is.
"""

import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TypeVar

Item = TypeVar("Item")


def now() -> float:
    """Seconds since 1970, for comparison with the times of files."""
    return time.time()


def utc() -> datetime:
    """The current time in UTC."""
    return datetime.fromtimestamp(now(), UTC)


def iso_timestamp() -> str:
    """The current time in UTC as ISO 8601, to the microsecond."""
    return utc().isoformat(timespec="microseconds")


def for_people(moment: str) -> str:
    """An ISO 8601 time in the time zone of this machine, such as 2026-11-30 20:41 JST (UTC+0900)."""
    there = datetime.fromisoformat(moment).astimezone()
    zone, offset = there.strftime("%Z"), there.strftime("UTC%z")
    return f"{there:%Y-%m-%d %H:%M} {zone if zone == 'UTC' else f'{zone} ({offset})'}"


def duration(seconds: float) -> str:
    """A duration in at most two units: 45 s, 3 min 20 s, 19 min, 2 h 05 min, 3 days 4 h."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if seconds < 597.5:
        minutes, rest = divmod(5 * round(seconds / 5), 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours = round(minutes / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{hours // 24} days {hours % 24} h"


class Clock:
    """Splits time into laps and measures how much of it was spent waiting for data."""

    def __init__(self) -> None:
        self._begun = self._lap = time.perf_counter()
        self._waited = 0.0

    def lap(self) -> tuple[float, float]:
        """Seconds since the last call, and the seconds that ``waiting_for`` waited in them."""
        now = time.perf_counter()
        found = now - self._lap, self._waited
        self._lap, self._waited = now, 0.0
        return found

    def minutes(self) -> float:
        """Minutes since the clock was created."""
        return (time.perf_counter() - self._begun) / 60

    def waiting_for(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items. The time until each arrives counts as waiting."""
        source, end = iter(items), object()
        while True:
            start = time.perf_counter()
            item = next(source, end)
            self._waited += time.perf_counter() - start
            if item is end:
                return
            yield item  # type: ignore[misc]
