"""A finished run becomes a version of a model: its export, a model card and the receipt, in one sealed folder.

The files of the export are hard links where the file system has them: nothing rewrites them in place. The card says
what the receipt says; whoever made the text knows what else belongs into it.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmcore import markdown
from lmcore.receipt import Receipt, make_receipt
from lmcore.registry import RECEIPT, Version, adding, champion
from lmcore.run import Run
from lmcore.store import MANIFEST, content_of, json_bytes, open_sealed, sealed_folder

CARD = "README.md"
METRICS = "metrics.jsonl"


def add_version(
    store: Path, name: str, run: Run, decision: dict[str, Any], *, licence: str = "", language: str = ""
) -> Version:
    """Make the run's export the next version of model ``name``. It is promoted by ``registry.promote``.

    ``decision`` is the gate's: promoted (bool), reasons (list of str), rules (list of dict). ``licence`` and
    ``language`` are for the card, as the Hugging Face hub spells them (apache-2.0, ja). Raises StoreError when the run
    has no whole export, RegistryError for a name that cannot be one.
    """
    export = run.folder / "model"
    about = content_of(open_sealed(export))
    with adding(store, name) as version:
        before = champion(store, name)
        receipt = make_receipt(run, version, before.id if before else None, decision)
        with sealed_folder(version.folder, lambda: {**about, "model": name, "version": version.id}) as folder:
            for file in export.iterdir():
                if file.name not in (MANIFEST, CARD):
                    _link(file, folder / file.name)
            shutil.copy(run.metrics, folder / METRICS)
            (folder / RECEIPT).write_bytes(json_bytes(receipt))
            (folder / CARD).write_text(model_card(receipt, licence, language), encoding="utf-8")
        return version


def _link(file: Path, to: Path) -> None:
    try:
        os.link(file, to)
    except OSError:  # another file system, or one without links
        shutil.copy(file, to)


def model_card(receipt: Receipt, licence: str, language: str) -> str:
    """README.md of a version: the facts of its receipt."""
    title = f"{receipt['model']} {receipt['version']}"
    header = {"library_name": "transformers", "pipeline_tag": "text-generation", "model_name": title}
    header |= {"license": licence or "unknown"} | ({"language": language} if language else {})
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in header.items()), "---", "", f"# {title}", ""]
    lines.append(markdown.table(("", ""), _facts(receipt)))
    if sources := receipt["evaluation"]["sources"]:
        lines += ["", "## Validation loss by source", ""]
        rows = ((name, f"{score['nats'] / score['tokens']:.4f}") for name, score in sources.items())
        lines.append(markdown.table(("source", "nats per token"), rows))
    lines += ["", "## Why it is here", "", *_decision(receipt["decision"])]
    receipt_is = f"{RECEIPT}, which stays in the store, has the hash of everything above."
    lines += ["", f"{receipt_is} The model knows only the text it was trained on.", ""]
    return "\n".join(lines)


def _facts(receipt: Receipt) -> Iterator[tuple[str, str]]:
    training, score, splits = receipt["training"], receipt["evaluation"], receipt["dataset"]["splits"]
    yield "created", receipt["created"]
    yield "run", receipt["run"]
    yield "trained from", _beginning(receipt["origin"])
    yield "parameters", f"{training['parameters']:,}"
    yield "trained on", f"{training['tokens']:,} tokens in {training['last_step']:,} steps"
    yield "text", f"{splits['train']['documents']:,} documents, {splits['train']['text_bytes']:,} bytes"
    yield "files", f"{len(receipt['corpus']['files']):,}"
    for reason, row in receipt["dataset"]["left_out"].items():
        yield f"left out: {reason}", f"{row['documents']:,} documents, {row['bytes']:,} bytes"
    yield "training loss", f"{training['train_loss']:.4f} nats per token"
    yield "validation loss", f"{score['nats_per_token']:.4f} nats per token"
    yield "bits per byte", f"{score['bits_per_byte']:.4f}"
    yield "validation text", f"{score['documents']:,} documents, {score['text_bytes']:,} bytes"
    yield "longest context", f"{receipt['record']['config']['dataset']['block_size']} tokens"
    yield "dataset", receipt["dataset"]["id"]
    yield "tokenizer", receipt["tokenizer"]["id"]
    yield "weights", training["weights"]
    yield "champion before", receipt["champion_before"] or "none"


def _beginning(origin: dict[str, str] | None) -> str:
    """A place in the store or on a hub; of a folder elsewhere its name, since the card may be published."""
    path = origin["path"] if origin else "new weights"
    return Path(path).name if Path(path).is_absolute() else path


def _decision(decision: dict[str, Any]) -> list[str]:
    """The gate's verdict, and a table of its rules."""
    verdict = "Found better by the gate." if decision.get("promoted") else "Not found better by the gate."
    lines = [verdict, *(f"- {reason}" for reason in decision.get("reasons", []))]
    rules = decision.get("rules", [])
    names = tuple(dict.fromkeys(name for rule in rules for name in rule))
    rows = (tuple(str(rule.get(name, "")) for name in names) for rule in rules)
    return [*lines, "", markdown.table(names, rows)] if rules else lines
