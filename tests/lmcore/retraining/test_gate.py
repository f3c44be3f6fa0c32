"""Who is promoted, who never is, and the laws of the comparison."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.errors import StoreError
from lmcore.report.plots import comparison_picture
from lmcore.retraining.gate import Comparison, Decision, decide
from lmcore.runs.scores import DocumentScores
from lmcore.settings.retraining import GateConfig
from tests.benchmarks.gate import creep, mixture, year

GATE = GateConfig()
NOWHERE = Path("nowhere")
UNSEEN = {"champion": np.array([2**63], np.uint64), "challenger": np.array([2**63 + 1], np.uint64)}


def scores_of(seed: int = 0, documents: int = 400, **changes: Any) -> DocumentScores:
    """Half old, half new text of two sources, at 2 bits per byte or so."""
    draw = np.random.default_rng(seed)
    text_bytes = np.maximum(1, draw.lognormal(6, 1.5, documents).astype(np.int64))
    rows = np.arange(documents)
    columns: dict[str, Any] = {
        "hashes": draw.permutation(documents).astype(np.uint64) + 1,
        "nats": text_bytes * draw.normal(1.4, 0.2, documents),
        "tokens": text_bytes // 4 + 1,
        "text_bytes": text_bytes,
        "sources": np.where(rows % 3 == 0, "web", "wiki"),
        "groups": np.where(rows % 2 == 0, "old", "new"),
    }
    return DocumentScores(**{"weights": "a", "tokenizer_id": "t", "block_size": 64, **columns, **changes})


def changed(scores: DocumentScores, new: float, old: float, spread: float = 0.01, seed: int = 1) -> DocumentScores:
    """Another model's scores: nats times ``new`` or ``old``, and noise."""
    noise = np.random.default_rng(seed).normal(0, spread, len(scores))
    factor = np.where(scores.groups == "new", new, old) + noise
    return replace(scores, weights="b", nats=scores.nats * factor)


def judge(champion: DocumentScores | None, challenger: DocumentScores, config: GateConfig = GATE) -> Decision:
    return decide(champion, challenger, config, UNSEEN, NOWHERE)


def assert_refused(decision: Decision, *reasons: str) -> None:
    assert not decision.promoted
    assert [reason for reason in reasons if not any(reason in each for each in decision.reasons)] == []


def test_a_better_model_is_promoted_and_says_by_how_much() -> None:
    champion = scores_of()
    decision = judge(champion, changed(champion, new=0.97, old=1))
    assert decision.promoted
    assert all(rule.passed for rule in decision.rules)
    assert [reason.partition(":")[0] for reason in decision.reasons] == ["new text", "old text"]
    new = decision.comparisons[0]
    assert new.difference == pytest.approx(-0.03 * new.champion, rel=0.1)
    assert new.low < new.difference < new.high < 0
    assert decision.verdict.startswith(
        f"promoted: new text: {new.difference:+.4f} bits per byte (90 %: at most {new.high:+.4f})"
    )


def test_a_worse_one_is_refused_in_plain_words() -> None:
    champion = scores_of()
    decision = judge(champion, changed(champion, new=0.97, old=1.01))
    [old] = [each for each in decision.comparisons if each.name == "old text"]
    found = f"old text: {old.difference:+.4f} bits per byte (97.5 %: at most {old.high:+.4f}), needed at most 0.005"
    assert decision.verdict.startswith(f"refused: {found}; old text of w")
    assert {row["rule"]: row["passed"] for row in decision.rows()}["old text"] == "no"


def test_equal_models_are_never_promoted() -> None:
    decision = judge(scores_of(), scores_of())
    assert_refused(decision, "new text: +0.0000 bits per byte")
    assert {(each.low, each.high) for each in decision.comparisons} == {(0.0, 0.0)}
    assert judge(scores_of(), scores_of(), GATE.model_copy(update={"must_improve_new": False})).promoted


@pytest.mark.parametrize("margin", [0.0, 0.005])
def test_old_text_may_stay_as_it_is(margin: float) -> None:
    champion = scores_of()
    config = GateConfig(old_margin=margin)
    better = replace(champion, nats=np.where(champion.groups == "new", 0.9, 1.0) * champion.nats)
    assert judge(champion, better, config).promoted


BROKEN = st.sampled_from([np.nan, np.inf, -np.inf])


@settings(max_examples=25)
@given(row=st.integers(0, 399), value=BROKEN, side=st.sampled_from(["champion", "challenger"]))
def test_a_loss_that_is_no_number_never_promotes(row: int, value: float, side: str) -> None:
    champion = scores_of()
    models = {"champion": champion, "challenger": changed(champion, new=0.9, old=0.9)}
    models[side].nats[row] = value
    decision = judge(models["champion"], models["challenger"])
    assert_refused(decision, f"losses of the {side}: 1 are not finite")
    assert decision.comparisons == []
    if side == "challenger":
        assert_refused(decide(None, models[side], GATE, UNSEEN, NOWHERE), "1 are not finite")


@settings(max_examples=25)
@given(row=st.integers(0, 399), side=st.sampled_from(["champion", "challenger"]))
def test_a_document_that_was_trained_on_never_promotes(row: int, side: Any) -> None:
    champion = scores_of()
    seen = {**UNSEEN, side: np.union1d(UNSEEN[side], champion.hashes[[row]])}
    decision = decide(champion, changed(champion, new=0.9, old=0.9), GATE, seen, NOWHERE)
    assert_refused(decision, f"training text of the {side}: 1 of these documents")
    assert_refused(decide(champion, champion, GATE, {**UNSEEN, side: "unknown, for"}, NOWHERE), f"{side}: unknown")
    if side == "challenger":
        assert_refused(decide(None, champion, GATE, seen, NOWHERE), "1 of these documents")


CHANGES: dict[str, Any] = {
    "another text": lambda s, row: replace(s, hashes=_with(s.hashes, row, 2**62)),
    "other bytes": lambda s, row: replace(s, text_bytes=_with(s.text_bytes, row, s.text_bytes[row] + 1)),
    "another source": lambda s, row: replace(s, sources=_with(s.sources, row, "book")),
    "another group": lambda s, row: replace(s, groups=_with(s.groups, row, "new" if row % 2 == 0 else "old")),
    "one less": lambda s, row: _rows(s, np.delete(np.arange(len(s)), row)),
    "one twice": lambda s, row: _rows(s, np.append(np.arange(len(s)), row)),
}


def _with(column: Any, row: int, value: Any) -> Any:
    column = column.copy()
    column[row] = value
    return column


def _rows(scores: DocumentScores, rows: Any) -> DocumentScores:
    names = ("hashes", "nats", "tokens", "text_bytes", "sources", "groups")
    return replace(scores, **{name: getattr(scores, name)[rows] for name in names})


@settings(max_examples=40)
@given(row=st.integers(0, 399), change=st.sampled_from(sorted(CHANGES)))
def test_another_evaluation_set_never_promotes(row: int, change: str) -> None:
    champion = scores_of()
    decision = judge(champion, CHANGES[change](changed(champion, new=0.9, old=0.9), row))
    assert_refused(decision, "evaluation set: ")
    assert decision.comparisons == []


@settings(max_examples=40)
@given(new=st.integers(0, 40), old=st.integers(0, 40), copies=st.integers(1, 3))
def test_too_few_documents_never_promote_and_copies_do_not_count(new: int, old: int, copies: int) -> None:
    everything = scores_of(documents=600, sources=np.full(600, "web"))
    rows = np.concatenate(
        [np.flatnonzero(everything.groups == "new")[:new], np.flatnonzero(everything.groups == "old")[:old]]
    )
    champion = _rows(everything, np.tile(rows, copies))
    decision = judge(champion, changed(champion, new=0.9, old=0.9, spread=0))
    assert decision.promoted == (new >= 5 and old >= 20)
    if new + old:
        for group, count, least in (("new", new, 5), ("old", old, 20)):
            if count < least:
                assert_refused(decision, f"documents of {group} text: {count} (too few), needed {least}")
    else:
        assert_refused(decision, "evaluation of the challenger: 0 documents", "evaluation of the champion")


def test_without_a_champion_only_the_rule_of_the_first_model_promotes() -> None:
    decision = decide(None, scores_of(), GATE, UNSEEN, NOWHERE)
    assert decision.promoted
    assert decision.verdict.startswith("promoted: the first model: 2.0")
    empty = _rows(scores_of(), np.arange(0))
    assert_refused(decide(None, empty, GATE, UNSEEN, NOWHERE), "0 documents")


def test_a_group_of_another_name_is_refused() -> None:
    champion = scores_of(groups=np.where(np.arange(400) % 2 == 0, "old", "corpus"))
    assert_refused(judge(champion, changed(champion, new=0.9, old=0.9)), "corpus, needed old and new only")


def test_a_source_that_is_proved_worse_is_a_veto_of_its_own() -> None:
    """The rule of all old text does not see it: another source gets better."""
    champion = scores_of(documents=1300)
    worse = changed(champion, new=0.97, old=0.95)
    worse.nats[(champion.sources == "web") & (champion.groups == "old")] *= 1.1
    decision = judge(champion, worse)
    [reason] = decision.reasons
    assert reason.startswith("old text of web: +0.")
    assert "(97.5 %: at least +0." in reason
    assert reason.endswith("needed not proved above 0.005")


def test_a_source_that_may_be_equal_is_no_veto_however_few_its_documents() -> None:
    champion = scores_of(sources=np.where(np.arange(400) < 2, "small", "wiki"))
    assert judge(champion, changed(champion, new=0.95, old=0.99)).promoted


def test_without_the_rule_of_new_text_none_is_needed() -> None:
    champion = scores_of(groups=np.full(400, "old"))
    config = GATE.model_copy(update={"must_improve_new": False})
    assert judge(champion, champion, config).promoted
    assert_refused(judge(champion, changed(champion, 1, 1.02), config), "old text: +0.0")
    assert_refused(judge(champion, champion), "documents of new text: 0 (too few)")


FACTORS = st.floats(0.9, 1.1)


@settings(max_examples=25)
@given(new=FACTORS, old=FACTORS, seed=st.integers(0, 5))
def test_the_comparison_is_symmetric(new: float, old: float, seed: int) -> None:
    one = scores_of(seed)
    other = changed(one, new, old)
    there, back = judge(one, other), judge(other, one)
    assert not (there.promoted and back.promoted)
    for first, second in zip(there.comparisons, back.comparisons, strict=True):
        assert (first.difference, first.low, first.high) == pytest.approx(
            (-second.difference, -second.high, -second.low), abs=1e-12
        )


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31))
def test_the_order_of_documents_does_not_matter(seed: int) -> None:
    champion = scores_of()
    challenger = changed(champion, 0.99, 1.001)
    draw = np.random.default_rng(seed)
    mixed = [_rows(scores, draw.permutation(len(scores))) for scores in (champion, challenger)]
    assert judge(*mixed) == judge(champion, challenger)


def test_a_long_document_counts_by_a_part() -> None:
    """One long document got worse by much, all others better: the total over all bytes is worse, the rule's is not."""
    text_bytes = np.full(400, 1_000)
    text_bytes[0] = 1_000_000
    champion = scores_of(text_bytes=text_bytes, nats=text_bytes * 1.4, sources=np.full(400, "web"))
    challenger = replace(champion, nats=champion.nats * np.where(text_bytes > 1_000, 1.01, 0.98))
    [old] = [each for each in judge(champion, challenger).comparisons if each.name == "old text"]
    assert old.challenger > old.champion
    assert old.difference < 0
    whole = judge(champion, challenger, GATE.model_copy(update={"unit_bytes": 10**9})).comparisons[1]
    assert whole.difference == pytest.approx(whole.challenger - whole.champion)


def test_the_page_says_how_often_an_equal_model_passes() -> None:
    champion = scores_of()
    [old] = [each for each in judge(champion, changed(champion, 0.9, 1)).comparisons if each.name == "old text"]
    assert 0 < old.power < 0.8
    assert old.documents_for_power > old.documents
    [sentence] = judge(champion, changed(champion, 0.9, 1)).power
    assert f"in {100 * old.power:.0f} % of retrainings; {old.documents_for_power:,.0f} documents would" in sentence
    assert judge(champion, champion).power[0].endswith("passes that rule in 100 % of retrainings.")
    assert judge(None, champion).power == []


def test_a_decision_is_kept_as_json(tmp_path: Path) -> None:
    champion = scores_of()
    decision = decide(champion, changed(champion, 0.97, 1.02), GATE, UNSEEN, tmp_path).save()
    assert Decision.load(tmp_path) == decision
    decision.verify()
    decision.model_copy(update={"promoted": True}).save()
    with pytest.raises(StoreError):
        decision.verify()
    broken = decide(champion, replace(champion, nats=champion.nats * np.nan), GATE, UNSEEN, tmp_path).save()
    assert Decision.load(tmp_path) == broken


def test_the_tables_have_a_row_for_everything() -> None:
    champion = scores_of()
    decision = judge(champion, changed(champion, 0.97, 1))
    assert [row["text"] for row in decision.comparison_rows()] == [
        *("new text", "new text of web", "new text of wiki"),
        *("old text", "old text of web", "old text of wiki"),
    ]
    assert [row["interval"].partition("(")[2] for row in decision.comparison_rows()] == [
        *("90 % each)", "97.5 % each)", "97.5 % each)", "97.5 % each)", "97.5 % each)", "97.5 % each)")
    ]
    assert {row["passed"] for row in decision.rows()} == {"yes"}


def test_a_picture_of_any_comparison_is_drawn() -> None:
    champion = scores_of()
    for decision in (judge(champion, changed(champion, 0.97, 1.02)), judge(None, champion)):
        assert comparison_picture(decision.comparisons, "学習").startswith(b"\x89PNG")


def test_a_limit_of_zero_is_met_by_zero_on_old_text_only() -> None:
    figures = {"source": "", "documents": 9, "text_bytes": 9, "champion": 1, "challenger": 1, "level": 0.9, "limit": 0}
    at_zero = Comparison(group="old", difference=0, low=0, high=0, **figures)
    assert at_zero.is_within
    assert not replace(at_zero, group="new").is_within


def test_a_year_of_retrainings_promotes_good_weeks_and_no_bad_ones() -> None:
    promoted, lost = year("400 pieces", mixture, seed=3)
    assert np.mean(promoted["good"]) >= 0.8
    assert not any(promoted["forgets"] + promoted.get("bad", []) + promoted.get("ruins a source", []))
    assert lost <= GATE.total_margin


def test_a_creep_of_small_losses_ends_at_the_total_margin() -> None:
    promoted, lost = year("400 pieces", creep, seed=0)
    assert 3 <= sum(promoted["creeps"]) < 20
    assert lost <= GATE.total_margin + 0.0017  # one standard error
