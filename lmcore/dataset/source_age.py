"""Names of the two parts of a source that was split by age, such as ``wiki (old)`` and ``wiki (new)``."""

from typing import Literal

Age = Literal["old", "new"]
AGES: tuple[Age, Age] = ("old", "new")


def by_age(source: str, age: Age) -> str:
    """The name of the old or the new part of a source."""
    return f"{source} ({age})"


def age_of(source: str) -> Age:
    """The age that a source's name states. A source that was not split by age is new."""
    return "old" if source == by_age(base_source(source), "old") else "new"


def base_source(source: str) -> str:
    """The source without its age."""
    for age in AGES:
        source = source.removesuffix(f" ({age})")
    return source
