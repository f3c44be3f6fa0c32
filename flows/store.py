"""Buttons for a store, by which things go: what nothing needs, and a document. By default they only say what would."""

from pathlib import Path
from typing import Any

from prefect import flow
from pydantic import Field

import flows  # Prefect loads this file by its path, and quiet logs come with the package  # noqa: F401
from lmcore.config import default_store
from lmcore.forget import forget
from lmcore.garbage import collect
from lmcore.section import Section, Text, TextPath
from tasks.pages import show_table

BUTTON: dict[str, Any] = {"persist_result": False, "result_serializer": "json"}
"""Options of a flow that does one thing and whose page says what came of it."""


class StoreChoice(Section):
    """A store."""

    store: TextPath = Field(default_factory=default_store)
    """Folder of everything that is made. Default: the environment variable LM_STORE, else ./store."""

    @property
    def folder(self) -> Path:
        return self.store.expanduser().absolute()


class GarbageChoice(StoreChoice):
    """What stays in a store, besides all that a version of a model needs."""

    keep_runs: int = Field(3, ge=0, le=1_000_000)
    """Newest runs to keep with all that they need."""
    grace_hours: float = Field(24.0, ge=0, le=1e6)
    """Hours for which everything stays, whether it is needed or not."""
    dry_run: bool = True
    """Only say what would be removed."""


class DocumentChoice(StoreChoice):
    """Documents that are to be taken out of a store."""

    document: Text = Field(min_length=1)
    """A hash of 16 hexadecimal digits, or a file on the machine that runs this. A file is cut into documents as each
    dataset was."""
    dry_run: bool = True
    """Only say what would be done."""


@flow(name="gc", flow_run_name="gc of {choice.store}", **BUTTON)
def collect_garbage(choice: GarbageChoice) -> int:
    """Remove what no version and no newer run needs; the bytes that this gives back, or would."""
    gone = collect(choice.folder, choice.keep_runs, 3600 * choice.grace_hours, choice.dry_run)
    done = "to be removed" if choice.dry_run else "removed"
    show_table("gc", gone.rows(), f"{done} from {choice.folder}: {len(gone.removed):,} ({gone.bytes:,} bytes)")
    return gone.bytes


@flow(name="forget", flow_run_name="forget {choice.document}", **BUTTON)
def forget_document(choice: DocumentChoice) -> list[str]:
    """Purge a document from the store, and say what was trained on it; its hashes."""
    done = forget(choice.folder, choice.document, choice.dry_run)
    about = "to be forgotten" if choice.dry_run else "forgotten"
    show_table("forget", done.rows(), f"{about}: {done.summary}")
    return done.documents


BUTTONS = [collect_garbage, forget_document]
