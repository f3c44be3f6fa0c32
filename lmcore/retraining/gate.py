"""The gate: rules that decide whether a challenger replaces the champion.

The gate compares losses. It cannot judge the quality of new text. Both models have scores of the same documents, and
the compared figure is the difference in bits per byte, challenger minus champion (intervals.py). Equal texts count as
one document, and a long one counts by ``gate.unit_bytes``, so that a few long documents do not decide alone.

A challenger is promoted if all rules hold:

1. Old text: the upper end of the one-sided 97.5 % interval is at most ``gate.old_margin``.
2. New text: the upper end of the one-sided 90 % interval is below 0. An equal model that passes does no harm, because
   the other rules guard the old text.
3. No source is proved worse: with S sources, the lower end at 1 - 5 %/S is not above ``gate.old_margin``.
4. There are enough units of each, and nothing was trained on the text that both are scored on.

The levels and the least numbers of units come from a simulation (tests/benchmarks/gate.py). Nothing here needs torch.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from lmcore.retraining.intervals import Difference, Floats, pooled
from lmcore.runs.scores import DocumentScores
from lmcore.settings.retraining import GateConfig
from lmcore.store.outputs import Record

Side = Literal["champion", "challenger"]
TrainedOn = Mapping[Side, npt.NDArray[np.uint64] | str]
"""Hashes of the documents that a model and its initial models were trained on; the reason in words if they are
unknown."""

_GROUPS = ("new", "old")
_BITS_PER_NAT = 1 / np.log(2)
_OLD_LEVEL, _NEW_LEVEL, _SOURCES_LEVEL = 0.975, 0.90, 0.95
"""Levels of the one-sided intervals; that of the sources is shared among them."""
_WANTED_POWER = 0.8
_SHOWN_DIGITS = 12
"""Digits of a fingerprint in a table."""


class Rule(BaseModel):
    """One condition of a promotion, and what was found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: str
    found: str
    needed: str
    passed: bool

    @property
    def sentence(self) -> str:
        return f"{self.rule}: {self.found}" + ("" if self.passed else f", needed {self.needed}")


class Comparison(BaseModel):
    """The losses of two models on the same text, in bits per byte."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    group: str
    source: str
    """The name of a source; empty for all sources."""
    documents: int
    """Number of different documents: the units of the interval."""
    text_bytes: int
    champion: float
    challenger: float
    """Over the whole text, long documents included."""
    difference: float
    """Challenger minus champion, where a document counts by at most gate.unit_bytes; below 0 the challenger is better.
    """
    low: float
    high: float
    """Ends of the interval: each is that of a one-sided interval of ``level``."""
    level: float
    limit: float | None
    """Limit of the rule; None if the comparison is only shown."""
    power: float | None = None
    """Probability that an equal model passes the rule of old text."""
    documents_for_power: float | None = None
    """Documents with which it would be _WANTED_POWER; None if the limit is 0 or there is one document."""

    @property
    def name(self) -> str:
        """Such as "old text", or "old text of web"."""
        return f"{self.group} text" + (f" of {self.source}" if self.source else "")

    @property
    def is_within(self) -> bool:
        """True if the rule holds: sources must not be proved worse, new text must be better, old text not worse."""
        if self.limit is None:
            return True
        if self.source:
            return self.low <= self.limit
        return self.high < self.limit if self.group == "new" else self.high <= self.limit

    @property
    def found(self) -> str:
        """The difference and the end of the interval that the rule looks at."""
        end = f"at least {self.low:+.4f}" if self.source else f"at most {self.high:+.4f}"
        return f"{self.difference:+.4f} bits per byte ({100 * self.level:.3g} %: {end})"

    @property
    def needed(self) -> str:
        if self.source:
            return f"not proved above {self.limit:g}"
        return "below 0" if self.group == "new" else f"at most {self.limit:g}"


class Decision(Record):
    """The decision about a challenger, and its reasons."""

    file_name = "gate.json"
    promoted: bool
    reasons: list[str]
    """The rules that failed; if promoted, the comparisons."""
    rules: list[Rule]
    comparisons: list[Comparison]
    champion: str
    """Hash of the champion's weights; empty without a champion."""
    challenger: str

    @property
    def verdict(self) -> str:
        """The decision and its reasons in one line."""
        return f"{'promoted' if self.promoted else 'refused'}: {'; '.join(self.reasons)}"

    @property
    def power(self) -> str:
        """A sentence about what the number of held-out documents allows; empty where nothing was compared."""
        for each in self.comparisons:
            if each.power is not None:
                more = each.documents_for_power or 0
                enough = f"; {more:,.0f} documents would make it {100 * _WANTED_POWER:.0f} %"
                return (
                    f"With {each.documents:,} held-out documents of old text, a model that is equal on it passes that "
                    f"rule in {100 * each.power:.0f} % of retrainings" + (enough if more > each.documents else "") + "."
                )
        return ""

    def rows(self) -> list[dict[str, str]]:
        """The rules as rows of a table."""
        return [
            {"rule": each.rule, "passed": "yes" if each.passed else "no", "found": each.found, "needed": each.needed}
            for each in self.rules
        ]

    def comparison_rows(self) -> list[dict[str, str]]:
        """The comparisons as rows of a table."""
        return [
            {
                "text": each.name,
                "documents": f"{each.documents:,}",
                "bytes": f"{each.text_bytes:,}",
                "champion": f"{each.champion:.4f}",
                "challenger": f"{each.challenger:.4f}",
                "difference": f"{each.difference:+.4f}",
                "interval": f"{each.low:+.4f} to {each.high:+.4f} ({100 * each.level:.3g} % each)",
            }
            for each in self.comparisons
        ]


def decide(
    champion: DocumentScores | None,
    challenger: DocumentScores,
    config: GateConfig,
    trained_on: TrainedOn,
    folder: Path,
) -> Decision:
    """The decision about a challenger against the champion; without scores of the champion it is refused.

    ``folder`` is where ``Decision.save`` writes.
    """
    rules = [_rule("champion", "no scores" if champion is None else "its scores", "its scores", champion is not None)]
    rules += _soundness("challenger", challenger, trained_on)
    comparisons: list[Comparison] = []
    if champion is not None:
        rules += _soundness("champion", champion, trained_on)
        same = champion.fingerprint == challenger.fingerprint
        found, needed = (scores.fingerprint[:_SHOWN_DIGITS] for scores in (challenger, champion))
        rules.append(_rule("evaluation set", found, f"the champion's {needed}", same))
    if champion is not None and all(rule.passed for rule in rules):
        comparisons = list(_comparisons(champion, challenger, config))
        rules += _judgement(comparisons, config)
    return _decision(champion, challenger, rules, comparisons, config, folder)


def decide_first(challenger: DocumentScores, config: GateConfig, trained_on: TrainedOn, folder: Path) -> Decision:
    """The decision about a first model: its scores must be finite, and of documents that it was not trained on."""
    return _decision(None, challenger, list(_soundness("challenger", challenger, trained_on)), [], config, folder)


def _decision(
    champion: DocumentScores | None,
    challenger: DocumentScores,
    rules: list[Rule],
    comparisons: list[Comparison],
    config: GateConfig,
    folder: Path,
) -> Decision:
    refused = [rule.sentence for rule in rules if not rule.passed]
    judged = {each.name for each in comparisons}
    found = [rule.sentence for rule in rules if rule.rule in judged]
    return Decision(
        folder=folder,
        promoted=not refused,
        reasons=refused or found or [f"the first model: {challenger.total.bits_per_byte:.4f} bits per byte"],
        rules=rules,
        comparisons=comparisons,
        champion="" if champion is None else champion.weights,
        challenger=challenger.weights,
    )


def _rule(name: str, found: str, needed: str, passed: bool) -> Rule:
    return Rule(rule=name, found=found, needed=needed, passed=bool(passed))


def _soundness(side: Side, scores: DocumentScores, trained_on: TrainedOn) -> Iterator[Rule]:
    """The rules that must hold before the losses are compared."""
    broken, seen = int((~np.isfinite(scores.nats)).sum()), trained_on[side]
    leaked = -1 if isinstance(seen, str) else int(np.isin(scores.hashes, seen).sum())
    training_text = seen if isinstance(seen, str) else f"{leaked:,} of these documents"
    strange = sorted(set(np.unique(scores.groups).tolist()) - set(_GROUPS))
    has_text = bool((scores.text_bytes > 0).any())
    yield _rule(f"evaluation of the {side}", f"{len(scores):,} documents", "some text", has_text)
    yield _rule(f"losses of the {side}", f"{broken:,} are no finite number", "none", not broken)
    yield _rule(f"groups of the {side}", ", ".join(strange) or "old, new", "old and new only", not strange)
    yield _rule(f"training text of the {side}", training_text, "none of them", leaked == 0)


def _comparisons(champion: DocumentScores, challenger: DocumentScores, config: GateConfig) -> Iterator[Comparison]:
    """The comparisons on new text and old text, and on each source where there are several."""
    before, after = champion.order(), challenger.order()
    texts = _Texts(
        nats=np.stack([champion.nats[before], challenger.nats[after]]),
        text_bytes=challenger.text_bytes[after],
        hashes=challenger.hashes[after],
    )
    groups, sources = challenger.groups[after], challenger.sources[after]
    limits = {"new": 0.0 if config.must_improve_new else None, "old": config.old_margin}
    for group, level in (("new", _NEW_LEVEL), ("old", _OLD_LEVEL)):
        mine = (groups == group) & (texts.text_bytes > 0)
        if not mine.any():
            continue
        found = Difference.of_units(*texts.units(mine, config.unit_bytes))
        whole = texts.comparison(group, "", mine, found, level, limits[group])
        yield whole.model_copy(update=_power(found, config.old_margin)) if group == "old" else whole
        names = np.unique(sources[mine]).tolist()
        if len(names) > 1:
            rows = [mine & (sources == name) for name in names]
            differences = pooled(texts.units(each, config.unit_bytes) for each in rows)
            shared = 1 - (1 - _SOURCES_LEVEL) / len(names)
            limit = config.old_margin if group == "old" else None
            for name, each, difference in zip(names, rows, differences, strict=True):
                yield texts.comparison(group, name, each, difference, shared, limit)


def _power(found: Difference, limit: float) -> dict[str, float | None]:
    """How often the rule of old text lets an equal model pass, and how many documents it takes to be sure of it."""
    documents = found.units_for(_WANTED_POWER, limit, _OLD_LEVEL)
    return {
        "power": found.power(limit, _OLD_LEVEL),
        "documents_for_power": documents if math.isfinite(documents) else None,
    }


@dataclass(frozen=True)
class _Texts:
    """Documents with the losses of both models, in one order."""

    nats: Floats
    """(2, n): of champion and challenger."""
    text_bytes: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.uint64]

    def units(self, rows: npt.NDArray[np.bool_], most: int) -> tuple[Floats, Floats]:
        """Bits of difference and bytes of each different text; one of more than ``most`` bytes counts by ``most``."""
        _, first = np.unique(self.hashes[rows], return_index=True)
        sizes = self.text_bytes[rows][first].astype(np.float64)
        bits = (self.nats[1, rows] - self.nats[0, rows])[first] * _BITS_PER_NAT
        share = np.minimum(1.0, most / sizes)
        return bits * share, sizes * share

    def comparison(
        self, group: str, source: str, rows: npt.NDArray[np.bool_], found: Difference, level: float, limit: float | None
    ) -> Comparison:
        """The comparison on some rows."""
        text_bytes = int(self.text_bytes[rows].sum())
        champion, challenger = (self.nats[:, rows].sum(axis=1) * _BITS_PER_NAT / text_bytes).tolist()
        return Comparison(
            group=group,
            source=source,
            documents=found.units,
            text_bytes=text_bytes,
            champion=champion,
            challenger=challenger,
            difference=found.value,
            low=found.low(level),
            high=found.high(level),
            level=level,
            limit=limit,
        )


def _judgement(comparisons: list[Comparison], config: GateConfig) -> Iterator[Rule]:
    judged = {each.name: each for each in comparisons if each.limit is not None}
    least = {"old text": config.minimum_old_documents}
    if config.must_improve_new:
        least = {"new text": config.minimum_new_documents, **least}
    for name, needed in least.items():
        documents = judged[name].documents if name in judged else 0
        few = "" if documents >= needed else " (too few)"
        yield _rule(f"documents of {name}", f"{documents:,}{few}", f"{needed:,}", not few)
    for name, each in judged.items():
        yield _rule(name, each.found, each.needed, each.is_within)
