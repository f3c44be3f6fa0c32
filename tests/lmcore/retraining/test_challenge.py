"""Who is judged on which text: never on any that it, or what it began with, was trained on."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lmcore.errors import StoreError
from lmcore.model.evaluate import evaluate
from lmcore.model.export import export
from lmcore.registry.registry import add_version, promote, prune, rollback
from lmcore.registry.versions import Version, champion
from lmcore.retraining.challenge import compare, earlier_refusal, record_decision, require_comparable
from lmcore.retraining.gate import Decision
from lmcore.retraining.scoring import (
    dataset_texts,
    score_champion,
    score_on_anchor,
    score_texts,
    score_validation,
)
from lmcore.runs.prepare import prepare_run, run_key
from lmcore.runs.run import Run
from lmcore.runs.seen_documents import SEEN_DOCUMENTS
from lmcore.settings.config import RunConfig
from lmcore.settings.retraining import GateConfig
from lmcore.store.artifacts import read_manifest
from lmcore.training.train import train
from lmcore.upkeep.garbage_collection import collect
from tests.conftest import prepare, tiny_config, write_corpus

MODELS = ("champion", "challenger")
GATE = GateConfig(minimum_old_documents=2, minimum_new_documents=2)


class Line:
    """Models that each began with the one before, every one on a corpus of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, folder / "store"
        self.tokenizer = ""

    def corpus(self, number: int) -> Path:
        return self.folder / f"corpus-{number}"

    def config(self, number: int, **train: object) -> RunConfig:
        config = tiny_config(write_corpus(self.corpus(number), 60, seed=number), self.store, max_steps=2, **train)
        tokenizer = config.tokenizer.model_copy(update={"source": self.tokenizer or "train"})
        corpus = config.corpus.model_copy(update={"validation_fraction": 0.2})
        return config.model_copy(update={"tokenizer": tokenizer, "corpus": corpus})

    def model(self, config: RunConfig) -> Run:
        """A finished run, exported."""
        prepared = prepare(config)
        self.tokenizer = self.tokenizer or str(prepared.tokenizer.folder)
        run = prepare_run(config, prepared.dataset, prepared.tokenizer, prepared.store)
        training = train(run)
        export(training, evaluate(run, training.checkpoint))
        return run

    def champion(self, run: Run) -> Version:
        version = add_version(self.store, "lm", run, {"promoted": True})
        promote(self.store, "lm", version.id, expected=self._champion(), reason="")
        found = champion(self.store, "lm")
        assert found is not None
        return found

    def _champion(self) -> str | None:
        found = champion(self.store, "lm")
        return found.id if found else None


def compared(best: Version, folder: Path, gate: GateConfig = GATE) -> Decision:
    """The decision after the champion and the anchor were scored."""
    score_champion(best, folder)
    score_on_anchor(best, folder)
    return compare(best, folder, gate)


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line(tmp_path)


def training_text(decision: Decision) -> dict[str, str]:
    """What the rules found of champion and challenger."""
    found = {rule.rule: rule.found for rule in decision.rules}
    return {side: found[rule] for side in MODELS if (rule := f"training text of the {side}") in found}


def third_generation(line: Line, first: Run, begin_with: Callable[[Run], Path]) -> tuple[Version, Run]:
    """A champion that went on from ``first``, and a challenger from that, which is validated on the text of the first.

    ``begin_with`` says what of a run the next one begins with.
    """
    second = line.model(line.config(1, init_from=str(begin_with(first))))
    champion = line.champion(second)
    config = line.config(2, init_from=str(begin_with(second)))
    held_out = config.corpus.model_copy(update={"validation_paths": [str(line.corpus(0))]})
    return champion, line.model(config.model_copy(update={"corpus": held_out}))


@pytest.mark.parametrize(
    "begin_with", [lambda run: run.folder / "model", lambda run: run.checkpoints / "step-00000002"]
)
def test_text_that_the_first_of_three_was_trained_on_promotes_nobody(
    line: Line, begin_with: Callable[[Run], Path]
) -> None:
    first = line.model(line.config(0))
    champion, third = third_generation(line, first, begin_with)
    seen = read_manifest(first.dataset_folder)["splits"]["train"]["documents"]
    decision = compared(champion, third.folder)
    assert not decision.promoted
    assert training_text(decision) == dict.fromkeys(("challenger", "champion"), f"{seen} of these documents")
    assert decision.comparisons == []


def test_a_model_that_begins_anew_has_no_past(line: Line) -> None:
    line.model(line.config(0))
    config = line.config(1)  # from new weights
    held_out = config.corpus.model_copy(update={"validation_paths": [str(line.corpus(0))]})
    second = line.model(config.model_copy(update={"corpus": held_out}))
    decision = compare(None, second.folder, GATE)
    assert decision.promoted
    assert training_text(decision) == {"challenger": "0 of these documents"}


def test_what_an_ancestor_was_trained_on_is_known_after_its_dataset_is_gone(line: Line) -> None:
    first = line.model(line.config(0))
    line.champion(first)
    line.champion(line.model(line.config(1, init_from=str(first.folder / "model"))))
    exported = champion(line.store, "lm").folder
    last = line.champion(line.model(line.config(2, init_from=str(exported))))
    challenger = line.model(line.config(3, init_from=str(last.folder)))
    assert prune(line.store, "lm", keep=1) == ["v0001"]
    collect(line.store, keep_runs=1, grace_seconds=0)
    assert not first.dataset_folder.exists()
    found = training_text(compared(last, challenger.folder))
    assert found == dict.fromkeys(("challenger", "champion"), "0 of these documents")
    (challenger.folder / SEEN_DOCUMENTS).unlink()
    decision = compared(last, challenger.folder)
    assert not decision.promoted
    assert training_text(decision)["challenger"].startswith(f"unknown: {challenger.folder} has no {SEEN_DOCUMENTS}")


def test_a_tokenizer_that_is_not_exact_is_judged_by_its_ids(
    line: Line, transformers_folder: Callable[..., Path]
) -> None:
    from tokenizers import Tokenizer as Fast
    from tokenizers import normalizers

    exact = line.champion(line.model(line.config(0)))
    theirs = transformers_folder(eos_token="<|end|>")
    fast = Fast.from_file(str(theirs / "tokenizer.json"))
    fast.normalizer = normalizers.NFKC()
    fast.save(str(theirs / "tokenizer.json"))
    line.tokenizer = str(theirs)
    run = line.model(line.config(1))
    assert compare(None, run.folder, GATE).promoted
    champion = line.champion(run)
    again = line.model(line.config(2, init_from=str(champion.folder)))
    require_comparable(champion, again.dataset_folder)
    decision = compared(champion, again.folder)
    assert "evaluation set" in {rule.rule for rule in decision.rules}
    assert all(rule.passed for rule in decision.rules if not rule.rule.startswith("documents of"))
    with pytest.raises(StoreError, match=r"is not exact, .* retrain with the champion's tokenizer"):
        require_comparable(exact, again.dataset_folder)


def test_ids_and_texts_score_alike(line: Line) -> None:
    run = line.model(line.config(0))
    by_text = score_texts(run.folder / "model", dataset_texts(run.dataset_folder))
    by_ids = score_validation(run.folder / "model", run.dataset_folder, "auto", "auto")
    assert by_ids.fingerprint == by_text.fingerprint
    assert by_ids.nats.tolist() == by_text.nats.tolist()


def test_what_a_gate_refused_or_somebody_took_back_is_not_tried_again(line: Line) -> None:
    best = line.champion(line.model(line.config(0)))
    config = line.config(1, init_from=str(best.folder))
    run, dataset = line.model(config), prepare(config).dataset

    def reason(gate: GateConfig) -> str | None:
        event = earlier_refusal(line.store, "lm", config, dataset, gate)
        return event["reason"] if event else None

    def settled(gate: GateConfig, **decided: object) -> None:
        decision = compared(best, run.folder, gate).model_copy(update=decided)
        record_decision(line.store, "lm", best, run.folder, decision, run_key(config, dataset), gate, "")

    assert reason(GATE) is None
    settled(GATE, promoted=False, reasons=["worse"])
    lax = GATE.model_copy(update={"old_margin": 1.0})
    assert (reason(GATE), reason(lax)) == ("worse", None)
    settled(lax, promoted=True)
    assert reason(lax) is None
    assert rollback(line.store, "lm", reason="it talks nonsense").id == "v0001"
    assert reason(GATE) == reason(lax) == "it talks nonsense"
