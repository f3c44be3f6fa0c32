"""Retries only for what can get better, and records that cannot be trusted are void."""

import errno
import json
from itertools import count
from pathlib import Path

import pytest
from prefect import flow, task
from prefect.artifacts import Artifact
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH

from flows.prepare_data import prepare_data
from lmcore.corpus import readers
from lmcore.errors import CorpusError, NoSpaceError, TrainingKilledError
from lmcore.store.artifacts import StoreError
from lmcore.store.outputs import Output
from tasks.policies import stage
from tests.conftest import tiny_config, write_corpus

pytestmark = pytest.mark.flows


class Made(Output):
    """A file with a number of bytes."""

    path: Path
    size: int

    def verify(self) -> None:
        if not self.path.exists() or self.path.stat().st_size != self.size:
            raise StoreError(f"{self.path} is missing or has another size")


def make_stage(path: Path, failures: list[Exception], runs: list[int]) -> object:
    """A task that fails as told, then writes a file."""
    options = stage(lambda: {"store": str(path.parent), "path": str(path)})
    options["retry_delay_seconds"] = 0

    @task(name="make", **options)
    def make() -> Made:
        runs.append(1)
        if failures:
            raise failures.pop(0)
        path.write_bytes(b"12345")
        return Made(path=path, size=5)

    return make


def state_of(make: object) -> str:
    @flow(name="one stage")
    def one() -> str:
        state = make(return_state=True)  # type: ignore[operator]
        return str(state.name)

    return one()


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "flaky disk"), ConnectionError("away"), TrainingKilledError("killed")]
)
def test_what_can_get_better_is_tried_again(tmp_path: Path, error: Exception) -> None:
    runs: list[int] = []
    assert state_of(make_stage(tmp_path / "file", [error], runs)) == "Completed"
    assert len(runs) == 2


@pytest.mark.parametrize("error", [CorpusError("no text"), NoSpaceError("full"), ValueError("bug")])
def test_what_cannot_get_better_fails_at_once(tmp_path: Path, error: Exception) -> None:
    runs: list[int] = []
    assert state_of(make_stage(tmp_path / "file", [error], runs)) == "Failed"
    assert len(runs) == 1


def test_a_tampered_or_torn_record_is_void(tmp_path: Path) -> None:
    path, runs = tmp_path / "file", list[int]()
    make = make_stage(path, [], runs)
    before = set(_records())
    assert [state_of(make), state_of(make)] == ["Completed", "Cached"]
    [record] = set(_records()) - before
    record.write_bytes(record.read_bytes()[:-20])
    assert [state_of(make), state_of(make)] == ["Completed", "Cached"]
    content = json.loads(record.read_bytes())
    content["result"] = content["result"].replace('"size": 5', '"size": 6')
    record.write_text(json.dumps(content))
    assert state_of(make) == "Completed"
    assert len(runs) == 3


def reasons(caplog: pytest.LogCaptureFixture, task_name: str) -> list[str]:
    """What the task's runs said of why they ran or did not."""
    said = [record.getMessage() for record in caplog.records]
    return [line.removeprefix(f"{task_name}: ") for line in said if line.startswith(f"{task_name}: ")]


def test_a_task_says_which_input_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings: dict[str, object] = {"learning_rate": 0.001, "steps": 5}
    path = tmp_path / "file"

    @task(name="changing", **stage(lambda: {"store": str(tmp_path), "train": dict(settings)}))
    def changing() -> Made:
        path.write_bytes(b"12345")
        return Made(path=path, size=5)

    state_of(changing)
    state_of(changing)
    settings["learning_rate"] = 0.0005
    state_of(changing)
    path.unlink()
    state_of(changing)
    first, second, third, fourth = reasons(caplog, "changing")
    assert first == "ran because nothing of its kind is in this store yet"
    assert second == "cached because its inputs are unchanged and its output is whole"
    assert third.startswith("ran because train.learning_rate is 0.0005, was 0.001 (last started 2")
    assert fourth.startswith("ran because its earlier output is gone or damaged")


def test_a_page_that_cannot_be_made_costs_the_page_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, shown = tmp_path / "file", list[int]()

    def page(made: Made) -> list[Artifact]:
        shown.append(made.size)
        raise StoreError("the page is gone")

    @task(name="paged", **stage(lambda: {"store": str(tmp_path)}, page=page))
    def paged() -> Made:
        path.write_bytes(b"12345")
        return Made(path=path, size=5)

    assert [state_of(paged), state_of(paged)] == ["Completed", "Cached"]
    assert shown == [5, 5]
    assert "error was encountered while running hook 'show': the page is gone" in caplog.text
    assert "Traceback" not in caplog.text


def test_a_task_counts_the_files_that_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    corpus = write_corpus(tmp_path / "corpus", documents=200)
    for name in ("changed", "gone"):
        (corpus / f"{name}.txt").write_text(f"{name}\n" * 20)
    config = tiny_config(corpus, tmp_path / "store")
    prepare_data(config)
    (corpus / "changed.txt").write_text("other\n" * 20)
    (corpus / "gone.txt").unlink()
    for number in range(3):
        (corpus / f"new{number}.txt").write_text(f"{number}\n" * 20)
    caplog.clear()
    prepare_data(config)
    [tokenizer, *_], [tokenization, *_] = reasons(caplog, "tokenizer"), reasons(caplog, "tokenization")
    for reason in (tokenizer, tokenization):
        assert reason.startswith("ran because the corpus changed: files 3 new, 1 changed, 1 gone")


def test_a_file_that_was_rewritten_while_it_was_read_is_read_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the corpus is again what it was at the first look, as when a copy was made twice."""
    corpus = write_corpus(tmp_path / "corpus", documents=200)
    other, content = corpus / "other.txt", "別の文書\n" * 20
    other.write_text(content)
    times = count()
    config, real = tiny_config(corpus, tmp_path / "store"), readers.open_stored

    def half_rewritten(path: str) -> object:
        if path == str(other):
            other.write_text(content[: 50 + next(times)])  # another content at each read
        return real(path)

    tokenizer = prepare_data(config).tokenizer_id
    loaded = config.tokenizer.model_copy(update={"source": str(tmp_path / "store" / "tokenizers" / tokenizer)})
    config = config.model_copy(update={"store": tmp_path / "other", "tokenizer": loaded})
    with monkeypatch.context() as patch:
        patch.setattr(readers, "open_stored", half_rewritten)
        first = prepare_data(config)
    assert "1 changed_while_read" in first.account
    assert first.account.endswith("the corpus was changed meanwhile")
    other.write_text(content)
    again = prepare_data(config)
    assert not again.cached["tokenization"]
    assert again.documents == first.documents + 20
    assert prepare_data(config).cached["tokenization"]


def _records() -> list[Path]:
    return [path for path in PREFECT_LOCAL_STORAGE_PATH.value().rglob("make-*") if path.is_file()]
