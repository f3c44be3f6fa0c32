"""The commands of versions and stores: a JSON line for programs, an error line for people."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import two_versions
from tests.lmcore.cli.test_main import assert_fails, call


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One to change, beside its own corpus."""
    return two_versions(tmp_path_factory.mktemp("verbs"))


def test_a_list_says_how_many_models_there_are_and_when_there_is_no_store(store: Path, tmp_path: Path) -> None:
    assert f"1 model in {store}" in call("models", "--store", store)[2]
    assert f"there is no store in {tmp_path / 'none'}" in call("models", "--store", tmp_path / "none")[2]
    table = call("models", "lm", "--store", store)[1]
    assert all(" UTC" in line or "(UTC" in line for line in table if line.startswith("v000"))


def last_line(status: int, *arguments: object) -> dict[str, Any]:
    found, output, errors = call(*arguments)
    assert found == status, errors
    result: dict[str, Any] = json.loads(output[-1])
    return result


def test_a_model_from_promotion_to_gc(store: Path) -> None:
    here = ("--store", store)
    assert last_line(0, "promote", "lm/v0001", *here)["champion"] == "v0001"
    assert_fails(1, "lm/v0001 already is the champion", "promote", "lm", *here)
    assert_fails(1, "lm/v0002 was not found better: old text +0.014 bits per byte", "promote", "lm/v0002", *here)
    assert_fails(
        1, "expected was none, found is v0001, promoted at", "promote", "lm/v0002", "--force", "--expect", "", *here
    )
    assert last_line(0, "promote", "lm/v0002", "--force", "--expect", "v0001", *here)["champion"] == "v0002"
    assert last_line(0, "models", *here)["models"] == [{"model": "lm", "champion": "v0002", "versions": 2}]
    listed = last_line(0, "models", "lm", *here)
    assert (listed["champion"], [row["role"] for row in listed["versions"]]) == ("v0002", ["", "champion"])
    assert last_line(0, "rollback", "lm/v0001", "--reason", "it swears", *here) == {"model": "lm", "champion": "v0001"}
    scored = last_line(0, "evaluate", "lm", *here)
    assert (scored["model"], set(scored["groups"])) == ("lm", {"new"})
    differences = last_line(0, "diff", "lm", "lm/v0002", *here)["differences"]
    assert differences["config.train.seed"] == [0, 1]
    assert last_line(0, "verify", "lm", *here) == {"version": "lm/v0001", "problems": 0}
    run = store / "runs" / listed["versions"][0]["run"]
    assert_fails(1, f"{run} is not a dataset of a store: give the id of a dataset", "verify", run, *here)
    assert last_line(0, "replay", "lm/v0001", *here)["differences"] == []
    assert last_line(0, "prune", "lm", "--keep", 0, "--dry-run", *here)["pruned"] == ["v0002"]
    assert last_line(0, "prune", "lm", "--keep", 0, *here)["pruned"] == ["v0002"]
    assert last_line(0, "gc", "--keep-runs", 0, "--grace-hours", 0, *here)["removed"] == 1
    (store.parent / "document").write_bytes((store.parent / "corpus" / "text.txt").read_bytes().splitlines()[3])
    said = last_line(0, "forget", store.parent / "document", "--dry-run", *here)
    done = last_line(0, "forget", store.parent / "document", *here)
    assert done == said | {"dry_run": False}
    assert done["versions"] == ["lm/v0001"]
    assert last_line(0, "seen-by", store.parent / "document", *here)["versions"] == ["lm/v0001"]
    assert last_line(1, "verify", "lm", *here) == {"version": "lm/v0001", "problems": 1}


@pytest.mark.parametrize(
    ("status", "error", "arguments"),
    [
        (1, "there is no model nothing", ("rollback", "nothing")),
        (1, "there is no dataset or folder or version named nothing", ("verify", "nothing")),
        (1, "'../x' cannot name a model", ("models", "../x")),
        (1, "there is no model nothing", ("models", "nothing")),
        (1, "neither a document hash", ("forget", "nothing")),
        (1, "there is no store in", ("forget", "0123456789abcdef")),
        (1, "there is no store in", ("gc",)),
        (2, 'Invalid value "-1" for --keep. It must be 0 or more.', ("prune", "lm", "--keep=-1")),
        (2, 'Invalid value "-3" for --keep-runs.', ("gc", "--keep-runs=-3")),
        (2, "error: --keep: Input should be less than or equal to 1000000", ("prune", "lm", "--keep=2000000")),
        (2, 'Invalid value "nan" for --grace-hours.', ("gc", "--grace-hours=nan")),
    ],
)
def test_a_wrong_name_is_one_line(tmp_path: Path, status: int, error: str, arguments: tuple[str, ...]) -> None:
    found, output, errors = call(*arguments, "--store", tmp_path)
    assert (found, output) == (status, [])
    assert error in errors[-1]
    assert list(tmp_path.iterdir()) == []
