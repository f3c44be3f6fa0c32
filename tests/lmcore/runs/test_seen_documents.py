"""What weights have seen is listed beside them, carried along, and built once for weights of older versions."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lmcore.errors import StoreError
from lmcore.runs.prepare import prepare_run
from lmcore.runs.run import Run
from lmcore.runs.seen_documents import SEEN_DOCUMENTS, SeenDocuments, seen_documents
from lmcore.store.artifacts import MANIFEST, manifest_bytes, read_manifest
from tests.conftest import Prepared, finished, prepare, tiny_config, write_corpus


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """A finished run, and one on another corpus that began with its export."""
    folder = tmp_path_factory.mktemp("line")
    first = finished(prepare(tiny_config(write_corpus(folder / "one", 60), folder / "store")), max_steps=2)
    config = tiny_config(write_corpus(folder / "two", 60, seed=1), folder / "store")
    source = config.tokenizer.model_copy(update={"source": str(first.tokenizer_folder)})
    other = prepare(config.model_copy(update={"tokenizer": source}))
    return first, finished(other, max_steps=2, init_from=str(first.folder / "model"))


def equal(one: SeenDocuments, other: SeenDocuments) -> bool:
    return all(np.array_equal(*columns) for columns in zip(one, other, strict=True))


def test_a_run_lists_the_documents_of_its_dataset(line: tuple[Run, Run]) -> None:
    first, _ = line
    seen = seen_documents(first.folder, first.store)
    assert equal(seen, SeenDocuments.from_dataset(first.dataset_folder))
    assert len(seen.train) > len(seen.validation) > 0
    assert not np.isin(seen.validation, seen.train).any()


def test_warm_start_carries_the_list_along(line: tuple[Run, Run]) -> None:
    first, second = line
    both = SeenDocuments.from_dataset(first.dataset_folder).joined(SeenDocuments.from_dataset(second.dataset_folder))
    for folder in (second.folder, second.folder / "model", second.checkpoints / "step-00000002"):
        assert equal(seen_documents(folder, Path("nowhere")), both), folder


def test_weights_of_an_older_version_are_listed_by_their_lineage(line: tuple[Run, Run], tmp_path: Path) -> None:
    """Its record and its export name datasets, and there is no list."""
    first, second = line
    datasets = [run.dataset_folder.name for run in (second, first)]
    store = tmp_path / "store"
    shutil.copytree(second.store, store)
    run = store / "runs" / second.folder.name
    record = json.loads((run / "config.json").read_bytes())
    (run / "config.json").write_text(json.dumps({**record, "datasets": datasets}))
    manifest = read_manifest(run / "model")
    del manifest["format_version"]
    (run / "model" / MANIFEST).write_bytes(manifest_bytes({**manifest, "datasets": datasets}))
    for folder in (run, run / "model"):
        (folder / SEEN_DOCUMENTS).unlink()
        assert equal(seen_documents(folder, store), seen_documents(second.folder, second.store))
    shutil.rmtree(store / "datasets" / datasets[1])
    with pytest.raises(StoreError, match=f"dataset {datasets[1]}, which its weights were trained on, is not whole"):
        seen_documents(run, store)


def test_of_a_model_that_was_not_made_here_nothing_is_listed(tmp_path: Path) -> None:
    assert [len(column) for column in seen_documents(tmp_path, tmp_path)] == [0, 0]


def test_a_damaged_list_is_an_error(line: tuple[Run, Run], tmp_path: Path) -> None:
    content = bytearray((line[0].folder / SEEN_DOCUMENTS).read_bytes())
    for place in (0, len(content) // 2, -1):
        damaged = content.copy()
        damaged[place] ^= 1
        (tmp_path / SEEN_DOCUMENTS).write_bytes(damaged)
        with pytest.raises(StoreError, match="is damaged"):
            SeenDocuments.load(tmp_path)


def test_a_run_that_is_started_again_keeps_its_list(prepared: Prepared) -> None:
    run = prepared.run(max_steps=2)
    before = (run.folder / SEEN_DOCUMENTS).stat().st_mtime_ns
    prepared_again = prepared.changed(max_steps=2).model_copy(update={"run": run.folder.name})
    prepare_run(prepared_again, prepared.dataset, prepared.tokenizer, prepared.store)
    assert (run.folder / SEEN_DOCUMENTS).stat().st_mtime_ns == before
