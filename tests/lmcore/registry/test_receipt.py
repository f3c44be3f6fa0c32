"""A version can be opened by anybody, and its receipt finds whatever no longer matches."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lmcore.errors import RegistryError, StoreError
from lmcore.model.export import open_model
from lmcore.registry.receipt import diff, program_differences
from lmcore.registry.registry import add_version, promote
from lmcore.registry.versions import Version, history, versions
from lmcore.settings.config import CardConfig
from lmcore.upkeep.verify import check_receipt
from tests.conftest import finished, prepare, tiny_config, write_corpus

DECISION = {
    "promoted": True,
    "reasons": ["no champion yet"],
    "rules": [{"rule": "new text", "bits per byte": -0.1, "passed": True}],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of corpus and store with the version ja/v0001, champion, from a wsd run."""
    folder = tmp_path_factory.mktemp("made")
    config = tiny_config(write_corpus(folder / "corpus"), folder / "store")
    card = CardConfig(licence="apache-2.0", languages=["ja", "en"])
    prepared = prepare(config.model_copy(update={"card": card}))
    run = finished(prepared, schedule="wsd")
    add_version(prepared.store, "ja", run, DECISION)
    promote(prepared.store, "ja", "v0001", expected=None, reason="first")
    return folder


@pytest.fixture
def version(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Version:
    """The version in a copy of its store, with its corpus at the place where it was."""
    shutil.copytree(made / "store", tmp_path / "store")
    [found] = versions(tmp_path / "store", "ja")
    return found


def test_everything_matches_in_a_store_that_was_moved(version: Version) -> None:
    assert list(check_receipt(version)) == []


def test_a_version_is_the_export_that_anybody_opens(version: Version) -> None:
    model, tokenizer, block_size = open_model(version.folder)
    theirs = AutoModelForCausalLM.from_pretrained(version.folder)
    exported = AutoModelForCausalLM.from_pretrained(
        version.store / "runs" / version.receipt()["run"] / "model", local_files_only=True
    )
    assert block_size == 16
    for mine, its, name in zip(model.parameters(), theirs.parameters(), dict(exported.named_parameters()), strict=True):
        assert torch.equal(mine, its)
        assert torch.equal(mine, dict(exported.named_parameters())[name])
    text = "東京の学習 model"
    assert AutoTokenizer.from_pretrained(version.folder)(text)["input_ids"] == tokenizer.encode(text)


def test_the_files_are_links_and_the_card_has_the_facts(made: Path) -> None:
    [version] = versions(made / "store", "ja")
    receipt = version.receipt()
    exported = made / "store" / "runs" / receipt["run"] / "model"
    assert os.path.samefile(version.folder / "model.safetensors", exported / "model.safetensors")
    card = (version.folder / "README.md").read_text()
    for fact in (
        'license: "apache-2.0"',
        'language: ["ja", "en"]',
        "| licence | apache-2.0 |",
        receipt["dataset"]["id"],
        receipt["tokenizer"]["id"],
        f"{receipt['evaluation']['nats_per_token']:.4f} nats per token",
        f"{receipt['training']['tokens']:,} tokens",
        "no champion yet",
        "| new text | -0.1 | True |",
        "| champion before | none |",
    ):
        assert fact in card
    assert [event["event"] for event in history(made / "store", "ja")] == ["added", "promoted"]


def flip(path: Path) -> None:
    """Another byte in the middle, in a file of its own."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("models/ja/v0001/model.safetensors", "model.safetensors is damaged"),
        ("models/ja/v0001/receipt.json", "receipt.json is damaged"),
        ("tokenizers/*/tokenizer.json", "tokenizer.json is damaged"),
        ("shards/*/train.arrow", "train.arrow is damaged"),
        ("datasets/*/manifest.json", "manifest.json is damaged"),
        ("runs/*/checkpoints/*/optimizer.safetensors", "optimizer.safetensors is damaged"),
        ("runs/*/metrics.jsonl", "metrics.jsonl has changed"),
        ("runs/*/training.json", "training.json has changed"),
    ],
)
def test_a_flipped_byte_anywhere_is_named(version: Version, pattern: str, found: str) -> None:
    flip(sorted(version.store.glob(pattern))[0])
    assert any(found in line for line in check_receipt(version))


@pytest.mark.parametrize("pattern", ["tokenizers/*", "shards/*", "datasets/*", "runs/*", "runs/*/checkpoints/*"])
def test_what_is_gone_is_named(version: Version, pattern: str) -> None:
    path = sorted(version.store.glob(pattern))[0]
    shutil.rmtree(path)
    assert any(path.name in line for line in check_receipt(version))


def test_a_corpus_that_changed_is_named_file_by_file(made: Path, version: Version) -> None:
    path = made / "corpus" / "text.txt"
    content = path.read_bytes()
    try:
        path.write_bytes(content + b"more\n")
        [line] = check_receipt(version)
        assert line.startswith(f"corpus: {path} has changed: was ")
        path.unlink()
        [line] = check_receipt(version)
        assert line.startswith(f"corpus: {path} cannot be read")
    finally:
        path.write_bytes(content)


def seal_again(folder: Path, change: Callable[[dict[str, object]], None]) -> None:
    from lmcore.store.artifacts import read_manifest, write_artifact
    from lmcore.store.json_files import json_bytes

    about = {name: value for name, value in read_manifest(folder).items() if name not in ("files", "format_version")}
    receipt = json.loads((folder / "receipt.json").read_bytes())
    change(receipt)
    with write_artifact(folder.with_name("new"), lambda: about) as new:
        for file in folder.iterdir():
            if file.name != "manifest.json":
                shutil.copy(file, new / file.name)
        (new / "receipt.json").write_bytes(json_bytes(receipt))
    shutil.rmtree(folder)
    folder.with_name("new").rename(folder)


def test_a_receipt_that_was_written_again_does_not_fit_what_is_there(version: Version) -> None:
    def change(receipt: dict[str, object]) -> None:
        receipt["results"]["training.json"] = "0" * 32  # type: ignore[index]
        receipt["record"]["identity"]["train"]["seed"] = 7  # type: ignore[index]
        receipt["export"]["model.safetensors"] = "0" * 32  # type: ignore[index]
        receipt["corpus"]["excluded"] = [f"{document:016x}"]  # type: ignore[index]

    from lmcore.dataset.filters import hashes
    from lmcore.store.artifacts import read_manifest

    chunks = read_manifest(next((version.store / "datasets").iterdir()))["chunks"]
    document = int(hashes(chunks, version.store, "train")[0])
    seal_again(version.folder, change)
    found = "\n".join(check_receipt(version))
    assert "training.json has changed" in found
    assert "train.seed was 7, is 0" in found
    assert "model.safetensors is not the file that run" in found
    assert f"holds document {document:016x}, which the receipt says is excluded" in found


def test_another_program_is_told_apart(version: Version) -> None:
    receipt = version.receipt()
    assert program_differences(receipt) == []
    receipt["program"]["packages"]["torch"] = "1.0"
    [line] = program_differences(receipt)
    assert line.startswith("packages.torch was 1.0, is ")


def test_versions_differ_in_what_was_changed(made: Path, tmp_path: Path) -> None:
    prepared = prepare(tiny_config(made / "corpus", tmp_path / "store"))
    one = add_version(prepared.store, "ja", finished(prepared), DECISION)
    trunk = prepared.store / "runs" / one.receipt()["run"] / "checkpoints" / "step-00000006"
    other = add_version(prepared.store, "ja", finished(prepared, learning_rate=1e-2, init_from=str(trunk)), DECISION)
    found = {name: (old, new) for name, old, new in diff(one, other)}
    assert found["config.train.learning_rate"] == (1e-3, 1e-2)
    assert {"training.weights", "evaluation.nats_per_token"} <= found.keys()
    assert not {name for name in found if name.startswith(("dataset", "tokenizer", "program", "corpus"))}
    assert other.receipt()["origin"]["path"] == trunk.relative_to(prepared.store).as_posix()
    assert list(check_receipt(other)) == []
    flip(trunk / "model.safetensors")
    assert any(line.startswith("initial model: ") for line in check_receipt(other))


def test_a_run_that_is_not_finished_becomes_no_version(made: Path, tmp_path: Path) -> None:
    prepared = prepare(tiny_config(made / "corpus", tmp_path / "store"))
    with pytest.raises(StoreError, match=r"model.manifest.json is missing"):
        add_version(prepared.store, "ja", prepared.run(), DECISION)
    assert versions(prepared.store, "ja") == []
    with pytest.raises(RegistryError, match="cannot name a model"):
        add_version(prepared.store, "../ja", finished(prepared), DECISION)
