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


def iso_timestamp() -> str:
    """The same in ISO 8601, to the microsecond: no zone and no daylight saving can make it ambiguous."""
    return utc().isoformat(timespec="microseconds")


def for_people(moment: str) -> str:
    """An ISO 8601 moment in the time zone of this machine: 2026-11-30 20:41 JST (UTC+0900)."""
    there = datetime.fromisoformat(moment).astimezone()
    zone, offset = there.strftime("%Z"), there.strftime("UTC%z")
    return f"{there:%Y-%m-%d %H:%M} {zone if zone == 'UTC' else f'{zone} ({offset})'}"


def duration(seconds: float) -> str:
    """A time span to two units at most: 45 s, 3 min 20 s, 19 min, 2 h 05 min, 3 days 4 h."""
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
