"""The buttons of models and of a store really run: what they change, what their pages show, and where they end."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH

from flows import actions
from lmcore.errors import ConfigError, RegistryError
from lmcore.markdown import escape
from lmcore.registry.receipt import diff
from lmcore.registry.registry import promote
from lmcore.registry.versions import champion, find_version, history_rows, versions
from lmcore.store.allowed_paths import VARIABLE
from lmcore.store.files import hash_text
from lmcore.upkeep.verify import check_receipt
from tests.conftest import two_versions, write_corpus
from tests.hub import LFS_WARNING, running_hub
from tests.story import artifacts

pytestmark = [pytest.mark.flows, pytest.mark.filterwarnings(LFS_WARNING)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with lm/v0001, the champion, and lm/v0002, which tests only read."""
    made = two_versions(tmp_path_factory.mktemp("buttons"))
    promote(made, "lm", "v0001", expected=None, reason="first")
    return made


@pytest.fixture
def changed(made: Path, tmp_path: Path) -> Path:
    """A copy of the store, to change."""
    return shutil.copytree(made, tmp_path / "store")


def page(key: str) -> tuple[list[dict[str, str]], str]:
    """Rows and description of the newest artifact."""
    [artifact] = artifacts(key)[:1]
    return json.loads(str(artifact.data)), str(artifact.description)


def test_evaluate_scores_the_champion_on_what_was_held_out_and_keeps_the_figures(made: Path) -> None:
    state: Any = actions.evaluate(store=made, return_state=True)
    figures = state.result()
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(state.state_details.flow_run_id).name == "evaluate lm"  # no gap for an empty field
    receipt = find_version(made, "lm").receipt()
    assert figures["model"] == "lm/v0001"
    assert figures["weights"] == receipt["training"]["weights"]
    assert figures["bits_per_byte"] == pytest.approx(receipt["evaluation"]["bits_per_byte"], rel=1e-5)
    record = (PREFECT_LOCAL_STORAGE_PATH.value() / state.data.metadata.storage_key).read_bytes()
    assert json.loads(record) == figures
    rows, description = page("scores")
    assert [row["text"] for row in rows] == ["all", "new", "corpus"]
    assert rows[0]["bits per byte"] == f"{figures['bits_per_byte']:.4f}"
    assert rows[0]["perplexity"] == f"{figures['perplexity']:,.2f}"
    assert description == "lm/v0001 on what was held out of lm"


def test_evaluate_scores_any_model_on_any_text(made: Path, tmp_path: Path) -> None:
    text = str(write_corpus(tmp_path / "more", documents=20, seed=3))
    run = find_version(made, "lm/v0002").receipt()["run"]
    found = [
        actions.evaluate(store=made, model=model, text=[text])
        for model in ("lm/v0002", run, str(made / "models" / "lm" / "v0002"))
    ]
    assert found[0]["sources"][text]["documents"] == 20
    assert len({each["fingerprint"] for each in found}) == len({each["nats"] for each in found}) == 1
    assert [row["text"] for row in page("scores")[0]] == ["all", "new", text]


def test_verify_is_completed_while_all_matches_and_failed_with_one_line_else(changed: Path) -> None:
    state: Any = actions.verify(store=changed, return_state=True)
    assert (state.type.value, page("verify-lm")) == ("COMPLETED", ([], "lm/v0001: all matches"))
    version = find_version(changed, "lm")
    path = changed / "runs" / version.receipt()["run"] / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b"{}\n")
    state = actions.verify(store=changed, return_state=True)
    [line] = check_receipt(version)
    assert state.type.value == "FAILED"
    assert state.message == f"lm/v0001 no longer matches its receipt (1): {line}"
    assert page("verify-lm") == ([{"no longer matches": line}], state.message)


def test_diff_shows_what_the_command_prints(made: Path) -> None:
    assert len(actions.diff(store=made, other="v0002")["differences"]) > 0
    rows, description = page("diff-lm")
    found = diff(find_version(made, "lm"), find_version(made, "lm/v0002"))
    assert rows == [{"field": name, "one": str(one), "other": str(other)} for name, one, other in found]
    assert {"field": "config.train.seed", "one": "0", "other": "1"} in rows
    assert description == "lm/v0001 and lm/v0002"


def test_a_version_is_promoted_taken_back_and_pruned(changed: Path) -> None:
    promoted = actions.promote("v0002", store=changed, expected="v0001", force=True, reason="a try")
    assert promoted == {"model": "lm", "champion": "v0002", "champion_before": "v0001"}
    assert actions.rollback(store=changed) == {"model": "lm", "champion": "v0001"}
    assert page("versions-lm") == (history_rows(changed, "lm"), "lm: v0001 is in use")
    assert actions.prune(store=changed, keep=0)["pruned"] == ["v0002"]
    assert page("pruned-lm") == ([{"version": "v0002"}], "to be removed of lm: 1")
    assert len(versions(changed, "lm")) == 2
    assert actions.prune(store=changed, keep=0, dry_run=False)["pruned"] == ["v0002"]
    assert [version.id for version in versions(changed, "lm")] == ["v0001"]
    actions.versions(store=changed)
    assert page("versions-lm")[0][0]["event"] == "pruned"


def test_push_puts_a_version_on_a_hub(changed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_hub(monkeypatch) as hub:
        commit = actions.push(store=changed, version="v0002", repository="team/lm")["commit"]
    assert hub.repositories["team/lm"].commits == ["lm v0002"]
    assert page("versions-lm")[0][0] | {"time": ""} == {
        "time": "",
        "event": "pushed",
        "version": "v0002",
        "reason": escape(f"team/lm: {commit}"),
    }


def test_gc_says_what_would_go_and_then_removes_it(changed: Path) -> None:
    run = find_version(changed, "lm/v0002").receipt()["run"]
    shutil.rmtree(changed / "models" / "lm" / "v0002")
    would = actions.gc(store=changed, keep_runs=0, grace_hours=0)["bytes"]
    rows, description = page("gc")
    assert [row["path"] for row in rows] == [f"runs/{run}"]
    assert description == f"to be removed from {changed}: 1 ({would:,} bytes)"
    assert (changed / "runs" / run).exists()
    assert actions.gc(store=changed, keep_runs=0, grace_hours=0, dry_run=False)["bytes"] == would
    assert page("gc") == (rows, f"removed from {changed}: 1 ({would:,} bytes)")
    assert not (changed / "runs" / run).exists()


def test_forget_says_what_would_be_done_and_then_does_it(changed: Path, made: Path, tmp_path: Path) -> None:
    document = tmp_path / "document"
    document.write_bytes((made.parent / "corpus" / "text.txt").read_bytes().splitlines()[3])
    found = actions.forget(document, store=changed)
    assert found["documents"] == [f"{hash_text(document.read_bytes()):016x}"]
    rows, description = page("forget")
    assert description == f"to be forgotten: found 1 of 1 documents in {changed}"
    assert {row["what"] for row in rows} >= {"lm/v0001", "lm/v0002", str(made.parent / "corpus" / "text.txt")}
    before = sorted((changed / "datasets").iterdir())
    actions.forget(document, store=changed, dry_run=False)
    done, description = page("forget")
    assert description == f"forgotten: found 1 of 1 documents in {changed}"
    assert [row["what"] for row in done] == [row["what"] for row in rows]
    assert sorted((changed / "datasets").iterdir()) != before


OUTSIDE: list[tuple[Any, Callable[[Path, Path], dict[str, Any]]]] = [
    *(
        (flow, lambda elsewhere, made: {"store": elsewhere / "store"})
        for flow in (
            actions.evaluate,
            actions.verify,
            actions.diff,
            actions.rollback,
            actions.prune,
            actions.versions,
            actions.gc,
        )
    ),
    (actions.promote, lambda elsewhere, made: {"store": elsewhere / "store", "version": "v0001"}),
    (actions.push, lambda elsewhere, made: {"store": elsewhere / "store", "repository": "team/lm"}),
    (actions.forget, lambda elsewhere, made: {"store": made, "document": elsewhere / "text.txt"}),
    (actions.evaluate, lambda elsewhere, made: {"store": made, "model": elsewhere / "store/models/lm/v0001"}),
    (actions.evaluate, lambda elsewhere, made: {"store": made, "text": [elsewhere / "*.txt"]}),
]


@pytest.mark.parametrize(("flow", "fields"), OUTSIDE, ids=lambda value: getattr(value, "name", ""))
def test_a_form_reaches_nothing_outside_the_roots(
    made: Path, changed: Path, monkeypatch: pytest.MonkeyPatch, flow: Any, fields: Callable[[Path, Path], Any]
) -> None:
    (changed.parent / "text.txt").write_text("secret\n")
    before = sorted(changed.rglob("*"))
    monkeypatch.setenv(VARIABLE, str(made))
    with pytest.raises(ConfigError, match=f"outside the places that this machine allows .{VARIABLE}="):
        flow(**fields(changed.parent, made))
    assert sorted(changed.rglob("*")) == before
    assert champion(made, "lm") == find_version(made, "lm/v0001")


def test_a_model_that_is_not_there_has_no_table(made: Path) -> None:
    with pytest.raises(RegistryError, match=r"there is no model ml in .* \(there are: lm\)"):
        actions.versions(store=made, model_name="ml")
