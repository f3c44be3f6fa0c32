"""Add a finished run to a model as a version: one artifact of its export, a model card, metrics and the receipt.

The files of the export are hard links where the file system allows it, since no file is changed in place. The card has
the facts of the receipt.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmcore import markdown
from lmcore.registry.receipt import Receipt, make_receipt
from lmcore.registry.registry import adding
from lmcore.registry.versions import RECEIPT, Version, champion
from lmcore.runs.model_card import CARD, model_card, public_name, training_facts
from lmcore.runs.run import Run
from lmcore.store.artifacts import MANIFEST, content_of, verify_artifact, write_artifact
from lmcore.store.files import json_bytes

METRICS = "metrics.jsonl"


def add_version(store: Path, name: str, run: Run, decision: dict[str, Any]) -> Version:
    """Make the run's export the next version of model ``name``. It is promoted by ``registry.promote``.

    ``decision`` is the gate's: promoted (bool), reasons (list of str), rules (list of dict). Raises
    StoreError when the run has no whole export, RegistryError for a name that cannot be one.
    """
    export = run.folder / "model"
    about = content_of(verify_artifact(export))
    with adding(store, name) as version:
        before = champion(store, name)
        receipt = make_receipt(run, version, before.id if before else None, decision)
        with write_artifact(version.folder, lambda: {**about, "model": name, "version": version.id}) as folder:
            for file in export.iterdir():
                if file.name not in (MANIFEST, CARD):
                    _link(file, folder / file.name)
            shutil.copy(run.metrics, folder / METRICS)
            (folder / RECEIPT).write_bytes(json_bytes(receipt))
            (folder / CARD).write_text(_card(receipt, run), encoding="utf-8")
        return version


def _link(file: Path, to: Path) -> None:
    try:
        os.link(file, to)
    except OSError:  # another file system, or one without links
        shutil.copy(file, to)


def _card(receipt: Receipt, run: Run) -> str:
    """The model card, with the facts of the receipt."""
    title = f"{receipt['model']} {receipt['version']}"
    about = f"A version of the model {receipt['model']}."
    sections = []
    if sources := receipt["evaluation"]["sources"]:
        rows = ((name, f"{score['nats'] / score['tokens']:.4f}") for name, score in sources.items())
        sections += ["## Validation loss by source", markdown.table(("source", "nats per token"), rows)]
    sections += ["## Why it is here", "\n".join(_decision(receipt["decision"]))]
    sections.append(f"The hashes of all of this are in {RECEIPT}, which stays in the store.")
    return model_card(title, run.config, about, _facts(receipt, run), sections)


def _facts(receipt: Receipt, run: Run) -> Iterator[tuple[str, str]]:
    splits = receipt["dataset"]["splits"]
    yield "created", receipt["created"]
    yield "run", receipt["run"]
    yield "trained from", _beginning(receipt["origin"])
    yield from training_facts(receipt["training"], receipt["evaluation"], run.config)
    yield "text", f"{splits['train']['documents']:,} documents, {splits['train']['text_bytes']:,} bytes"
    yield "files", f"{len(receipt['corpus']['files']):,}"
    for reason, row in receipt["dataset"]["left_out"].items():
        yield f"left out: {reason}", f"{row['documents']:,} documents, {row['bytes']:,} bytes"
    yield "dataset", receipt["dataset"]["id"]
    yield "tokenizer", receipt["tokenizer"]["id"]
    yield "weights", receipt["training"]["weights"]
    yield "champion before", receipt["champion_before"] or "none"


def _beginning(origin: dict[str, str] | None) -> str:
    return public_name(origin["path"]) if origin else "new weights"


def _decision(decision: dict[str, Any]) -> list[str]:
    """Lines with the gate's decision and a table of its rules."""
    verdict = "The gate promoted it." if decision.get("promoted") else "The gate did not promote it."
    lines = [verdict, *(f"- {reason}" for reason in decision.get("reasons", []))]
    rules = decision.get("rules", [])
    names = tuple(dict.fromkeys(name for rule in rules for name in rule))
    rows = (tuple(str(rule.get(name, "")) for name in names) for rule in rules)
    return [*lines, "", markdown.table(names, rows)] if rules else lines
