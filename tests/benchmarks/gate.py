"""How often the gate errs, and how often it decides at all: python tests/benchmarks/gate.py

Three tables from the code that decides. Coverage: how often the true difference is outside an interval. Power: how
often one look lets an equal model pass. Years: 52 weekly retrainings of teams with little and much held-out text.

The noise is that of small models on Japanese text: two successive models differ by 0.022 bits per byte (standard
deviation) on a passage of 700 bytes, passages of one document correlate by 0.3, and a version keeps a fifth of the
noise of the one before. A document has a lognormal length with a median of 1,289 bytes; a piece is one passage. Takes
about five minutes.
"""

import math
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lmcore.retraining.anchor import aligned, next_anchor
from lmcore.retraining.gate import decide
from lmcore.retraining.intervals import Difference
from lmcore.runs.scores import DocumentScores
from lmcore.settings.retraining import GateConfig
from tests.benchmarks.bench import sized, table

DRAWS, LOOKS, YEARS, WEEKS = sized(4_000, 20), sized(400, 4), sized(20, 1), sized(52, 3)
NOWHERE = Path("nowhere")
UNSEEN = {"champion": np.empty(0, np.uint64), "challenger": np.empty(0, np.uint64)}
GATE = GateConfig()

DIFFERENCE, TOGETHER, PASSAGE, KEPT = 0.022, 0.3, 700, 0.2
"""Standard deviation of the difference between successive versions on a passage, the correlation of passages of one
document, their bytes, and the share of a version's noise that the next one keeps."""
GROWTH = 0.05
"""New held-out text of a week, as a share of the first."""
TEAMS = {
    "200 pieces": (200, 0.0),
    "400 pieces": (400, 0.0),
    "200 documents": (200, 1.2),
    "1,000 documents": (1000, 1.2),
}
"""Held-out documents at the start, and the standard deviation of the logarithm of their lengths."""
BITS = math.log(2)


def coverage(units: int, draw: np.random.Generator, skewed: bool = False) -> tuple[float, float]:
    """Shares of intervals that are wholly below and wholly above the truth. Nominal: 0.025 each."""
    below = above = 0
    for _ in range(DRAWS):
        sizes = np.exp(draw.uniform(0, math.log(500), units))
        errors = draw.exponential(1, units) - 1 if skewed else draw.standard_t(5, units)
        found = Difference.of_units(sizes * errors, sizes)
        below, above = below + (found.high(0.975) < 0), above + (found.low(0.975) > 0)
    return below / DRAWS, above / DRAWS


@dataclass
class Team:
    """A model that is retrained each week, with the truth about its old text."""

    documents: int
    spread: float
    draw: np.random.Generator
    sources: int = 3
    names: int = 1
    level: float = 0.0
    """True change of old text against the first champion, in bits per byte."""
    best: float = 0.0
    noise: Any = field(init=False)
    champion: DocumentScores = field(init=False)
    anchor: DocumentScores = field(init=False)

    def __post_init__(self) -> None:
        self.champion = self._text(self.documents, "old")
        self.noise = self._noise(self.champion)
        self.champion = self._changed(self.champion, self.noise)
        self.anchor, _ = next_anchor(None, self.champion, self.champion, [])

    def _text(self, count: int, group: str) -> DocumentScores:
        sizes = np.exp(self.draw.normal(math.log(1289 if self.spread else 700), self.spread, count))
        sizes = np.clip(sizes, 20, 60_000).astype(np.int64)
        hashes = np.arange(self.names, self.names + count, dtype=np.uint64)
        self.names += count
        names = np.char.add("s", (hashes % self.sources).astype(str))
        groups = np.full(count, group)
        return DocumentScores("w", "t", 8, hashes, 1.6 * BITS * sizes, sizes // 4 + 1, sizes, names, groups)

    def _noise(self, scores: DocumentScores) -> Any:
        """The noise of a version on each document, in bits per byte."""
        passages = np.maximum(1, scores.text_bytes / PASSAGE)
        spread = DIFFERENCE / math.sqrt(2 * (1 - KEPT)) * np.sqrt(TOGETHER + (1 - TOGETHER) / passages)
        return spread * self.draw.normal(0, 1, len(scores))

    def _changed(self, scores: DocumentScores, bits_per_byte: Any) -> DocumentScores:
        return replace(scores, nats=scores.nats + bits_per_byte * BITS * scores.text_bytes)

    def week(self, old: float = 0.0, gain: float = 0.0, ruined: float = 0.0) -> bool:
        """Whether a challenger is promoted that is truly worse by ``old`` on old text and better by ``gain`` on new.

        ``ruined`` is added to one source.
        """
        came = self._text(max(1, round(GROWTH * self.documents)), "new")
        came_noise = self._noise(came)
        before = replace(self.champion, groups=np.full(len(self.champion), "old"))
        before = before.joined(self._changed(came, came_noise))
        noise = np.concatenate([self.noise, came_noise])
        is_new, loss = before.groups == "new", np.full(len(before), old)
        loss[is_new] = -gain * (1 + 0.7 * self.draw.normal(0, 1, int(is_new.sum())))
        loss[~is_new & (before.sources == "s0")] += ruined
        fresh = KEPT * noise + math.sqrt(1 - KEPT**2) * self._noise(before)
        after = self._changed(before, loss + fresh - noise)
        own = aligned(self.anchor, after)
        decision = decide(before, after, GATE, UNSEEN, NOWHERE, (aligned(own, self.anchor), own))
        if decision.promoted:
            self.anchor, _ = next_anchor(self.anchor, own, after, decision.references)
            self.champion, self.noise, self.level = after, fresh, self.level + old
            self.best = min(self.best, self.level)
        return decision.promoted


def mixture(team: Team) -> tuple[str, dict[str, float]]:
    """The kind of a week, and what its challenger does."""
    kind = team.draw.choice(["good", "no change", "forgets", "ruins a source", "bad"], p=[0.6, 0.15, 0.15, 0.05, 0.05])
    old = float(np.clip(team.draw.normal(0, 0.0015), -0.005, 0.005))
    return str(kind), {
        "good": {"old": old, "gain": team.draw.uniform(0.005, 0.05)},
        "no change": {},
        "forgets": {"old": team.draw.uniform(0.006, 0.02), "gain": 0.02},
        "ruins a source": {"old": old, "gain": 0.02, "ruined": 0.08},
        "bad": {"old": team.draw.uniform(0.02, 0.04), "gain": -0.02},
    }[str(kind)]


def equal(team: Team) -> tuple[str, dict[str, float]]:
    return "equal", {}


def creep(team: Team) -> tuple[str, dict[str, float]]:
    """Each challenger is truly a little worse on old text, and better on new."""
    return "creeps", {"old": 0.002 + team.draw.normal(0, 0.0015), "gain": 0.03}


def year(name: str, weeks: Any, seed: int) -> tuple[dict[str, list[bool]], float]:
    """Promotions by kind of week, and by how much old text truly got worse since the best version."""
    documents, spread = TEAMS[name]
    team, promoted = Team(documents, spread, np.random.default_rng([seed, documents])), dict[str, list[bool]]()
    for _ in range(WEEKS):
        kind, change = weeks(team)
        kind = "good, old text worse" if kind == "good" and change["old"] > GATE.old_margin / 2 else kind
        promoted.setdefault(kind, []).append(team.week(**change))
    return promoted, team.level - team.best


def _years(title: str, weeks: Any) -> None:
    rows = []
    for name in TEAMS:
        found = [year(name, weeks, seed) for seed in range(YEARS)]
        kinds = sorted({kind for promoted, _ in found for kind in promoted})
        shares = {kind: [each for promoted, _ in found for each in promoted.get(kind, [])] for kind in kinds}
        losses = sorted(loss for _, loss in found)
        text = ", ".join(f"{kind} {100 * np.mean(shares[kind]):.0f}" for kind in kinds)
        year_count = sum(sum(sum(each) for each in promoted.values()) for promoted, _ in found) / YEARS
        beyond = f"{100 * np.mean([loss > GATE.total_margin for loss in losses]):.0f}"
        rows.append([name, text, f"{year_count:.0f}", f"{np.quantile(losses, 0.95):.4f}", beyond])
    header = (
        "held out at the start|promoted, % of weeks of a kind|promotions a year|95 % of years lose at most|beyond, %"
    )
    table(f"{YEARS} years, {title}", header, rows)


def main() -> None:
    draw = np.random.default_rng(0)
    rows = [
        [
            f"{units}",
            "skewed" if skewed else "symmetric",
            *(f"{100 * each:.1f}" for each in coverage(units, draw, skewed)),
        ]
        for skewed in (False, True)
        for units in (5, 10, 20, 50, 200)
    ]
    table("Coverage, nominal 2.5 %", "units|tails|truth above, %|truth below, %", rows)
    rows = []
    for name, (documents, spread) in TEAMS.items():
        passed, powers = 0, []
        for seed in range(LOOKS):
            team = Team(documents, spread, np.random.default_rng([1, seed, documents]))
            fresh = KEPT * team.noise + math.sqrt(1 - KEPT**2) * team._noise(team.champion)
            after = team._changed(team.champion, fresh - team.noise)
            gate = GATE.model_copy(update={"must_improve_new": False})
            [old, *_] = decide(team.champion, after, gate, UNSEEN, NOWHERE).comparisons
            passed, powers = passed + old.is_within, [*powers, old.power]
        rows.append([name, f"{100 * passed / LOOKS:.0f}", f"{100 * np.mean(powers):.0f}"])
    table("One look: an equal model passes the rule of old text", "held out|passed, %|power as the page says, %", rows)
    _years("a mixture of weeks", mixture)
    _years("all challengers equal", equal)
    _years("a creep of 0.002 a challenger", creep)


if __name__ == "__main__":
    main()
