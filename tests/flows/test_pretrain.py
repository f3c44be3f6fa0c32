"""The flows as people call them from Python, against a real Prefect server."""

import json
import re
import shutil
from pathlib import Path

import pytest
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH

from flows.prepare_data import prepare_data
from flows.pretrain import Pretrained, pretrain
from lmcore.errors import ConfigError, CorpusError
from lmcore.settings.config import RunConfig
from tests.conftest import tiny_config, write_corpus

pytestmark = pytest.mark.flows


@pytest.fixture(scope="module")
def finished(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Pretrained]:
    """A finished run in a store of its own; tests that change the store work on a copy."""
    config = tiny_config(corpus, tmp_path_factory.mktemp("finished") / "store")
    return config, pretrain(config)


@pytest.fixture
def again(finished: tuple[RunConfig, Pretrained]) -> RunConfig:
    """The settings of the finished run, every stage recorded as cached."""
    config, _ = finished
    assert all(cached for name, cached in pretrain(config).cached.items() if name != "corpus")
    return config


PAGES = {"data", "tokenizer", "run", "evaluation", "report", "samples"}


def last_flow_run() -> FlowRun:
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)[0]


def test_a_run_is_named_and_tagged_by_what_it_is(again: RunConfig) -> None:
    result = pretrain(again)
    run = last_flow_run()
    label = again.corpus.label
    assert re.fullmatch(rf"pretrain gpt2 1x16 on {label} \d{{4}}-\d\d-\d\d \d\d:\d\d UTC", run.name)
    assert set(run.tags) == {f"corpus {label}", f"dataset {result.dataset_id}", "gpt2"}
    with get_client(sync_client=True) as client:
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
    assert {f"look at {label}", f"train gpt2 1x16 on dataset {result.dataset_id}"} <= {task.name for task in tasks}


def test_a_log_has_facts_and_no_machinery(again: RunConfig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    result = pretrain(again)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("prefect.")]
    assert any(str(result.model_dir) in line and f"{result.valid_loss:.4f}" in line for line in lines)
    assert not [line for line in lines if "hook" in line.lower() or "Finished in state Cached" in line]


def artifacts(key: str) -> list[Artifact]:
    with get_client(sync_client=True) as client:
        return client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))


def test_a_first_run_makes_everything(finished: tuple[RunConfig, Pretrained]) -> None:
    _, result = finished
    assert not any(result.cached.values())
    assert result.step == 6
    assert result.report.read_text().startswith(f"# {result.run_dir.name}")
    assert result.picture.read_bytes().startswith(b"\x89PNG")
    assert (result.model_dir / "model.safetensors").exists()
    manifest = json.loads((result.run_dir.parents[1] / "datasets" / result.dataset_id / "manifest.json").read_text())
    assert manifest["ledger"]["unaccounted_bytes"] == 0


def test_a_second_run_is_cached_and_equal(finished: tuple[RunConfig, Pretrained]) -> None:
    config, first = finished
    second = pretrain(config)
    assert second.cached == {name: name != "corpus" for name in first.cached}
    assert second.page != first.page  # each flow run has its own
    assert second.model_copy(update={"cached": first.cached, "page": first.page}) == first


def test_the_report_is_published_with_its_picture_inside(finished: tuple[RunConfig, Pretrained]) -> None:
    pages = [str(artifact.data) for artifact in artifacts("report")]
    assert any("(data:image/png;base64," in page and "unaccounted" in page for page in pages)
    assert artifacts("losses")
    assert artifacts("data")
    assert [artifact for artifact in artifacts("training") if artifact.type == "progress"]


def _delete(path: Path) -> None:
    shutil.rmtree(path)


def _truncate(path: Path) -> None:
    largest = max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-10])


def _flip(path: Path) -> None:
    largest = max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


@pytest.mark.parametrize("damage", [_delete, _truncate, _flip])
@pytest.mark.parametrize(
    ("stage", "folder"),
    [
        ("tokenizer", "tokenizers/*"),
        ("tokenization", "shards/*"),
        ("training", "runs/*/checkpoints/step-*"),
        ("export", "runs/*/model"),
    ],
)
def test_what_is_gone_or_damaged_is_made_again(again: RunConfig, stage: str, folder: str, damage: object) -> None:
    *_, path = sorted(again.store.glob(folder))  # of checkpoints, the one that counts
    damage(path)  # type: ignore[operator]
    cached = pretrain(again).cached
    # A training that was made again took another time, which the report says.
    expected = {"corpus", stage, "report"} if stage == "training" else {"corpus", stage}
    assert {name for name, was in cached.items() if not was} == expected
    assert path.is_dir()


def test_an_edited_report_is_written_again(again: RunConfig) -> None:
    [page] = again.store.glob("runs/*/report.md")
    text = page.read_text()
    page.write_text("nothing")
    assert not pretrain(again).cached["report"]
    assert page.read_text() == text


def test_fresh_trains_again_but_keeps_the_tokens(again: RunConfig) -> None:
    cached = pretrain(again.model_copy(update={"fresh": True})).cached
    assert cached["tokenizer"]
    assert cached["tokenization"]
    assert not cached["training"]


def test_more_text_is_another_dataset_and_another_run(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", documents=200)
    config = tiny_config(corpus, tmp_path / "store")
    first = prepare_data(config)
    (corpus / "more.txt").write_text("新しい文章です。\n" * 3)
    second = prepare_data(config)
    assert first.dataset_id != second.dataset_id
    assert not second.cached["tokenization"]


def test_a_missing_corpus_fails_before_anything_is_written(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "nowhere", tmp_path / "store")
    with pytest.raises(CorpusError, match=r"nowhere does not exist"):
        pretrain(config)
    assert not (tmp_path / "store").exists()


def test_a_flow_keeps_to_the_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/link").symlink_to(write_corpus(tmp_path / "elsewhere"))
    monkeypatch.setenv("LM_DATA_ROOTS", str(tmp_path / "data"))
    with pytest.raises(ConfigError, match=r"corpus.paths: .*link leads to .*elsewhere, which is outside the places"):
        pretrain(tiny_config(tmp_path / "data/link", tmp_path / "data/store"))
    assert not (tmp_path / "data/store").exists()


@pytest.mark.parametrize(
    "parameters",
    [
        {"size": "huge"},
        {"length": "many steps"},
        {"max_minutes": -1},
        {"name": "../elsewhere"},
    ],
)
def test_the_api_refuses_bad_fields_when_a_run_is_created(parameters: dict[str, object]) -> None:
    deployment_id = pretrain.to_deployment("refusals").apply()
    with get_client(sync_client=True) as client, pytest.raises(PrefectHTTPStatusError, match="Validation failed"):
        client.create_flow_run_from_deployment(deployment_id, parameters=parameters)


def test_the_ledger_of_another_reading_is_never_shown_as_this_one(tmp_path: Path, finished: object) -> None:
    corpus = write_corpus(tmp_path / "corpus", documents=200)
    config = tiny_config(corpus, tmp_path / "store")
    tokenizer = next((finished[0].store / "tokenizers").iterdir())  # type: ignore[index]
    config = config.model_copy(update={"tokenizer": config.tokenizer.model_copy(update={"source": str(tokenizer)})})
    first = pretrain(config)
    (corpus / "bad.parquet").write_bytes(b"no table")
    second = pretrain(config)
    assert second.dataset_id == first.dataset_id
    assert second.cached["training"]
    assert not second.cached["report"]
    assert "damaged_table" in second.report.read_text()
    assert "1 damaged_table" in second.summary()
    (corpus / "bad.parquet").unlink()
    third = pretrain(config)
    assert "damaged_table" not in third.report.read_text()


def test_a_lost_run_record_heals_and_the_training_found_in_the_store_counts_as_cached(again: RunConfig) -> None:
    [record] = again.store.glob("runs/*/config.json")
    record.unlink()
    assert pretrain(again).cached["training"]
    assert record.exists()


def test_a_changed_figure_is_never_believed(again: RunConfig) -> None:
    [record] = again.store.glob("runs/*/evaluation.json")
    content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, "nats_per_token": 1.0}))
    assert pretrain(again).valid_loss == content["nats_per_token"] != 1.0


def test_results_are_json_never_pickle_failures_too(again: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(CorpusError):
        pretrain(tiny_config(tmp_path / "nowhere", tmp_path / "store"))
    records = [path for path in PREFECT_LOCAL_STORAGE_PATH.value().rglob("*") if path.is_file()]
    assert records
    for record in records:
        content = json.loads(record.read_bytes())
        about = content.get("metadata", {}) if isinstance(content, dict) else {}
        assert about.get("serializer", {}).get("type", "json") == "json"


def test_a_cached_run_shows_the_same_pages(again: RunConfig) -> None:
    found = []
    for settings in (again, again.model_copy(update={"fresh": True})):
        pretrain(settings)
        with get_client(sync_client=True) as client:
            wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[last_flow_run().id]))
            found.append({str(page.key): page for page in client.read_artifacts(artifact_filter=wanted)})
    cached, fresh = found
    assert PAGES <= cached.keys() <= fresh.keys()
    assert fresh.keys() - cached.keys() <= {
        "losses",
        "training",
        "tokenizing",
        "evaluating",
    }  # live, while work is done
    assert all(page.task_run_id for page in cached.values())
    for key in ("data", "tokenizer", "samples"):
        assert cached[key].data == fresh[key].data
