"""The gate: rules that decide whether a challenger replaces the champion.

The gate compares losses. It cannot judge the quality of new text. Both models have scores of the same documents, and
the compared figure is the difference in bits per byte, challenger minus champion: the sum of the differences in nats,
divided by ln 2 and the bytes of the text. Its confidence interval is that of a paired bootstrap (Efron and Tibshirani
1993, chapter 16): documents are resampled with replacement. Equal texts count as one document.

A challenger is promoted if all rules hold. Nothing here needs torch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmcore.runs.scores import DocumentScores
from lmcore.settings.retraining import GateConfig
from lmcore.store.outputs import Record

TrainedOn = Mapping[str, npt.NDArray[np.uint64] | str]
"""For champion and challenger: hashes of the documents that it and its initial models were trained on, or the reason
in words if they are unknown."""

_GROUPS = ("new", "old")
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
    source: str
    """The name of a source; empty for all sources."""
    documents: int
    """Number of different documents."""
    text_bytes: int
    champion: float
    challenger: float
    difference: float
    """Challenger minus champion; below 0 the challenger is better."""
    low: float
    high: float
    """Ends of the confidence interval."""
    limit: float | None
    """Upper limit of ``high``; None if the comparison is only shown."""
    must_improve: bool = False
    """True if ``high`` must be below the limit, not equal to it."""

    @property
    def name(self) -> str:
        """Such as "old text", or "old text of web"."""
        return f"{self.group} text" + (f" of {self.source}" if self.source else "")

    @property
    def is_within(self) -> bool:
        """True if the interval is within the limit."""
        return self.limit is None or self.high < self.limit or (self.high == self.limit and not self.must_improve)


class Decision(Record):
    """The decision about a challenger, and its reasons."""

    file_name = "gate.json"
    promoted: bool
    reasons: list[str]
    """The rules that failed; if promoted, the comparisons."""
    rules: list[Rule]
    comparisons: list[Comparison]
    confidence: float
    champion: str
    """Hash of the champion's weights; empty without a champion."""
    challenger: str

    @property
    def verdict(self) -> str:
        """The decision and its reasons in one line."""
        return f"{'promoted' if self.promoted else 'refused'}: {'; '.join(self.reasons)}"

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
                f"{100 * self.confidence:g} %": f"{each.low:+.4f} to {each.high:+.4f}",
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
    """The decision about a challenger against the champion. ``folder`` is where ``Decision.save`` writes.

    Without a champion it is the first model: its scores must be finite, and of documents that it was not trained on.
    Takes about 5 s for 100,000 documents of several sources.
    """
    rules, comparisons = list(_soundness("challenger", challenger, trained_on)), list[Comparison]()
    if champion is not None:
        rules += _soundness("champion", champion, trained_on)
        found, needed = (scores.fingerprint[:_SHOWN_DIGITS] for scores in (challenger, champion))
        same = champion.fingerprint == challenger.fingerprint
        rules.append(Rule("evaluation set", found, f"the champion's {needed}", same))
        if all(rule.passed for rule in rules):
            comparisons += _comparisons(champion, challenger, config)
            rules += _judgement(comparisons, config)
    refused = [rule.sentence for rule in rules if not rule.passed]
    judged = {each.name for each in comparisons}
    proved = [rule.sentence for rule in rules if rule.rule in judged]
    return Decision(
        folder=folder,
        promoted=not refused,
        reasons=refused or proved or [f"the first model: {challenger.total.bits_per_byte:.4f} bits per byte"],
        rules=rules,
        comparisons=comparisons,
        confidence=config.confidence,
        champion="" if champion is None else champion.weights,
        challenger=challenger.weights,
    )


def _soundness(side: str, scores: DocumentScores, trained_on: TrainedOn) -> Iterator[Rule]:
    """The rules that must hold before the losses are compared."""
    broken, seen = int((~np.isfinite(scores.nats)).sum()), trained_on[side]
    leaked = -1 if isinstance(seen, str) else int(np.isin(scores.hashes, seen).sum())
    training_text = seen if isinstance(seen, str) else f"{leaked:,} of these documents"
    strange = sorted(set(np.unique(scores.groups).tolist()) - set(_GROUPS))
    has_text = bool((scores.text_bytes > 0).any())
    yield Rule(f"evaluation of the {side}", f"{len(scores):,} documents", "some text", has_text)
    yield Rule(f"losses of the {side}", f"{broken:,} are no finite number", "none", not broken)
    yield Rule(f"groups of the {side}", ", ".join(strange) or "old, new", "old and new only", not strange)
    yield Rule(f"training text of the {side}", training_text, "none of them", leaked == 0)


def _comparisons(champion: DocumentScores, challenger: DocumentScores, config: GateConfig) -> Iterator[Comparison]:
    """The comparisons on new text and old text, and on each source where there are several."""
    before, after = champion.order(), challenger.order()
    text_bytes, hashes = challenger.text_bytes[after], challenger.hashes[after]
    groups, sources = challenger.groups[after], challenger.sources[after]
    nats, margin = np.stack([champion.nats[before], challenger.nats[after]]), config.old_margin_bits_per_byte
    limits = {"new": 0.0 if config.must_improve_new else None, "old": margin}
    for group in _GROUPS:
        in_group = groups == group
        names = np.unique(sources[in_group]).tolist()
        for source in ["", *(names if len(names) > 1 else [])]:
            rows = in_group & (text_bytes > 0) & ((sources == source) | (source == ""))
            if rows.any():
                limit = limits[group] if not source else margin if config.every_source else None
                figures = _compare(nats[:, rows], text_bytes[rows], hashes[rows], config)
                is_new = group == "new" and not source
                yield Comparison(group=group, source=source, limit=limit, must_improve=is_new, **figures)


def _compare(
    nats: npt.NDArray[np.float64], text_bytes: npt.NDArray[np.int64], hashes: npt.NDArray[np.uint64], config: GateConfig
) -> dict[str, Any]:
    """The figures of a ``Comparison``. ``nats`` (2, n) are of champion and challenger."""
    _, texts = np.unique(hashes, return_inverse=True)
    sizes = np.bincount(texts, text_bytes).astype(np.float64)
    bits = np.bincount(texts, (nats[1] - nats[0]) * _BITS_PER_NAT).astype(np.float64)
    low, high = _interval(bits, sizes, config)
    champion, challenger = (nats.sum(axis=1) * _BITS_PER_NAT / text_bytes.sum()).tolist()
    return {
        "documents": len(sizes),
        "text_bytes": int(text_bytes.sum()),
        "champion": champion,
        "challenger": challenger,
        "difference": float(bits.sum() / sizes.sum()),
        "low": low,
        "high": high,
    }


def _interval(bits: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64], config: GateConfig) -> tuple[float, float]:
    """Percentiles of sum(bits) / sum(sizes) over resamples of the documents. Memory: a few numbers per document."""
    draw, columns = np.random.default_rng(config.seed), np.stack([bits, sizes], axis=1)
    sums = np.empty((config.resamples, 2))
    for row in sums:
        times = np.bincount(draw.integers(len(bits), size=len(bits), dtype=np.uint32), minlength=len(bits))
        row[:] = times @ columns
    tail = (1 - config.confidence) / 2
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [tail, 1 - tail]).tolist()
    return low, high


def _judgement(comparisons: list[Comparison], config: GateConfig) -> Iterator[Rule]:
    """The rules about losses: enough documents, and an interval within its limit."""
    judged = {each.name: each for each in comparisons if each.limit is not None}
    wanted = ["new text", "old text"] if config.must_improve_new else ["old text"]
    for name in dict.fromkeys([*wanted, *judged]):
        each, least = judged.get(name), config.minimum_documents
        documents = each.documents if each else 0
        few = "" if documents >= least else " (too few)"
        yield Rule(f"documents of {name}", f"{documents:,}{few}", f"{least:,}", not few)
        if each:
            ends = f"{each.low:+.4f} to {each.high:+.4f}" if each.must_improve else f"up to {each.high:+.4f}"
            found = f"{each.difference:+.4f} bits per byte ({100 * config.confidence:g} % {ends})"
            needed = "all of it below 0" if each.must_improve else f"at most {each.limit:g}"
            yield Rule(name, found, needed, each.is_within)
