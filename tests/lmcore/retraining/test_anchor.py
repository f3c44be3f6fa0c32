"""The anchor stays: small losses do not add up, and nothing that left the corpus is forgotten unseen."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmcore.registry.registry import promote, rollback
from lmcore.registry.versions import Version, champion, history
from lmcore.retraining.anchor import ANCHOR, SCORES, aligned, next_anchor, reference
from lmcore.retraining.challenge import compare, record_decision
from lmcore.retraining.gate import Decision, decide
from lmcore.retraining.scoring import score_champion, score_on_anchor
from lmcore.runs.run import Run
from lmcore.runs.scores import DocumentScores
from lmcore.settings.retraining import GateConfig
from lmcore.upkeep.forget import forget
from tests.lmcore.retraining.test_challenge import Line
from tests.lmcore.retraining.test_gate import UNSEEN

GATE = GateConfig()
LAX = GateConfig(minimum_old_documents=2, minimum_new_documents=2, old_margin=1, total_margin=1, must_improve_new=False)
BITS = 1000 * np.log(2)
"""Nats of one bit per byte on a document of 1,000 bytes."""


def text(hashes: Any, bits_per_byte: float, source: str = "wiki", group: str = "old") -> DocumentScores:
    """Scores of documents of 1,000 bytes with small noise that is the same for all models."""
    count = len(hashes)
    noise = np.random.default_rng(0).normal(0, 1e-4, count)
    return DocumentScores(
        weights="w",
        tokenizer_id="t",
        block_size=8,
        hashes=np.asarray(hashes, np.uint64),
        nats=(bits_per_byte + noise) * BITS,
        tokens=np.full(count, 300),
        text_bytes=np.full(count, 1000),
        sources=np.full(count, source),
        groups=np.full(count, group),
    )


class Weeks:
    """A model whose challengers are scored on the same old text, and on new text of each week."""

    def __init__(self, old: DocumentScores) -> None:
        self.number, self.champion = 1, old
        self.anchor, _ = next_anchor(None, old, old, [])

    def challenge(self, old: float, new: float = -0.05, documents: int = 40) -> Decision:
        """A challenger that differs from the champion by ``old`` and ``new`` bits per byte."""
        self.number += 1
        came = text(np.arange(documents) + 10_000 * self.number, 2, group="new")
        before = replace(self.champion, groups=np.full(len(self.champion), "old")).joined(came)
        after = replace(before, nats=before.nats + BITS * np.where(before.groups == "new", new, old))
        own = aligned(self.anchor, after)
        decision = decide(before, after, GATE, UNSEEN, Path("nowhere"), (aligned(own, self.anchor), own))
        if decision.promoted:
            self.champion = after
            self.anchor, _ = next_anchor(self.anchor, own, after, decision.references)
        return decision


def failed(decision: Decision) -> list[str]:
    return [rule.rule for rule in decision.rules if not rule.passed]


def test_losses_that_each_week_allows_do_not_add_up_to_more_than_the_total() -> None:
    weeks = Weeks(text(np.arange(1, 101), 2))
    decisions = [weeks.challenge(old=0.004) for _ in range(4)]
    assert [decision.promoted for decision in decisions] == [True, True, False, False]
    assert failed(decisions[2]) == ["founding text"]
    assert "founding text: +0.0120 bits per byte" in decisions[2].verdict
    assert weeks.challenge(old=-0.001).promoted


def test_the_reference_moves_when_a_challenger_is_proved_better_and_holds_it_to_that() -> None:
    weeks = Weeks(text(np.arange(1, 101), 2))
    assert weeks.challenge(old=-0.1).references == ["founding"]
    assert weeks.challenge(old=0.0).references == []
    for _ in range(2):
        assert weeks.challenge(old=0.004).promoted
    assert failed(weeks.challenge(old=0.004))[:1] == ["founding text"]


def test_text_that_joined_is_only_shown_until_it_has_a_hundred_documents() -> None:
    weeks = Weeks(text(np.arange(1, 101), 2))
    decisions = [weeks.challenge(old=-0.001) for _ in range(4)]
    joined = [[each for each in decision.comparisons if each.name == "joined text"] for decision in decisions]
    assert [[(each.documents, each.limit) for each in some] for some in joined] == [
        [],
        [(40, None)],
        [(80, None)],
        [(120, GATE.total_margin)],
    ]
    assert [any(rule.rule == "joined text" for rule in decision.rules) for decision in decisions] == [False] * 3 + [
        True
    ]
    assert ["joined" in " ".join(decision.power) for decision in decisions] == [False] * 3 + [True]


def test_text_that_joined_does_not_hide_a_loss_on_founding_text() -> None:
    weeks = Weeks(text(np.arange(1, 101), 2))
    assert weeks.challenge(old=0.0, documents=200).promoted
    joined = np.isin(weeks.champion.hashes, np.arange(1, 101), invert=True)
    before = replace(weeks.champion, groups=np.where(joined, "old", "old"))
    after = replace(before, nats=before.nats + BITS * np.where(joined, -0.1, 0.012))
    own = aligned(weeks.anchor, after)
    gate = GATE.model_copy(update={"must_improve_new": False})
    decision = decide(before, after, gate, UNSEEN, Path("nowhere"), (aligned(own, weeks.anchor), own))
    assert failed(decision) == ["founding text"]


def test_a_ruined_source_of_the_anchor_is_a_veto() -> None:
    founding = text(np.arange(1, 301), 2).joined(text(np.arange(301, 311), 2, source="small"))
    weeks = Weeks(founding)
    before = weeks.champion
    after = replace(before, nats=before.nats + BITS * np.where(before.sources == "small", 0.05, -0.005))
    gate = GATE.model_copy(update={"must_improve_new": False, "old_margin": 1.0})
    own = aligned(weeks.anchor, after)
    decision = decide(before, after, gate, UNSEEN, Path("nowhere"), (aligned(own, weeks.anchor), own))
    assert failed(decision) == ["founding text of small"]


def decided(line: Line, run: Run) -> Version:
    """The run as a version, by the stages of a retraining."""
    best = champion(line.store, "lm")
    if best is not None:
        score_champion(best, run.folder)
        score_on_anchor(best, run.folder)
    decision = compare(best, run.folder, LAX)
    return record_decision(line.store, "lm", best, run.folder, decision, run.folder.name, LAX, page="")


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line(tmp_path)


def test_text_that_left_the_corpus_is_still_scored(line: Line) -> None:
    first = decided(line, line.model(line.config(0)))
    anchor = DocumentScores.load(first.folder / ANCHOR)
    assert set(anchor.groups) == {"founding"}
    run = line.model(line.config(1, init_from=str(first.folder)))  # its corpus has nothing of the first's
    second = decided(line, run)
    after, own = (DocumentScores.load(second.folder / name) for name in (ANCHOR, SCORES))
    assert len(after) == len(own) > len(anchor)
    assert not np.array_equal(aligned(anchor, own).nats, anchor.nats)
    assert np.isfinite(own.nats).all()


def test_a_forgotten_document_leaves_the_anchor(line: Line) -> None:
    first = decided(line, line.model(line.config(0)))
    anchor = DocumentScores.load(first.folder / ANCHOR)
    forget(line.store, f"{int(anchor.hashes[0]):016x}")
    run = line.model(line.config(1, init_from=str(first.folder)))
    score_champion(first, run.folder)
    own = score_on_anchor(first, run.folder)
    assert sorted(own.hashes.tolist()) == sorted(anchor.hashes.tolist()[1:])


def test_a_rollback_brings_the_anchor_back_and_a_person_may_set_the_reference(line: Line) -> None:
    first = decided(line, line.model(line.config(0)))
    second = decided(line, line.model(line.config(1, init_from=str(first.folder))))
    nothing = DocumentScores.load(first.folder / SCORES)
    assert len(reference(second, nothing)) > len(reference(first, nothing))
    promote(line.store, "lm", second.id, expected=first.id, reason="all of its text is new", force=True)
    rollback(line.store, "lm", reason="worse to read")
    assert champion(line.store, "lm") == first
    promote(line.store, "lm", second.id, expected=first.id, reason="meant", force=True, reference=True)
    assert history(line.store, "lm")[-1]["reference"] is True
    own = DocumentScores.load(second.folder / SCORES)
    assert reference(second, nothing).nats.tolist() == own.nats.tolist()
