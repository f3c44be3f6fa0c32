"""Weeks of retraining, as a schedule would run them, against a real Prefect server."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.schemas.objects import StateType
from transformers import AutoModelForCausalLM

from flows import actions
from flows.retrain import retrain
from lmcore.errors import MissingTextError, RunError
from lmcore.registry.versions import history, model_folder
from lmcore.settings.config import CorpusConfig
from lmcore.store.artifacts import read_manifest
from lmcore.store.locks import locked
from tests.hub import LFS_WARNING, Hub, running_hub
from tests.story import Story, artifacts, research

pytestmark = [pytest.mark.flows, pytest.mark.filterwarnings(LFS_WARNING)]


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with pytest.MonkeyPatch.context() as patched, running_hub(patched) as hub:
        yield hub


@pytest.fixture(scope="module")
def story(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Told to its end; tests only look at it, or go on from there."""
    story = Story(tmp_path_factory.mktemp("story"))
    wanted = story.config.retraining.model_copy(update={"hub_repository": "team/story"})
    story.config = story.config.model_copy(update={"retraining": wanted})
    story.run()
    return story


def test_the_story_is_told_as_it_should_be(story: Story) -> None:
    assert [(each["week"], each["decision"], each["champion"]) for each in story.told] == [
        (1, "first model", "v0001"),
        (2, "nothing new", "v0001"),
        (3, "promoted", "v0002"),
        (4, "refused", "v0002"),
        (4, "rolled back", "v0001"),
        (4, "verified", "v0001"),
    ]
    assert story.told[3]["reasons"][0].startswith("old text: +")
    assert story.told[5]["reasons"] == ["0 problems"]


def test_the_history_tells_it_too(story: Story) -> None:
    events = [(event["event"], event["version"]) for event in history(story.config.store, "story")]
    assert events[:9] == [
        ("added", "v0001"),
        ("promoted", "v0001"),
        ("pushed", "v0001"),
        ("added", "v0002"),
        ("promoted", "v0002"),
        ("pushed", "v0002"),
        ("added", "v0003"),
        ("refused", "v0003"),
        ("rolled back", "v0001"),
    ]


def test_the_hub_has_each_champion_once_by_its_own_commit(story: Story, hub: Hub, tmp_path: Path) -> None:
    assert hub.repositories["team/story"].commits[:2] == ["story v0001", "story v0002"]
    assert AutoModelForCausalLM.from_pretrained(hub.write("team/story", tmp_path / "cloned")).num_parameters() > 0


def test_each_week_has_its_page(story: Story) -> None:
    pages = [(story.folder / f"week-{week}.md").read_text(encoding="utf-8") for week in (1, 2, 3, 4)]
    assert [page.splitlines()[0].split(":")[1].strip() for page in pages] == [
        *("promoted", "nothing new", "promoted", "refused")
    ]
    assert all("| looked at |" in page for page in pages)
    assert ["data:image/png" in page for page in pages] == [False, False, True, True]


def test_a_retraining_cost_what_was_new(story: Story) -> None:
    store = story.config.store
    runs = [json.loads(path.read_bytes()) for path in sorted(store.glob("runs/*/training.json"))]
    scratch, *later = sorted(runs, key=lambda run: not run["run"].startswith("gpt2"))
    assert len(later) == 2
    for run in later:
        config = json.loads((store / "runs" / run["run"] / "config.json").read_bytes())["config"]
        assert config["train"]["init_optimizer"]
        assert set(config["dataset"]["weights"]) == {"corpus (old)", "corpus (new)"}
        assert run["tokens"] == pytest.approx(config["train"]["max_tokens"], rel=0.02)
    assert scratch["trunk"]


def test_all_go_on_with_the_first_tokenizer(story: Story) -> None:
    datasets = [read_manifest(path.parent) for path in story.config.store.glob("datasets/*/manifest.json")]
    assert len({dataset["tokenizer_id"] for dataset in datasets}) == 1


def test_what_was_refused_is_refused_at_once_until_the_text_is_another(story: Story) -> None:
    actions.rollback(model_name="story", store=story.config.store, version="v0002")
    again = retrain(story.config)
    assert (again.decision, again.champion, again.run_dir) == ("refused before", "v0002", None)
    assert "old text" in again.reasons[0]
    assert artifacts("versions-story")
    (story.corpus / "astray.txt").unlink()
    assert retrain(story.config).decision == "nothing new"


def test_the_state_and_the_pages_say_what_came_of_it(story: Story) -> None:
    state = retrain(story.config, return_state=True)
    assert (state.type, state.name) == (StateType.COMPLETED, "Nothing new")
    assert "bytes" in state.message
    assert state.result().decision == "nothing new"
    [page, *_] = artifacts("model-story")
    assert page.description.startswith("story: v000")
    assert all(words in page.data for words in ("v0003 | refused", "v0001 | rolled back", "data:image/png"))
    assert artifacts("report-story")


def test_a_folder_without_text_is_said_in_the_state(story: Story, tmp_path: Path) -> None:
    missing = CorpusConfig(paths=[str(tmp_path / "nowhere")])
    state = retrain(story.config.model_copy(update={"corpus": missing}), return_state=True)
    assert (state.type, state.name) == (StateType.FAILED, "Text missing")
    assert state.message.startswith(f"corpus.paths: {tmp_path / 'nowhere'} does not exist")
    with pytest.raises(MissingTextError):
        retrain(story.config.model_copy(update={"corpus": missing}))


def test_a_second_retraining_is_refused_while_one_runs(story: Story) -> None:
    lock = model_folder(story.config.store.absolute(), "story") / "retraining.lock"
    with locked(lock, "refuse"), pytest.raises(RunError, match="the retraining of story is in use by"):
        retrain(story.config.model_copy(update={"when_locked": "refuse"}))
    assert retrain(story.config).decision == "nothing new"


def test_a_push_that_fails_undoes_nothing_and_the_next_retraining_does_it_again(story: Story, hub: Hub) -> None:
    actions.push("team/story", model_name="story", store=story.config.store, version="v0001")
    hub.refuse = {"commit": 403}
    failed = retrain(story.config)
    assert (failed.decision, failed.champion) == ("nothing new", "v0002")
    assert failed.hub.startswith("story/v0002 is not in team/story, the next retraining tries again: the hub does not")
    hub.refuse = {}
    assert retrain(story.config).hub == f"story/v0002 is in team/story: {hub.url}/team/story/commit/4"
    assert retrain(story.config).hub == "story/v0002 is in team/story"
    assert hub.repositories["team/story"].commits == [f"story v000{number}" for number in (1, 2, 1, 2)]


def test_an_interrupted_retraining_goes_on_where_it_was(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended after the version was made and before it was promoted or refused: it is not made, or trained, twice."""
    story.write("more research", [research], seed=4)
    with monkeypatch.context() as patched:
        for name in ("promote", "record_refusal"):
            patched.setattr(f"lmcore.retraining.challenge.{name}", interrupted)
        with pytest.raises(KeyboardInterrupt):
            retrain(story.config)
    result = retrain(story.config)
    assert result.decision in ("promoted", "refused")
    assert result.version == "v0004"
    assert result.cached["training"]
    added = [event["version"] for event in history(story.config.store, "story") if event["event"] == "added"]
    assert added == ["v0001", "v0002", "v0003", "v0004"]


def interrupted(*arguments: object, **options: object) -> None:
    raise KeyboardInterrupt
