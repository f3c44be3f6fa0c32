"""The gate: rules that decide whether a challenger replaces the champion.

The gate compares losses. It cannot judge the quality of new text. Both models have scores of the same documents, and
the compared figure is the difference in bits per byte, challenger minus champion (intervals.py). Equal texts count as
one document. A long document counts by ``gate.unit_bytes``, so that a few long ones do not decide alone.

A challenger is promoted if all rules hold:

1. Old text: the upper end of the one-sided 97.5 % interval is at most ``gate.old_margin``.
2. The anchor (anchor.py): the upper end of the same interval against the reference is at most ``gate.total_margin``,
   for the founding text and for the text that joined, which counts from 100 documents on. The two are never pooled,
   because a new source that is learnt well would hide a loss on all others.
3. No source of old text or of the anchor is proved worse: with S sources the lower end at 1 - 5 %/S is within the
   margin. The spread is pooled over the sources, so one document is enough.
4. New text: the upper end of the one-sided 90 % interval is below 0. An equal model that passes does no harm, because
   the other rules guard the old text.
5. There are enough documents, and no model was trained on the documents that it is scored on.

The levels and numbers come from a simulation (tests/benchmarks/gate.py). Nothing here needs torch.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lmcore.corpus.document_hashes import Hashes, isin_sorted
from lmcore.dataset.manifest import AGES
from lmcore.retraining.anchor import JOINED, PARTS
from lmcore.retraining.intervals import Difference, Floats, pooled
from lmcore.runs.scores import DocumentScores
from lmcore.settings.retraining import GateConfig
from lmcore.store.outputs import Record

Scores = tuple[DocumentScores, DocumentScores]
"""Of a model and of the challenger, of the same documents in the same order."""
TrainedOn = Mapping[str, Hashes | str]
"""For champion and challenger: sorted hashes of the documents that it and its initial models were trained on, or the
reason in words if they are unknown."""

_OLD_LEVEL, _NEW_LEVEL, _SOURCES_LEVEL, _REFERENCE_LEVEL = 0.975, 0.90, 0.95, 0.99
"""Levels of the one-sided intervals. The level of the sources is shared among them."""
_WANTED_POWER = 0.8
_JOINED_DOCUMENTS = 100
"""Documents that joined from which their rule counts. With fewer it refuses many good models (see the benchmark);
until then the rules of old text and of sources guard them."""
_BITS_PER_NAT = 1 / np.log(2)
_SHOWN_DIGITS = 12
"""Digits of a fingerprint in a table."""


@dataclass(frozen=True)
class Rule:
    """One condition of a promotion, and what was found."""

    rule: str
    found: str
    needed: str
    passed: bool

    @property
    def sentence(self) -> str:
        return f"{self.rule}: {self.found}" + ("" if self.passed else f", needed {self.needed}")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The losses of two models on the same text, in bits per byte."""

    group: str
    """new, old, or a part of the anchor: founding, joined."""
    source: str
    """The name of a source; empty for all sources."""
    documents: int
    """Number of different documents: the units of the interval."""
    text_bytes: int
    champion: float
    """Of the champion; on the anchor of the reference. Like ``challenger`` over the whole text."""
    challenger: float
    difference: float
    """Challenger minus champion, where a document counts by at most gate.unit_bytes. Below 0 the challenger is better.
    """
    low: float
    high: float
    """Ends of the interval: each is that of a one-sided interval of ``level``."""
    level: float
    limit: float | None
    """Limit of the rule; None if the comparison is only shown."""
    power: float = 0.0
    """Probability that an equal model passes the rule, where a whole group of old text is compared."""
    documents_for_power: float = 0.0
    """Documents with which it would be _WANTED_POWER. 0: no number gives it, or it is not asked."""
    moves_reference: bool = False
    """True if the challenger is proved better on a part of the anchor."""

    @property
    def name(self) -> str:
        """Such as "old text", or "old text of web"."""
        return f"{self.group} text" + (f" of {self.source}" if self.source else "")

    @property
    def is_within(self) -> bool:
        """True if the rule holds: new text is better, other text not worse, a source not proved worse."""
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
    references: list[str]
    """Parts of the anchor on which the challenger becomes the reference if it is promoted."""
    champion: str
    """Hash of the champion's weights; empty without a champion."""
    challenger: str

    @property
    def verdict(self) -> str:
        """The decision and its reasons in one line."""
        return f"{'promoted' if self.promoted else 'refused'}: {'; '.join(self.reasons)}"

    @property
    def power(self) -> list[str]:
        """Sentences about what the numbers of held-out documents allow."""
        return [
            f"With {each.documents:,} documents of {each.name}, an equal model passes that rule in "
            f"{100 * each.power:.0f} % of retrainings"
            + (f"; {more:,.0f} documents would give {100 * _WANTED_POWER:.0f} %." if more > each.documents else ".")
            for each in self.comparisons
            if each.group != "new" and not each.source and each.limit is not None
            for more in [each.documents_for_power]
        ]

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
    anchor: Scores | None = None,
) -> Decision:
    """The decision about a challenger against the champion. ``folder`` is where ``Decision.save`` writes.

    Without a champion it is the first model: its scores must be finite, and of documents that it was not trained on.
    ``anchor`` has the reference scores and the challenger's.
    """
    rules, comparisons = list(_soundness("challenger", challenger, trained_on)), list[Comparison]()
    if champion is not None:
        rules += _soundness("champion", champion, trained_on)
        found, needed = (scores.fingerprint[:_SHOWN_DIGITS] for scores in (challenger, champion))
        same = champion.fingerprint == challenger.fingerprint
        rules.append(Rule("evaluation set", found, f"the champion's {needed}", same))
        if anchor is not None:
            rules += _trustworthy("challenger", anchor[1], trained_on, " on the anchor")
        if all(rule.passed for rule in rules):
            pair = champion.taken(champion.order()), challenger.taken(challenger.order())
            comparisons += _compare(pair, "new", _NEW_LEVEL, 0.0 if config.must_improve_new else None, config)
            comparisons += _compare(pair, "old", _OLD_LEVEL, config.old_margin, config)
            if anchor is not None:
                for part in PARTS:
                    comparisons += _compare(anchor, part, _OLD_LEVEL, config.total_margin, config)
            rules += _judgement(comparisons, config)
    refused = [rule.sentence for rule in rules if not rule.passed]
    judged = {each.name for each in comparisons if not each.source}
    proved = [rule.sentence for rule in rules if rule.rule in judged]
    return Decision(
        folder=folder,
        promoted=not refused,
        reasons=refused or proved or [f"the first model: {challenger.total.bits_per_byte:.4f} bits per byte"],
        rules=rules,
        comparisons=comparisons,
        references=[each.group for each in comparisons if each.moves_reference],
        champion="" if champion is None else champion.weights,
        challenger=challenger.weights,
    )


def _soundness(side: str, scores: DocumentScores, trained_on: TrainedOn) -> Iterator[Rule]:
    """The rules that must hold before the losses are compared."""
    strange = sorted(set(np.unique(scores.groups).tolist()) - set(AGES))
    has_text = bool((scores.text_bytes > 0).any())
    yield Rule(f"evaluation of the {side}", f"{len(scores):,} documents", "some text", has_text)
    yield Rule(f"groups of the {side}", ", ".join(strange) or "old, new", "old and new only", not strange)
    yield from _trustworthy(side, scores, trained_on)


def _trustworthy(side: str, scores: DocumentScores, trained_on: TrainedOn, where: str = "") -> Iterator[Rule]:
    broken, seen = int((~np.isfinite(scores.nats)).sum()), trained_on[side]
    leaked = -1 if isinstance(seen, str) else int(isin_sorted(scores.hashes, seen).sum())
    training_text = seen if isinstance(seen, str) else f"{leaked:,} of these documents"
    yield Rule(f"losses of the {side}{where}", f"{broken:,} are not finite", "none", not broken)
    yield Rule(f"training text of the {side}{where}", training_text, "none of them", leaked == 0)


def _compare(pair: Scores, group: str, level: float, limit: float | None, config: GateConfig) -> Iterator[Comparison]:
    """The comparison on a group of documents, and on each of its sources where there are several."""
    rows = (pair[1].groups == group) & (pair[1].text_bytes > 0)
    if not rows.any():
        return
    found = Difference.of_units(*_units(pair, rows, config.unit_bytes))
    group_limit = None if group == JOINED and found.units < _JOINED_DOCUMENTS else limit
    power = {} if group == "new" or group_limit is None else _power(found, group_limit)
    yield _comparison(pair, rows, group, "", found, level, group_limit, **power)
    names = np.unique(pair[1].sources[rows]).tolist()
    if len(names) > 1:
        parts = [rows & (pair[1].sources == name) for name in names]
        each_level, each_limit = 1 - (1 - _SOURCES_LEVEL) / len(names), None if group == "new" else limit
        differences = pooled([_units(pair, part, config.unit_bytes) for part in parts])
        for name, part, difference in zip(names, parts, differences, strict=True):
            yield _comparison(pair, part, group, name, difference, each_level, each_limit)


def _units(pair: Scores, rows: npt.NDArray[np.bool_], most: int) -> tuple[Floats, Floats]:
    """Bits of difference and bytes of each different text; one of more than ``most`` bytes counts by ``most``."""
    before, after = pair
    _, first = np.unique(after.hashes[rows], return_index=True)
    sizes = after.text_bytes[rows][first].astype(np.float64)
    bits = (after.nats[rows] - before.nats[rows])[first] * _BITS_PER_NAT
    share = np.minimum(1.0, most / sizes)
    return bits * share, sizes * share


def _comparison(
    pair: Scores,
    rows: npt.NDArray[np.bool_],
    group: str,
    source: str,
    found: Difference,
    level: float,
    limit: float | None,
    **power: float,
) -> Comparison:
    text_bytes = int(pair[1].text_bytes[rows].sum())
    champion, challenger = (float(scores.nats[rows].sum() * _BITS_PER_NAT / text_bytes) for scores in pair)
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
        moves_reference=group in PARTS and not source and found.high(_REFERENCE_LEVEL) < 0,
        **power,
    )


def _power(found: Difference, limit: float) -> dict[str, float]:
    """How often a rule lets an equal model pass, and how many documents it takes to be sure of that."""
    documents = found.units_for(_WANTED_POWER, limit, _OLD_LEVEL)
    return {
        "power": found.power(limit, _OLD_LEVEL),
        "documents_for_power": documents if math.isfinite(documents) else 0.0,
    }


def _judgement(comparisons: list[Comparison], config: GateConfig) -> Iterator[Rule]:
    """The rules about losses: enough documents, and each interval within its limit."""
    documents = {each.group: each.documents for each in comparisons if not each.source}
    least = {"new": config.minimum_new_documents} if config.must_improve_new else {}
    for group, needed in {**least, "old": config.minimum_old_documents}.items():
        few = "" if documents.get(group, 0) >= needed else " (too few)"
        yield Rule(f"documents of {group} text", f"{documents.get(group, 0):,}{few}", f"{needed:,}", not few)
    yield from (
        Rule(each.name, each.found, each.needed, each.is_within) for each in comparisons if each.limit is not None
    )
