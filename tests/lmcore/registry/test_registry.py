"""Versions, one champion, and a history that says how it came to be, whoever is killed and whoever comes second."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lmcore.errors import RegistryError, StoreError
from lmcore.registry.registry import adding, promote, prune, record_refusal, rollback
from lmcore.registry.versions import Version, champion, find_version, history, models, versions
from lmcore.store.artifacts import write_artifact
from tests.conftest import REPOSITORY
from tests.dying import ends

BETTER = {"promoted": True, "reasons": ["new text -0.1 bits per byte"], "rules": []}
WORSE = {"promoted": False, "reasons": ["old text +0.014 bits per byte, allowed 0.005"], "rules": []}


def add(store: Path, decision: dict[str, Any] = BETTER, origin: str = "", name: str = "ja") -> Version:
    """A version without weights; the registry does not look at them."""
    with adding(store, name) as version, write_artifact(version.folder, lambda: {"kind": "model"}) as folder:
        receipt = {"format_version": 1, "created": "2026-01-01T00:00:00+00:00", "decision": decision}
        receipt |= {"origin": {"path": origin} if origin else None}
        (folder / "receipt.json").write_text(json.dumps(receipt))
    return version


def champion_id(store: Path) -> str | None:
    found = champion(store, "ja")
    return found.id if found else None


def events(store: Path) -> list[tuple[str, str | None]]:
    return [(event["event"], event["version"]) for event in history(store, "ja")]


def test_versions_are_numbered_and_the_promoted_one_is_the_champion(tmp_path: Path) -> None:
    assert champion(tmp_path, "ja") is None
    assert [add(tmp_path).id, add(tmp_path).id] == ["v0001", "v0002"]
    assert champion(tmp_path, "ja") is None
    promote(tmp_path, "ja", "v0001", expected=None, reason="first")
    promote(tmp_path, "ja", "v0002", expected="v0001", reason="better")
    assert champion(tmp_path, "ja") == find_version(tmp_path, "ja/v0002") == find_version(tmp_path, "ja")
    assert events(tmp_path) == [("added", "v0001"), ("added", "v0002"), ("promoted", "v0001"), ("promoted", "v0002")]
    assert history(tmp_path, "ja")[-1]["from"] == "v0001"
    assert history(tmp_path, "ja")[-1]["decision"] == BETTER
    assert models(tmp_path) == ["ja"]


def test_a_promotion_that_expects_another_champion_is_lost_and_says_who_won(tmp_path: Path) -> None:
    for _ in range(3):
        add(tmp_path)
    promote(tmp_path, "ja", "v0001", expected=None, reason="first")
    promote(tmp_path, "ja", "v0003", expected="v0001", reason="weekly run")
    with pytest.raises(RegistryError, match=r"expected was v0001, found is v0003, promoted at .* \(weekly run\)"):
        promote(tmp_path, "ja", "v0002", expected="v0001", reason="too late")
    assert champion_id(tmp_path) == "v0003"
    assert history(tmp_path, "ja")[-1]["version"] == "v0003"


def test_what_the_gate_refused_is_promoted_by_force_only(tmp_path: Path) -> None:
    add(tmp_path, WORSE)
    with pytest.raises(RegistryError, match=r"not found better: old text \+0.014 bits per byte, allowed 0.005"):
        promote(tmp_path, "ja", "v0001", expected=None, reason="")
    promote(tmp_path, "ja", "v0001", expected=None, reason="we know better", force=True)
    assert champion_id(tmp_path) == "v0001"


def test_a_damaged_version_is_not_promoted(tmp_path: Path) -> None:
    version = add(tmp_path)
    (version.folder / "manifest.json").write_text("{}")
    with pytest.raises(StoreError, match=r"manifest.json"):
        promote(tmp_path, "ja", "v0001", expected=None, reason="")
    assert champion(tmp_path, "ja") is None


def test_rollback_goes_back_one_champion_at_a_time(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        add(tmp_path)
        promote(tmp_path, "ja", f"v000{number}", expected=champion_id(tmp_path), reason="")
    assert rollback(tmp_path, "ja", reason="bad").id == "v0002"
    assert rollback(tmp_path, "ja", reason="bad too").id == "v0001"
    with pytest.raises(RegistryError, match=r"no earlier champion .*there are: v0002, v0003"):
        rollback(tmp_path, "ja", reason="")
    assert rollback(tmp_path, "ja", to="v0003", reason="it was good").id == "v0003"
    assert rollback(tmp_path, "ja", reason="no").id == "v0001"
    assert events(tmp_path)[-4:] == [("rolled back", f"v000{number}") for number in (2, 1, 3, 1)]


def test_rollback_passes_over_what_was_pruned(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        add(tmp_path)
        promote(tmp_path, "ja", f"v000{number}", expected=champion_id(tmp_path), reason="")
    prune(tmp_path, "ja", keep=1)
    with pytest.raises(RegistryError, match="no earlier champion"):
        rollback(tmp_path, "ja", reason="")


def test_prune_keeps_the_newest_the_champion_and_what_they_began_with(tmp_path: Path) -> None:
    for origin in ("", "", "models/ja/v0001", "models/ja/v0002", "models/ja/v0002", ""):
        add(tmp_path, origin=origin)
    promote(tmp_path, "ja", "v0003", expected=None, reason="")
    assert prune(tmp_path, "ja", keep=1, dry_run=True) == ["v0002", "v0004", "v0005"]
    assert len(versions(tmp_path, "ja")) == 6
    assert prune(tmp_path, "ja", keep=1) == ["v0002", "v0004", "v0005"]
    assert [version.id for version in versions(tmp_path, "ja")] == ["v0001", "v0003", "v0006"]
    assert prune(tmp_path, "ja", keep=0) == ["v0006"]
    assert add(tmp_path).id == "v0007"  # no number twice


def test_a_refusal_is_kept_with_what_was_refused(tmp_path: Path) -> None:
    record_refusal(tmp_path, "ja", "worse", WORSE, run="run-1", dataset="d", identity="i")
    [event] = history(tmp_path, "ja")
    assert (event["event"], event["decision"], event["run"]) == ("refused", WORSE, "run-1")
    assert add(tmp_path).id == "v0001"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", ".hidden", "a b", "日本", "a\n", "x" * 101, "-x"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RegistryError, match="cannot name a model"):
        versions(tmp_path, name)


@pytest.mark.parametrize("number", ["v1", "..", "v0001/..", "0001", "v0001 "])
def test_a_version_is_called_by_its_number(tmp_path: Path, number: str) -> None:
    add(tmp_path)
    with pytest.raises(RegistryError, match="is not a version"):
        find_version(tmp_path, f"ja/{number}")


def test_what_is_not_there_is_an_error_that_says_what_is(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"there is no model jaa .*\(there are: none\)"):
        rollback(tmp_path, "jaa", reason="")
    for name in ("jaa", "jaa/v0001"):
        with pytest.raises(RegistryError, match=r"there is no model jaa .*\(there are: none\)"):
            find_version(tmp_path, name)
    assert not (tmp_path / "models").exists()
    add(tmp_path)
    with pytest.raises(RegistryError, match=r"has no version v0009 .*there are: v0001"):
        find_version(tmp_path, "ja/v0009")
    with pytest.raises(RegistryError, match="has no champion"):
        find_version(tmp_path, "ja")


def test_a_damaged_history_is_named(tmp_path: Path) -> None:
    add(tmp_path)
    (tmp_path / "models/ja/history.jsonl").write_text("{\n{}\n")
    with pytest.raises(StoreError, match=r"history.jsonl is damaged in line 1"):
        history(tmp_path, "ja")
    with pytest.raises(StoreError, match=r"history.jsonl is damaged in line 1"):
        promote(tmp_path, "ja", "v0001", expected=None, reason="as if it were the first", force=True)


@pytest.mark.parametrize("content", [None, "[]", "{", "an older line"])
def test_the_history_names_the_champion_whatever_its_copy_says(tmp_path: Path, content: str | None) -> None:
    for number in (1, 2):
        add(tmp_path)
        promote(tmp_path, "ja", f"v000{number}", expected=champion_id(tmp_path), reason="")
    path, lines = tmp_path / "models/ja/champion.json", (tmp_path / "models/ja/history.jsonl").read_text().splitlines()
    path.unlink()
    if content is not None:
        path.write_text(content.replace("an older line", lines[1]))
    assert champion_id(tmp_path) == "v0002"
    with pytest.raises(RegistryError, match="expected was none, found is v0002"):
        promote(tmp_path, "ja", "v0001", expected=None, reason="as if it were the first", force=True)
    assert json.loads(path.read_bytes()) == json.loads(lines[-1])


def test_a_store_whose_history_is_lost_still_has_its_champion(tmp_path: Path) -> None:
    add(tmp_path)
    promote(tmp_path, "ja", "v0001", expected=None, reason="first")
    (tmp_path / "models/ja/history.jsonl").unlink()
    assert champion_id(tmp_path) == "v0001"
    record_refusal(tmp_path, "ja", "worse", WORSE)
    assert [event for event, _ in events(tmp_path)] == ["promoted", "added", "refused"]


def test_of_promotions_at_once_exactly_one_wins_and_readers_see_a_champion(tmp_path: Path) -> None:
    count = 4
    for _ in range(count + 1):
        add(tmp_path)
    promote(tmp_path, "ja", "v0001", expected=None, reason="")
    script = """
import sys, time
from pathlib import Path
from lmcore.errors import RegistryError
from lmcore.registry.registry import promote
from lmcore.registry.versions import champion
store, version = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
try:
    promote(store, "ja", version, expected="v0001", reason=version)
    print("won")
except RegistryError as error:
    print(error)
"""
    racers = []
    for number in range(2, count + 2):
        command = [sys.executable, "-c", script, str(tmp_path), f"v000{number}"]
        pipe = subprocess.PIPE
        racers.append(subprocess.Popen(command, cwd=REPOSITORY, stdin=pipe, stdout=pipe, text=True))
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    seen = {champion_id(tmp_path) for _ in range(50)}
    said = [racer.communicate()[0].strip() for racer in racers]
    winner = champion_id(tmp_path)
    assert said.count("won") == 1
    assert seen <= {"v0001", winner}
    assert all(f"found is {winner}, promoted at" in line for line in said if line != "won")
    assert [event["version"] for event in history(tmp_path, "ja") if event["event"] == "promoted"] == ["v0001", winner]


WRITES = [(os, "replace"), (os, "rename"), (os, "fsync"), (os, "unlink"), (shutil, "rmtree")]


def change_much(store: Path) -> None:
    """Every kind of change, from the champion v0002 of two versions."""
    add(store)
    promote(store, "ja", "v0003", expected="v0002", reason="third")
    rollback(store, "ja", reason="back")
    promote(store, "ja", "v0003", expected="v0002", reason="again", force=True)
    prune(store, "ja", keep=0)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # the child starts no thread
def test_a_kill_at_any_write_leaves_a_registry_that_the_next_command_mends(tmp_path: Path) -> None:
    write, ended = 0, False
    while not ended:
        write += 1
        store = tmp_path / str(write)
        for number in (1, 2):
            add(store)
            promote(store, "ja", f"v000{number}", expected=champion_id(store), reason="")
        ended = ends(partial(change_much, store), write, WRITES)
        assert champion_id(store) in ("v0002", "v0003")
        known = events(store)
        record_refusal(store, "ja", "the next command", WORSE)
        check_whole(store, known)
    assert write > 20


def check_whole(store: Path, known: list[tuple[str, str | None]]) -> None:
    """The history has all that was known, tells of every version, and ends at the champion; nothing is left over."""
    told = history(store, "ja")
    lines = (store / "models/ja/history.jsonl").read_bytes()
    assert [json.loads(line) for line in lines.splitlines()] == told
    assert set(known) <= set(events(store))
    moves = [event for event in told if event["event"] in ("promoted", "rolled back")]
    assert moves[-1]["version"] == champion_id(store)
    assert [event["from"] for event in moves[1:]] == [event["version"] for event in moves[:-1]]
    pruned = {event["version"] for event in told if event["event"] == "pruned"}
    there = {version.id for version in versions(store, "ja")}
    added = [event["version"] for event in told if event["event"] == "added"]
    assert (sorted(there | pruned), len(added)) == (sorted(added), len(set(added)))
    assert not there & pruned
    assert not list((store / "models/ja").glob(".tmp-*"))


def test_a_torn_last_line_is_mended_at_the_next_write(tmp_path: Path) -> None:
    add(tmp_path)
    promote(tmp_path, "ja", "v0001", expected=None, reason="")
    path = tmp_path / "models/ja/history.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    # An earlier version writes champion.json before the line.
    assert events(tmp_path) == [("added", "v0001"), ("promoted", "v0001")]
    add(tmp_path)
    assert path.read_bytes().startswith(whole)
    assert events(tmp_path)[2:] == [("added", "v0002")]
