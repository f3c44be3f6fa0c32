"""Any model scores any text, and what it finds is what the run's own evaluation finds."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertLMHeadModel, GPT2Config, LlamaConfig

from lmcore.corpus.listing import Corpus
from lmcore.corpus.scan import scan
from lmcore.dataset.stream import TokenStream
from lmcore.errors import ConfigError, StoreError, TokenizerError
from lmcore.model.evaluate import Scorer
from lmcore.model.export import export
from lmcore.model.loss import NextTokenLoss
from lmcore.model.model import trained_model
from lmcore.retraining.scoring import LabelledText, corpus_texts, dataset_texts, evaluation_texts, score_texts
from lmcore.runs.run import weights_hash
from lmcore.runs.scores import DocumentScores
from lmcore.settings.config import CorpusConfig, TokenizerConfig
from lmcore.store.artifacts import manifest_bytes, read_manifest
from lmcore.store.files import hash_text
from lmcore.tokenizer.make import make_tokenizer
from tests.conftest import Prepared, Trained, prepare, tiny_config


@pytest.fixture(scope="module")
def exported(trained: Trained) -> Path:
    return export(trained.training, trained.evaluation).model_dir


@pytest.fixture(scope="module")
def texts(trained: Trained) -> list[LabelledText]:
    rows = enumerate(dataset_texts(trained.run.dataset_folder))
    return [text._replace(group="new" if i % 3 else "old") for i, text in rows]


@pytest.fixture(scope="module")
def scores(exported: Path, texts: list[LabelledText]) -> DocumentScores:
    return score_texts(exported, texts)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory, corpus: Path, prepared: Prepared) -> Path:
    """A llama with byte-level BPE, as transformers alone saves it."""
    folder = tmp_path_factory.mktemp("foreign")
    config = TokenizerConfig(model_type="byte_bpe", vocab_size=300)
    settings = CorpusConfig(paths=[str(corpus)])
    tokenizer = make_tokenizer(config, settings, Corpus.from_scan(scan(settings), settings), prepared.store)
    AutoTokenizer.from_pretrained(tokenizer.folder).save_pretrained(folder)
    shape = LlamaConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    shape.update({"max_position_embeddings": 24, "eos_token_id": tokenizer.eos_id, "pad_token_id": None})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
    return folder


def test_an_export_scores_as_its_run_does(trained: Trained, scores: DocumentScores) -> None:
    evaluation = trained.evaluation
    assert scores.total.nats == pytest.approx(evaluation.nats, rel=1e-6)
    counts = ("documents", "tokens", "text_bytes")
    assert [getattr(scores.total, name) for name in counts] == [getattr(evaluation, name) for name in counts]
    assert scores.weights == evaluation.weights
    assert scores.tokenizer_id == trained.run.tokenizer_info.id
    assert scores.block_size == 16


def test_every_document_is_scored_as_alone(trained: Trained, scores: DocumentScores) -> None:
    scorer = Scorer.from_run(trained.run, NextTokenLoss(trained_model(trained.run, trained.training.checkpoint)))
    documents = list(TokenStream(trained.run.dataset_folder, "validation").documents())
    assert scores.nats == pytest.approx([scorer([each]).nats for each in documents], rel=1e-5)
    assert scores.hashes.tolist() == [hash_ for *_, hash_ in documents]
    assert scores.tokens.tolist() == [len(ids) for ids, *_ in documents]
    assert scorer(documents).nats == pytest.approx(scorer.each(documents).nats.sum(), rel=1e-9)


def test_run_checkpoint_and_export_are_one_model(trained: Trained, texts: Any, scores: DocumentScores) -> None:
    for folder in (trained.run.folder, trained.training.checkpoint):
        found = score_texts(folder, texts)
        assert found.weights == weights_hash(trained.training.checkpoint) == scores.weights
        assert found.fingerprint == scores.fingerprint
        assert found.tokenizer_id == scores.tokenizer_id
        assert found.nats == pytest.approx(scores.nats, rel=1e-6)


def test_logits_in_chunks_give_the_same_scores(trained: Trained) -> None:
    model = trained_model(trained.run, trained.training.checkpoint)
    documents = list(TokenStream(trained.run.dataset_folder, "validation").documents())
    whole, parts = (
        Scorer(NextTokenLoss(model, chunk), 16, trained.run.tokenizer_info.eos_id, "fp32") for chunk in (0, 7)
    )
    assert parts.each(documents).nats == pytest.approx(whole.each(documents).nats, rel=1e-5)


def test_a_foreign_model_scores_the_same_documents_by_hand(foreign: Path, texts: Any, scores: DocumentScores) -> None:
    found = score_texts(foreign, texts)
    assert found.fingerprint == scores.fingerprint
    assert (found.block_size, found.tokenizer_id != scores.tokenizer_id) == (24, True)
    tokenizer, model = AutoTokenizer.from_pretrained(foreign), AutoModelForCausalLM.from_pretrained(foreign).eval()
    for row in (0, 1, 2):
        ids = [*tokenizer(texts[row].text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        nats = 0.0
        for start in range(0, len(ids), 24):
            window = torch.tensor([tokenizer.eos_token_id, *ids][start : start + 25])
            with torch.no_grad():
                log_p = model(window[None, :-1]).logits[0].double().log_softmax(-1)
            nats -= log_p[torch.arange(len(window) - 1), window[1:]].sum().item()
        assert found.nats[row] == pytest.approx(nats, rel=1e-5)
        assert found.text_bytes[row] == len(texts[row].text.encode())


def test_text_that_spells_control_tokens_stays_text(exported: Path, foreign: Path) -> None:
    texts = [LabelledText(text, "a", "new", len(text)) for text in ("</s>", "", "</s></s>")]
    for folder in (exported, foreign):
        found = score_texts(folder, texts)
        assert found.tokens[1] == 1
        assert found.tokens[0] > 2
        assert found.tokens[2] > found.tokens[0]
        assert found.text_bytes.tolist() == [4, 0, 8]


def test_a_shorter_context_may_be_asked_for(exported: Path, texts: Any, scores: DocumentScores) -> None:
    found = score_texts(exported, texts, block_size=4)
    assert found.block_size == 4
    assert found.fingerprint == scores.fingerprint
    assert found.total.nats != pytest.approx(scores.total.nats, rel=1e-6)
    with pytest.raises(ConfigError, match=r"block_size is 17, and the model .* has a context of 16 tokens"):
        score_texts(exported, texts, block_size=17)


def test_a_model_that_sees_ahead_is_refused(exported: Path, texts: Any, tmp_path: Path) -> None:
    config = BertConfig(vocab_size=500, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    config.update({"intermediate_size": 16, "max_position_embeddings": 16, "eos_token_id": 3})
    BertLMHeadModel(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(exported).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="sees later tokens"):
        score_texts(tmp_path, texts)


def test_ids_beyond_the_embeddings_are_named(exported: Path, texts: Any, tmp_path: Path) -> None:
    shape = GPT2Config(vocab_size=40, n_embd=8, n_layer=1, n_head=1, n_positions=16, bos_token_id=3, eos_token_id=3)
    AutoModelForCausalLM.from_config(shape).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(exported).save_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match="embeddings for 40"):
        score_texts(tmp_path, texts)


def test_no_text_is_no_row(exported: Path) -> None:
    assert len(score_texts(exported, [])) == 0


@pytest.mark.parametrize("model_type", ["bpe", "unigram", "byte_bpe"])
def test_a_dataset_gives_its_texts_back(corpus: Path, model_type: Any, prepared: Prepared) -> None:
    config = tiny_config(corpus, prepared.store)
    own = prepare(config.model_copy(update={"tokenizer": TokenizerConfig(model_type=model_type, vocab_size=400)}))
    known = {each.text: each.source for each in corpus_texts(config.corpus)}
    found = list(dataset_texts(own.dataset.folder))
    assert len(found) == own.dataset.validation_documents > 0
    assert all(known[each.text] == each.source and len(each.text.encode()) == each.text_bytes for each in found)


def test_a_document_that_cannot_be_decoded_is_named(prepared: Prepared, tmp_path: Path) -> None:
    for name in ("shards", "tokenizers"):
        (tmp_path / name).symlink_to(prepared.store / name)
    manifest = read_manifest(prepared.dataset.folder)
    other = make_tokenizer(
        TokenizerConfig(vocab_size=450),
        prepared.config.corpus,
        Corpus.from_scan(scan(prepared.config.corpus), prepared.config.corpus),
        prepared.store,
    )
    folder = tmp_path / "datasets" / "x"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_bytes(manifest_bytes({k: v for k, v in manifest.items() if k != "format_version"}))
    assert len(list(dataset_texts(folder))) > 0
    (tmp_path / "tokenizers").unlink()
    (tmp_path / "tokenizers").mkdir()
    (tmp_path / "tokenizers" / manifest["tokenizer_id"]).symlink_to(other.folder)
    with pytest.raises(StoreError, match=r"document [0-9a-f]{16} of dataset x cannot be decoded"):
        list(dataset_texts(folder))


def test_a_normalized_text_counts_the_bytes_of_its_file(tmp_path: Path, exported: Path) -> None:
    (tmp_path / "a.txt").write_text("ＡＢＣ\n", encoding="utf-8")
    [text] = corpus_texts(CorpusConfig(paths=[str(tmp_path)], normalize="NFKC"))
    assert text == ("ABC", "corpus", "new", 9)
    found = score_texts(exported, [text])
    assert found.text_bytes.tolist() == [9]
    assert found.hashes.tolist() == [hash_text(b"ABC")]


def test_text_is_labelled_by_where_it_is_from(prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n", encoding="utf-8")
    found = list(evaluation_texts(prepared.store, [str(tmp_path / "a.txt")], prepared.dataset.id))
    assert [(each.group, each.source) for each in found[-2:]] == [("new", str(tmp_path / "a.txt"))] * 2
    assert {each.group for each in found[:-2]} == {"old"}
    assert len(found) == prepared.dataset.validation_documents + 2
    with pytest.raises(ConfigError, match="no text to score"):
        evaluation_texts(prepared.store, [], model="lm")


def test_a_damaged_export_is_not_scored(exported: Path, tmp_path: Path, texts: Any) -> None:
    shutil.copytree(exported, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_bytes())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "n_positions": 8}))
    with pytest.raises(StoreError, match=r"config\.json"):
        score_texts(tmp_path / "model", texts)


def test_scores_are_float64_columns(scores: DocumentScores) -> None:
    assert (scores.nats.dtype, scores.hashes.dtype) == (np.float64, np.uint64)
    assert scores.by("group")["old"].documents == -(-len(scores) // 3)
