"""The schedules of prefect.yaml at the right instants, also where clocks are put forward and back.

Asked of the class by which the server plans runs, as it asks: it looks again and again, and plans each instant once.
"""

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml
from prefect.server.schemas.schedules import CronSchedule

from tests.conftest import REPOSITORY

CHANGES = {
    "America/New_York": ("2026-03-08T07:00Z", "2026-11-01T06:00Z"),
    "Europe/London": ("2026-03-29T01:00Z", "2026-10-25T01:00Z"),
    "Europe/Berlin": ("2026-03-29T01:00Z", "2026-10-25T01:00Z"),
}
"""When clocks are put forward, and back."""


def schedules() -> dict[str, dict[str, Any]]:
    """By flow and name."""
    content = yaml.safe_load((REPOSITORY / "deployments" / "prefect.yaml").read_text(encoding="utf-8"))
    return {
        f"{deployment['entrypoint'].rpartition(':')[2]}/{deployment['name']}": schedule
        for deployment in content["deployments"]
        for schedule in deployment.get("schedules", [])
    }


def planned(cron: str, zone: str, start: datetime, days: float) -> list[datetime]:
    schedule = CronSchedule(cron=cron, timezone=zone)
    dates = asyncio.run(schedule.get_dates(1000, start, start + timedelta(days=days)))
    return [datetime.fromtimestamp(date.timestamp(), UTC) for date in dates]


@pytest.mark.parametrize("name", schedules())
def test_each_schedule_fires_at_its_hour_in_its_zone_all_year(name: str) -> None:
    schedule = schedules()[name]
    minute, hour, _, _, weekday = schedule["cron"].split()
    days = 1 if weekday == "*" else 7
    dates = planned(schedule["cron"], schedule["timezone"], datetime(2026, 1, 1, tzinfo=UTC), 365)
    assert len(dates) == 365 // days
    for date in dates:
        local = date.astimezone(ZoneInfo(schedule["timezone"]))
        assert (local.hour, local.minute) == (int(hour), int(minute))
        assert weekday in ("*", str(local.isoweekday() % 7))
    assert {later - date for date, later in pairwise(dates)} == {
        timedelta(days=days)
    }  # there is no such change in Japan


@pytest.mark.parametrize(("zone", "change"), [(zone, change) for zone, both in CHANGES.items() for change in both])
@pytest.mark.parametrize("cron", sorted({schedule["cron"] for schedule in schedules().values()}))
def test_in_a_zone_with_daylight_saving_no_day_is_skipped_and_none_comes_twice(
    cron: str, zone: str, change: str
) -> None:
    """For those who change the time zone."""
    at = datetime.fromisoformat(change)
    before, after = (at + timedelta(hours=hours) for hours in (-1, 1))
    assert before.astimezone(ZoneInfo(zone)).utcoffset() != after.astimezone(ZoneInfo(zone)).utcoffset()
    dates = set(planned(cron, zone, at - timedelta(days=8), 16))
    for half_hours in range(-4, 5):
        dates |= set(planned(cron, zone, at + timedelta(minutes=30 * half_hours), 2))
    days = [date.astimezone(ZoneInfo(zone)).date() for date in sorted(dates)]
    assert {later - day for day, later in pairwise(days)} == {timedelta(days=1 if cron.endswith("*") else 7)}
