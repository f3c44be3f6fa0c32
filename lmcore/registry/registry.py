"""Changes of a model: a version is added, promoted, rolled back to, pushed or pruned, each under the model's lock.

A version is one artifact: the run's export as hard links where the file system allows them, a model card, metrics and
the receipt. Each change is a line of the history. A killed process may leave a version without its line, or a pruned
version that is not removed yet: the next change completes both. No torch.
"""

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmcore import clock, markdown
from lmcore.errors import RegistryError, no_space_named
from lmcore.registry.receipt import Receipt, make_receipt
from lmcore.registry.versions import (
    CHAMPION,
    CHANGES_CHAMPION,
    HISTORY,
    RECEIPT,
    Event,
    Version,
    champion,
    champion_copy,
    champion_event,
    find_version,
    history,
    model_folder,
    require_model,
    versions,
)
from lmcore.runs.model_card import CARD, model_card, public_name, training_facts
from lmcore.runs.run import Run
from lmcore.settings.section import NUMBER
from lmcore.store.artifacts import MANIFEST, read_manifest, verify_artifact, write_artifact
from lmcore.store.files import remove, remove_stale_temp, write_file
from lmcore.store.json_files import append_line, json_bytes, read_lines
from lmcore.store.locks import locked

METRICS = "metrics.jsonl"


def add_version(store: Path, name: str, run: Run, decision: dict[str, Any], scores: Iterable[Path] = ()) -> Version:
    """Make the run's export the next version of model ``name``. ``promote`` makes it the champion.

    ``decision`` is the gate's: promoted (bool), reasons (list of str), rules (list of dict). ``scores`` are files that
    the version keeps for later decisions. Raises StoreError when the run has no whole export, RegistryError for a name
    that cannot be one.
    """
    export = run.folder / "model"
    about = verify_artifact(export)
    with adding(store, name) as version:
        before = champion(store, name)
        receipt = make_receipt(run, version, before.id if before else None, decision)
        with write_artifact(version.folder, lambda: {**about, "model": name, "version": version.id}) as folder:
            for file in export.iterdir():
                if file.name not in (MANIFEST, CARD):
                    _link(file, folder / file.name)
            for file in (run.metrics, *scores):
                shutil.copy(file, folder / file.name)
            (folder / RECEIPT).write_bytes(json_bytes(receipt))
            (folder / CARD).write_text(_card(receipt, run), encoding="utf-8")
        return version


def _link(file: Path, to: Path) -> None:
    try:
        os.link(file, to)
    except OSError:  # another file system, or one without links
        shutil.copy(file, to)


def _card(receipt: Receipt, run: Run) -> str:
    """The model card, with the facts of the receipt and the gate's decision."""
    text, origin, decision = receipt["dataset"]["splits"]["train"], receipt["origin"], receipt["decision"]
    facts = [
        ("created", receipt["created"]),
        ("run", receipt["run"]),
        ("trained from", public_name(origin["path"]) if origin else "new weights"),
        *training_facts(receipt["training"], receipt["evaluation"], run.config),
        ("text", f"{text['documents']:,} documents, {text['text_bytes']:,} bytes"),
        ("dataset", receipt["dataset"]["id"]),
        ("tokenizer", receipt["tokenizer"]["id"]),
        ("weights", receipt["training"]["weights"]),
        ("champion before", receipt["champion_before"] or "none"),
    ]
    verdict = f"The gate {'promoted' if decision.get('promoted') else 'did not promote'} it."
    reasons = "\n".join([verdict, *(f"- {reason}" for reason in decision.get("reasons", []))])
    rules = [{name: str(value) for name, value in rule.items()} for rule in decision.get("rules", [])]
    table = [markdown.table(tuple(rules[0]), [rule.values() for rule in rules])] if rules else []
    sections = [
        "## Why it is here",
        reasons,
        *table,
        f"{RECEIPT}, which stays in the store, has the hashes of all this.",
    ]
    title = f"{receipt['model']} {receipt['version']}"
    return model_card(title, run.config, f"A version of the model {receipt['model']}.", facts, sections)


def promote(
    store: Path,
    name: str,
    version: str,
    *,
    expected: str | None,
    reason: str,
    decision: dict[str, Any] | None = None,
    force: bool = False,
    reference: bool = False,
    **about: Any,
) -> Version:
    """Make a version the champion, if the champion still is ``expected`` (None: there is none yet).

    ``decision`` is the gate's, by default that in the version's receipt; ``about`` is more for the history. With
    ``reference`` later challengers are measured against this version's own scores of the anchor; then it may be the
    champion already. Raises RegistryError when another promotion was first, and names it; also for a version that the
    gate refused, unless ``force`` is set.
    """
    with _changing(store, name) as folder:
        challenger = find_version(store, f"{name}/{version}")
        read_manifest(challenger.folder)
        current = champion_event(history(store, name))
        found = current["version"] if current else None
        if reference and found == challenger.id:
            _record(folder, "reference", challenger.id, reason, reference=True)
            return challenger
        if found == challenger.id != expected:
            raise RegistryError(f"{challenger} already is the champion")
        decision = decision if decision is not None else challenger.receipt().get("decision", {})
        if not decision.get("promoted") and not force:
            reasons = "; ".join(decision.get("reasons", [])) or "there is no decision about it"
            raise RegistryError(f"{challenger} was not found better: {reasons}. --force promotes it all the same")
        if found != expected:
            since = f", {current['event']} at {current['time']} ({current['reason']})" if current else ""
            raise RegistryError(
                f"champion of {name}: expected was {expected or 'none'}, found is {found or 'none'}{since}. "
                f"Compare {challenger.id} with it before you promote"
            )
        about |= {"reference": True} if reference else {}
        _record(folder, "promoted", challenger.id, reason, decision, **about)
        return challenger


def rollback(store: Path, name: str, to: str = "", *, reason: str) -> Version:
    """Make an older version the champion again: ``to``, or the champion before this one.

    Raises RegistryError when none of them is kept.
    """
    with _changing(store, name) as folder:
        *earlier, current = _champions(history(store, name)) or [""]
        kept = [version for version in earlier if (folder / version).is_dir()]
        if not to and not kept:
            others = ", ".join(each.id for each in versions(store, name) if each.id != current) or "none"
            raise RegistryError(
                f"model {name} has no earlier champion to go back to: name a version (there are: {others})"
            )
        version = find_version(store, f"{name}/{to or kept[-1]}")
        read_manifest(version.folder)
        _record(folder, "rolled back", version.id, reason)
        return version


def _champions(events: list[Event]) -> list[str]:
    """The ids of all champions, oldest first. A rollback drops those after its version."""
    line: list[str] = []
    for event in events:
        if event["event"] == "rolled back" and event["version"] in line:
            del line[line.index(event["version"]) :]
        if event["event"] in CHANGES_CHAMPION:
            line.append(event["version"])
    return line


def record_refusal(
    store: Path, name: str, reason: str, decision: dict[str, Any], version: str | None = None, **about: Any
) -> None:
    """Record that a challenger was refused; ``about`` says what it was (its run, dataset, identity)."""
    with _changing(store, name, creates=True) as folder:
        _record(folder, "refused", version, reason, decision, **about)


def record_push(version: Version, repository: str, commit: str) -> None:
    """Record that a version was put into a repository of a hub, by that commit."""
    with _changing(version.store, version.model) as folder:
        _record(folder, "pushed", version.id, f"{repository}: {commit}", repository=repository)


def prune(store: Path, name: str, keep: int, dry_run: bool = False) -> list[str]:
    """Remove all versions but the newest ``keep``, the champion, and those that one of these was trained from."""
    with _changing(store, name) as folder:
        everything, current = versions(store, name), champion(store, name)
        kept = [*everything[max(0, len(everything) - keep) :], *([current] if current else [])]
        needed = {version.id for version in kept} | {_origin(version) for version in kept}
        doomed = [version for version in everything if version.id not in needed]
        for version in [] if dry_run else doomed:
            _record(folder, "pruned", version.id, f"keep {keep}")
            remove(version.folder)
        return [version.id for version in doomed]


def _origin(version: Version) -> str:
    """The version of the same model whose weights this one began with, or none."""
    path = (version.receipt().get("origin") or {}).get("path", "")
    found = re.fullmatch(f"models/{re.escape(version.model)}/({NUMBER})", path)
    return found[1] if found else ""


@contextmanager
def adding(store: Path, name: str) -> Iterator[Version]:
    """The next version, whose folder the body makes; then it is recorded. No number is given twice."""
    with _changing(store, name, creates=True) as folder:
        numbers = [version.number for version in versions(store, name)]
        numbers += [int(event["version"][1:]) for event in history(store, name) if event["version"]]
        number = f"v{max(numbers, default=0) + 1:04d}"
        yield Version(name, number, folder / number)
        _complete(store, name)


@contextmanager
def _changing(store: Path, name: str, creates: bool = False) -> Iterator[Path]:
    """Hold the model's lock, and complete what a killed process left."""
    folder = model_folder(store, name)
    if not creates:
        require_model(folder)
    with locked(folder / "lock", "wait", what=f"model {name}"), no_space_named(folder):
        remove_stale_temp(folder)
        _complete(store, name)
        yield folder


def _complete(store: Path, name: str) -> None:
    """Write the lines that are missing in the history, and the copy of its champion; remove pruned versions."""
    folder, events = model_folder(store, name), history(store, name)
    for event in events[len(read_lines(folder / HISTORY)) :]:
        append_line(folder / HISTORY, event)
    if (current := champion_event(events)) != champion_copy(folder):
        write_file(folder / CHAMPION, json_bytes(current))
    known = {(event["event"], event["version"]) for event in events}
    for version in versions(store, name):
        if ("pruned", version.id) in known:
            remove(version.folder)
        elif ("added", version.id) not in known:
            receipt = version.receipt()
            about = {"time": receipt["created"], "from": receipt.get("champion_before")}
            _record(folder, "added", version.id, "", receipt.get("decision"), **about)


def _record(
    folder: Path, kind: str, version: str | None, reason: str, decision: dict[str, Any] | None = None, **more: Any
) -> None:
    """Append an event, and copy it to champion.json when it changes the champion."""
    current = champion_event(history(folder.parents[1], folder.name))
    event: Event = {"time": clock.iso_timestamp(), "event": kind, "version": version}
    event |= {"from": current["version"] if current else None, "reason": reason, "decision": decision, **more}
    append_line(folder / HISTORY, event)
    if kind in CHANGES_CHAMPION:
        write_file(folder / CHAMPION, json_bytes(event))
