"""What is on a hub after a push is the version, for anybody, and nothing of where it was made."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lmcore.errors import ConfigError, StoreError
from lmcore.registry.push import push, pushed
from lmcore.registry.registry import add_version
from lmcore.registry.versions import Version, history
from tests.conftest import finished, prepare, tiny_config, write_corpus
from tests.hub import LFS_WARNING, Hub, running_hub
from tests.lmcore.cli.test_main import assert_fails, call

DECISION = {"promoted": True, "reasons": ["no champion yet"], "rules": []}
pytestmark = pytest.mark.filterwarnings(LFS_WARNING)
PUBLIC = {"README.md", "config.json", "generation_config.json", "model.safetensors"}


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Version, Version]:
    """Two of a model; the second began with weights from outside the store."""
    folder = tmp_path_factory.mktemp("pushing")
    prepared = prepare(tiny_config(write_corpus(folder / "corpus"), folder / "store"))
    first = add_version(prepared.store, "ja", finished(prepared, max_steps=2), DECISION)
    for kind in (AutoModelForCausalLM, AutoTokenizer):
        kind.from_pretrained(first.folder).save_pretrained(folder / "weights")
    run = finished(prepared, max_steps=2, init_from=str(folder / "weights"))
    return first, add_version(prepared.store, "ja", run, DECISION)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub(monkeypatch) as hub:
        yield hub


def test_a_pushed_version_is_the_model_for_anybody(hub: Hub, versions: tuple[Version, Version], tmp_path: Path) -> None:
    _, version = versions
    push(version, "team/ja")
    repository = hub.repositories["team/ja"]
    assert repository.private
    assert repository.commits == ["ja v0002"]
    assert repository.files.keys() >= PUBLIC
    folder = hub.write("team/ja", tmp_path / "cloned")
    theirs, ours = (AutoModelForCausalLM.from_pretrained(each) for each in (folder, version.folder))
    assert all(torch.equal(one, other) for one, other in zip(theirs.parameters(), ours.parameters(), strict=True))
    text = "東京の学習 model"
    ids = [AutoTokenizer.from_pretrained(each)(text)["input_ids"] for each in (folder, version.folder)]
    assert ids[0] == ids[1]


def test_no_path_of_the_machine_is_pushed(hub: Hub, versions: tuple[Version, Version]) -> None:
    for version in versions:
        push(version, "team/ja")
        files = hub.repositories["team/ja"].files
        assert not {"receipt.json", "metrics.jsonl", "manifest.json"} & files.keys()
        begun = [str(version.store.parents[1]).encode(), str(Path(__file__).parents[2]).encode()]
        assert [name for name, content in files.items() if any(path in content for path in begun)] == []
    assert b"| trained from | weights |" in files["README.md"]


def test_the_same_again_is_no_commit_and_the_history_tells(hub: Hub, versions: tuple[Version, Version]) -> None:
    first, second = versions
    push(first, "team/again")
    push(first, "team/again")
    assert hub.repositories["team/again"].commits == ["ja v0001"]
    assert pushed(first, "team/again")
    assert not pushed(first, "team/elsewhere")
    push(second, "team/again")
    assert (pushed(first, "team/again"), pushed(second, "team/again")) == (False, True)
    assert history(first.store, "ja")[-1]["reason"] == f"team/again: {hub.url}/team/again/commit/2"


def test_what_an_earlier_version_left_goes_and_other_files_stay(hub: Hub, versions: tuple[Version, Version]) -> None:
    push(versions[0], "team/ja")
    files = hub.repositories["team/ja"].files
    files |= {"model-00001-of-00002.safetensors": b"old", "LICENSE": b"ours"}
    push(versions[1], "team/ja")
    assert "model-00001-of-00002.safetensors" not in files
    assert files["LICENSE"] == b"ours"
    assert hub.repositories["team/ja"].commits == ["ja v0001", "ja v0002"]


@pytest.mark.parametrize("part", ["repos/create", "preupload", "objects/batch", "commit"])
@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_says_what_to_do(hub: Hub, versions: tuple[Version, Version], part: str, status: int) -> None:
    hub.refuse = {part: status}
    before = history(versions[0].store, "ja")
    with pytest.raises(ConfigError, match=rf"HF_TOKEN put ja/v0001 .*\({status}\).*lm push") as told:
        push(versions[0], "team/refused")
    assert "\n" not in str(told.value)
    assert history(versions[0].store, "ja") == before
    assert not hub.repositories.get("team/refused", hub).__dict__.get("commits")


def test_a_token_that_may_not_make_repositories_pushes_to_one_that_is_there(
    hub: Hub, versions: tuple[Version, Version]
) -> None:
    push(versions[0], "team/ja")
    hub.refuse = {"repos/create": 403}
    push(versions[1], "team/ja")
    assert hub.repositories["team/ja"].commits == ["ja v0001", "ja v0002"]


@pytest.mark.parametrize(("part", "status"), [("repos/create", 503), ("commit", 500), ("commit", 429), ("create", 408)])
def test_what_may_get_better_is_asked_again(
    hub: Hub, versions: tuple[Version, Version], part: str, status: int
) -> None:
    hub.refuse = {part: status}
    with pytest.raises(ConnectionError, match="the hub did not take ja/v0001 for team/later"):
        push(versions[0], "team/later")
    hub.refuse = {}
    push(versions[0], "team/later")
    assert hub.repositories["team/later"].commits == ["ja v0001"]


@pytest.mark.parametrize(("part", "status"), [("commit", 400), ("commit", 413), ("tree", 404)])
def test_what_cannot_get_better_is_not(hub: Hub, versions: tuple[Version, Version], part: str, status: int) -> None:
    hub.refuse = {part: status}
    with pytest.raises(ConfigError, match="ja/v0001 cannot be pushed to team/ja: "):
        push(versions[0], "team/ja")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError("token of xet"), ConfigError),
        (FileNotFoundError("object"), ConfigError),
        (TimeoutError("storage"), ConnectionError),
        (RuntimeError("storage"), ConnectionError),
    ],
)
def test_what_other_storage_says_is_told_apart_too(
    hub: Hub,
    versions: tuple[Version, Version],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    told: type[Exception],
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", fail)
    with pytest.raises(told, match=str(error)):
        push(versions[0], "team/ja")


def test_a_hub_that_is_not_there_may_come_back(
    versions: tuple[Version, Version], hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(ConnectionError, match="the hub did not take"):
        push(versions[0], "team/ja")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="cannot be pushed"):
        push(versions[0], "team/ja")


def test_a_damaged_version_is_not_pushed(hub: Hub, versions: tuple[Version, Version]) -> None:
    path = versions[0].folder / "generation_config.json"
    content = path.read_bytes()
    path.unlink()
    try:
        with pytest.raises(StoreError, match=r"generation_config.json is missing"):
            push(versions[0], "team/ja")
    finally:
        path.write_bytes(content)
    assert hub.asked == []


def test_the_verb_pushes_and_asks_for_a_token(
    hub: Hub, versions: tuple[Version, Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = ("--store", versions[0].store)
    status, output, errors = call("push", "ja/v0001", "team/verb", *here)
    assert status == 0, errors
    assert json.loads(output[-1]) == {
        "version": "ja/v0001",
        "repository": "team/verb",
        "commit": f"{hub.url}/team/verb/commit/1",
    }
    monkeypatch.delenv("HF_TOKEN")
    assert_fails(1, "HF_TOKEN is not set", "push", "ja/v0001", "team/verb", *here)
