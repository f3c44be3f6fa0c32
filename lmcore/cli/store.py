"""Actions on datasets and documents of a store."""

import logging
import sys
from typing import Annotated

from cyclopts import Parameter

from lmcore.cli.command import print_json
from lmcore.cli.models import verify_version
from lmcore.cli.options import STORE, Amount, Count, DryRun, Store
from lmcore.corpus.ledger import printable
from lmcore.markdown import columns

_log = logging.getLogger("lmcore")

_Dataset = Annotated[str, Parameter(help="The id of a dataset.")]
_Document = Annotated[
    str, Parameter(help="A hash of 16 hexadecimal digits, or a file, which is cut into documents as each dataset was.")
]


def ledger(dataset: _Dataset, /, *, store: Store = STORE) -> None:
    """Show where every byte of a dataset's corpus went, and the pieces that were left out."""
    from lmcore.dataset.audit import ledger_by_file, skipped_pieces
    from lmcore.registry.find import find
    from lmcore.store.artifacts import read_manifest

    folder = find(store, dataset, "dataset", "folder")
    names = ("documents", "in documents", "between", "filtered", "skipped", "bytes", "stored", "undecodable")
    print(*(f"{name:>12}" for name in names), "file")
    rows = ledger_by_file(folder)
    for row in rows:
        print(*(f"{value:>12,}" for value in row.values() if isinstance(value, int)), printable(row["path"]))
    stored = {row["path"]: row["undecodable_stored_bytes"] for row in rows}
    for path, offset, length, reason, piece in skipped_pieces(folder):
        if not length:
            print(f"{reason}: {stored[path]:,} stored bytes of {printable(path)}")
            continue
        print(f"{reason}: {length:,} bytes at {offset:,} of {printable(path)}: {piece[:60]!r}")
    account = read_manifest(folder)["ledger"]
    print_json({name: value for name, value in account.items() if name != "skips"})


def verify(
    name: Annotated[str, Parameter(help="The id of a dataset, NAME/v0001, or NAME for the champion.")],
    /,
    *,
    store: Store = STORE,
) -> None:
    """Read a dataset again, or a version and all that it was made from; exit status 1 if anything is wrong."""
    from lmcore.dataset.audit import problems
    from lmcore.registry.find import find
    from lmcore.registry.versions import models

    if name.partition("/")[0] in models(store):
        verify_version(store, name)
        return
    dataset = find(store, name, "dataset", "folder", "version")
    found = list(problems(dataset))
    for chunk, problem in found:
        print(f"{chunk or 'manifest'}: {problem}")
    print_json({"dataset_id": dataset.name, "problems": len(found)})
    sys.exit(1 if found else 0)


def repair(dataset: _Dataset, /, *, store: Store = STORE) -> None:
    """Encode the damaged chunks of a dataset again."""
    from lmcore.dataset.audit import repair as encode_again
    from lmcore.registry.find import find

    folder = find(store, dataset, "dataset", "folder")
    print_json({"dataset_id": folder.name, "repaired": encode_again(folder)})


def seen_by(document: _Document, /, *, store: Store = STORE) -> None:
    """List the datasets, runs and versions that hold a document; exit status 1 if one was not found."""
    from lmcore.corpus.document_query import DocumentQuery
    from lmcore.upkeep.seen_by import seen_by as holders_of

    query = DocumentQuery.parse(document)
    seen = holders_of(store, query)
    if not seen.rows and not len(seen.match.found):
        query.require_text()
    for row in seen.rows:
        print(f"{row.kind} {row.name} ({row.why})")
    _log.info("found %s in %s", seen.match, store)
    kinds = {"dataset": "datasets", "run": "runs", "version": "versions", "unreadable": "unreadable"}
    names = {plural: seen.names(kind) for kind, plural in kinds.items()}
    counts = {"documents": seen.match.documents, "found": len(seen.match.found)}
    print_json({"document": document, **counts, **names})
    sys.exit(int(counts["found"] < counts["documents"]))


def forget_document(document: _Document, /, *, dry_run: DryRun = False, store: Store = STORE) -> None:
    """Purge a document, or all of a file, from the store, and say which models were trained on it."""
    from lmcore.upkeep.forget import forget

    done = forget(store, document, dry_run)
    print(columns(done.rows(dry_run)))
    _log.info("%s in %s", done.summary, store)
    print_json({**done.model_dump(mode="json"), "dry_run": dry_run})
    sys.exit(int(bool(done.absent)))


def collect_garbage(
    *,
    keep_runs: Annotated[Count, Parameter(help="Newest runs to keep with all they need.")] = 3,
    grace_hours: Annotated[Amount, Parameter(help="Hours for which everything is kept.")] = 24.0,
    dry_run: DryRun = False,
    store: Store = STORE,
) -> None:
    """Remove what no version and no newer run needs."""
    from lmcore.upkeep.garbage_collection import collect

    gone = collect(store, keep_runs, grace_hours * 3600, dry_run)
    print(columns(gone.rows()))
    print_json({"removed": len(gone.removed), "bytes": gone.bytes, "dry_run": dry_run})
