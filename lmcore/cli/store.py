"""Actions on the datasets and documents of a store."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lmcore.cli.options import Amount, Count, DryRun, InForm, SomeText, Store, store_folder
from lmcore.cli.outcome import Outcome
from lmcore.corpus.ledger import printable
from lmcore.registry.versions import find
from lmcore.store.artifacts import read_manifest

_Dataset = Annotated[str, Parameter(help="The id of a dataset.")]
_Document = Annotated[
    str,
    InForm(annotation=SomeText),
    Parameter(
        help="A hash of 16 hexadecimal digits, or a file on the machine that runs this. A file is cut into documents "
        "as each dataset was."
    ),
]


def ledger(dataset: _Dataset, /, *, store: Store = "") -> Outcome:
    """Show where every byte of a dataset's corpus went, and the pieces that were left out."""
    folder = find(store_folder(store), dataset, "dataset", "folder")
    found = read_manifest(folder)["ledger"]
    data = {name: value for name, value in found.items() if name != "skips"}
    return Outcome(data, text="\n".join(_ledger_lines(folder)))


def _ledger_lines(dataset: Path) -> Iterator[str]:
    from lmcore.dataset.audit import ledger_by_file, skipped_pieces

    names = ("documents", "in documents", "between", "skipped", "bytes", "stored", "undecodable")
    yield " ".join([*(f"{name:>12}" for name in names), "file"])
    rows = ledger_by_file(dataset)
    for row in rows:
        figures = [f"{value:>12,}" for value in row.values() if isinstance(value, int)]
        yield " ".join([*figures, printable(row["path"])])
    stored = {row["path"]: row["undecodable_stored_bytes"] for row in rows}
    for path, offset, length, reason, piece in skipped_pieces(dataset):
        if length:
            yield f"{reason}: {length:,} bytes at {offset:,} of {printable(path)}: {piece[:60]!r}"
        else:
            yield f"{reason}: {stored[path]:,} stored bytes of {printable(path)}"


def repair(dataset: _Dataset, /, *, store: Store = "") -> Outcome:
    """Encode the damaged chunks of a dataset again."""
    from lmcore.dataset.audit import repair as encode_again

    folder = find(store_folder(store), dataset, "dataset", "folder")
    return Outcome({"dataset_id": folder.name, "repaired": encode_again(folder)})


def seen_by(document: _Document, /, *, store: Store = "") -> Outcome:
    """List the datasets, runs and versions that hold a document; exit status 1 if one was not found."""
    from lmcore.corpus.document_query import DocumentQuery
    from lmcore.upkeep.seen_by import seen_by as holders_of

    folder, query = store_folder(store), DocumentQuery(document)
    seen = holders_of(folder, query)
    if not seen.rows and not len(seen.match.found):
        query.require_text()
    kinds = {"dataset": "datasets", "run": "runs", "version": "versions", "unreadable": "unreadable"}
    names = {plural: seen.names(kind) for kind, plural in kinds.items()}
    counts = {"documents": seen.match.documents, "found": len(seen.match.found)}
    return Outcome(
        {"document": document, **counts, **names},
        f"found {seen.match} in {folder}",
        text="\n".join(f"{row.kind} {row.name} ({row.why})" for row in seen.rows),
        ok=counts["found"] == counts["documents"],
    )


def forget(document: _Document, /, *, dry_run: DryRun = False, store: Store = "") -> Outcome:
    """Purge a document, or all of a file, from the store, and say what was trained on it; failed if one is absent."""
    from lmcore.upkeep.forget import forget as purge

    folder = store_folder(store)
    done = purge(folder, document, dry_run)
    sentence = f"{'to be forgotten' if dry_run else 'forgotten'}: {done.summary} in {folder}"
    data = {**done.model_dump(mode="json"), "dry_run": dry_run}
    return Outcome(data, sentence, {"forget": done.rows(dry_run)}, ok=not done.absent)


def gc(
    *,
    keep_runs: Count = 3,
    grace_hours: Annotated[Amount, InForm(24, Count)] = 24.0,
    dry_run: DryRun = False,
    store: Store = "",
) -> Outcome:
    """Remove what no version and no newer run needs.

    Args:
        keep_runs: Newest runs to keep with all that they need.
        grace_hours: Hours for which everything stays, whether it is needed or not.
    """
    from lmcore.upkeep.garbage_collection import collect

    folder = store_folder(store)
    gone = collect(folder, keep_runs, grace_hours * 3600, dry_run)
    done = "to be removed" if dry_run else "removed"
    sentence = f"{done} from {folder}: {len(gone.removed):,} ({gone.bytes:,} bytes)"
    data = {"removed": len(gone.removed), "bytes": gone.bytes, "dry_run": dry_run}
    return Outcome(data, sentence, {"gc": gone.rows()})
