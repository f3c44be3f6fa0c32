"""The score of a text does not depend on how it is batched, windowed or padded."""

import math
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
import torch

from lmcore.dataset.stream import TokenStream
from lmcore.errors import StoreError
from lmcore.model.evaluate import Scorer, evaluate
from lmcore.model.loss import NextTokenLoss
from lmcore.model.model import new_model, trained_model
from lmcore.runs.scores import DocumentScores, Evaluation, Score, scores_path
from lmcore.training.train import train
from tests.conftest import Prepared, Trained


def by_hand(model: Any, documents: list[Any], block: int, eos: int) -> float:
    """Nats, one document and one window at a time, with log_softmax and a Python loop."""
    nats = 0.0
    model.eval()
    for ids, *_ in documents:
        sequence = [eos, *ids.tolist()]
        for start in range(0, len(ids), block):
            window = torch.tensor(sequence[start : start + block])
            with torch.no_grad():
                log_probabilities = model(window[None]).logits[0].double().log_softmax(-1)
            for position, target in enumerate(sequence[start + 1 : start + 1 + len(window)]):
                nats -= log_probabilities[position, target].item()
    return nats


@pytest.fixture
def scorer(trained: Trained) -> Scorer:
    model = trained_model(trained.run, trained.training.checkpoint)
    return Scorer.from_run(trained.run, NextTokenLoss(model))


@pytest.fixture
def documents(trained: Trained) -> list[Any]:
    return list(TokenStream(trained.run.dataset_folder, "validation").documents())


def test_the_score_is_the_one_made_by_hand(scorer: Scorer, documents: list[Any]) -> None:
    block = scorer.block_size
    assert {len(ids) > block for ids, *_ in documents} == {True, False}
    expected = by_hand(scorer.loss.model, documents, block, scorer.eos_id)
    assert scorer(documents).nats == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 32, 33])
def test_a_document_at_the_edge_of_a_block(scorer: Scorer, length: int) -> None:
    ids = np.append(np.arange(10, 9 + length), scorer.eos_id).astype(np.uint16)
    score = scorer([(ids, 5, 0)])
    assert (score.documents, score.tokens, score.text_bytes) == (1, length, 5)
    assert score.nats == pytest.approx(by_hand(scorer.loss.model, [(ids,)], 16, scorer.eos_id), rel=1e-6)


def test_the_batch_size_does_not_matter(scorer: Scorer, documents: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    scores = []
    for rows in (1, 3, 1000):
        monkeypatch.setattr("lmcore.model.evaluate._ROWS_AT_ONCE", rows)
        scores.append(scorer(documents))
    assert len({(score.documents, score.tokens, score.text_bytes) for score in scores}) == 1
    assert [score.nats for score in scores] == pytest.approx([scores[0].nats] * 3, rel=1e-6)


def test_a_document_scores_the_same_in_any_company(scorer: Scorer, documents: list[Any]) -> None:
    alone = sum(scorer([document]).nats for document in documents)
    assert scorer(documents).nats == pytest.approx(alone, rel=1e-6)
    assert scorer(documents[::-1]).nats == pytest.approx(alone, rel=1e-6)


def test_every_id_and_every_end_is_counted_once(trained: Trained, documents: list[Any]) -> None:
    evaluation = trained.evaluation
    assert evaluation.documents == len(documents)
    assert evaluation.tokens == sum(len(ids) for ids, *_ in documents)
    assert all(ids[-1] == trained.run.tokenizer_info.eos_id for ids, *_ in documents)


def test_bits_per_byte_divide_by_the_bytes_of_the_original_text(trained: Trained, documents: list[Any]) -> None:
    tokenizer, evaluation = trained.run.tokenizer(), trained.evaluation
    text = sum(len(tokenizer.decode(ids[:-1].tolist()).encode()) for ids, *_ in documents)
    assert evaluation.text_bytes == text
    assert evaluation.bits_per_byte == pytest.approx(evaluation.nats / math.log(2) / text)
    assert evaluation.nats_per_token == evaluation.nats / evaluation.tokens
    assert evaluation.perplexity == pytest.approx(math.exp(evaluation.nats_per_token))


def test_every_source_has_a_score_of_its_own(mixed: Prepared) -> None:
    run = mixed.run(max_steps=2, dataset={"weights": {"web": 1, "wiki": 1}})
    evaluation = evaluate(run, train(run).checkpoint)
    scorer = Scorer.from_run(run, NextTokenLoss(trained_model(run, train(run).checkpoint)))
    assert list(evaluation.sources) == ["web", "wiki"]
    for name, score in evaluation.sources.items():
        alone = scorer(TokenStream(run.dataset_folder, "validation", name).documents())
        assert astuple(score) == pytest.approx(astuple(alone), rel=1e-6)
    assert Evaluation.load(run.folder) == evaluation
    for count in ("documents", "tokens", "text_bytes", "nats"):
        assert sum(getattr(score, count) for score in evaluation.sources.values()) == pytest.approx(
            getattr(evaluation, count)
        )


def test_the_score_of_every_document_is_kept(trained: Trained, scorer: Scorer, documents: list[Any]) -> None:
    found = DocumentScores.load(scores_path(trained.run.folder, trained.evaluation.weights))
    assert found.total.nats == trained.evaluation.nats
    assert found.hashes.tolist() == [hash_ for *_, hash_ in documents]
    assert found.nats == pytest.approx([scorer([document]).nats for document in documents], rel=1e-5)
    assert (found.block_size, found.tokenizer_id) == (scorer.block_size, trained.run.tokenizer_info.id)


def test_one_source_is_not_listed(trained: Trained) -> None:
    assert trained.evaluation.sources == {}


def test_a_perplexity_beyond_floats_is_infinite() -> None:
    assert Score(documents=1, tokens=1, text_bytes=1, nats=800.0).perplexity == math.inf


@pytest.mark.parametrize("training", [True, False])
def test_scoring_ignores_dropout_and_leaves_the_mode_and_the_draws_alone(
    prepared: Prepared, documents: list[Any], training: bool
) -> None:
    run = prepared.run(model={"dropout": 0.5})
    score = Scorer.from_run(run, NextTokenLoss(new_model(run).train(training)))
    before = torch.get_rng_state()
    assert score(documents) == score(documents)
    assert torch.equal(torch.get_rng_state(), before)
    assert score.loss.model.training is training


def test_training_lowered_the_score(trained: Trained) -> None:
    of_a_uniform_guess = math.log(trained.run.tokenizer_info.vocab_size)
    assert trained.evaluation.nats_per_token < of_a_uniform_guess - 0.3


def test_a_score_that_is_there_is_returned_only_for_the_same_weights(prepared: Prepared) -> None:
    run = prepared.run(max_steps=2)
    checkpoint = train(run).checkpoint
    evaluation = evaluate(run, checkpoint)
    marked = evaluation.model_copy(update={"nats": 1.0}).save()
    assert evaluate(run, checkpoint) == marked
    scores = scores_path(run.folder, evaluation.weights)
    scores.unlink()  # as in a store of an older version
    with pytest.raises(StoreError, match="there are no scores"):
        marked.verify()
    assert evaluate(run, checkpoint) == marked
    marked.verify()
    marked.model_copy(update={"weights": "of others"}).save()
    assert evaluate(run, checkpoint) == evaluation == Evaluation.load(run.folder)
