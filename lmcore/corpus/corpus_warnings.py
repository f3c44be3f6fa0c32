"""Sentences about text that was lost from a corpus and why, for the person who started the run.

Errors and warnings use the same sentences, whether a tokenizer is trained or loaded.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from lmcore.corpus.file_finder import UnreadFiles
from lmcore.corpus.formats import advice
from lmcore.corpus.ledger import Ledger, Skip, counted, printable
from lmcore.markdown import byte_size
from lmcore.settings.config import CorpusConfig

MUCH = 0.1
"""Share of lost bytes above which there is a warning."""
_CAUSES = 30
"""Causes that are listed; objects with many different keys may give thousands."""
_NAMES = 10
"""Files that are named for each cause."""
_SHORT_DOCUMENT = 50
"""Tokens. With shorter documents on average a model learns little about longer text."""
_HARMLESS = {"unsettled"}
_WITHOUT_BYTES = {"unreadable"}
"""Reasons for which a whole file is lost and its size is unknown."""


def corpus_warnings(ledger: Ledger, unread: UnreadFiles, config: CorpusConfig, dataset_id: str) -> list[str]:
    """Sentences about lost text, one for each cause, and about unread files beside those that were read."""
    found: list[str] = []
    # Other JSON than JSON lines is common beside text.
    whole = [skip for skip in ledger.skipped if skip.stored or skip.reason in _WITHOUT_BYTES]
    lost = {skip.path for skip in whole if not skip.path.lower().endswith(".json") and skip.reason not in _HARMLESS}
    stored = ledger.undecodable_stored_bytes / max(1, ledger.stored_bytes)
    share = stored + (1 - stored) * ledger.skipped_bytes / max(1, ledger.source_bytes)
    if lost or share > MUCH:
        listing = f"lm ledger {dataset_id}"
        losses = " and ".join(_losses(ledger, len(lost)))
        found.append(f"{share:.1%} of the corpus could not be used: {losses}. `{listing}` lists every file")
        found += skip_causes(ledger, config, listing)
    if unread.bytes > ledger.stored_bytes:
        found.append(
            f"{byte_size(unread.bytes)} lie beside the {byte_size(ledger.stored_bytes)} that were read, in files that "
            f"corpus.include does not name: {unread.summary()}"
        )
    return found


def _losses(ledger: Ledger, files: int) -> Iterator[str]:
    if ledger.undecodable_stored_bytes or files:
        whole = f" ({counted(files, 'whole file')})" if files else ""
        yield f"{ledger.undecodable_stored_bytes:,} of {ledger.stored_bytes:,} bytes of files as stored{whole}"
    if ledger.skipped_bytes:
        yield f"{ledger.skipped_bytes:,} of {ledger.source_bytes:,} bytes of the text that was read"


def short_line_warning(spans: Iterable[dict[str, Any]], paths: set[str], tokens_per_byte: float) -> str:
    """A sentence if most documents are short lines of the files in ``paths``; else empty."""
    spans = list(spans)
    lines = [span for span in spans if span["path"] in paths]
    documents = sum(span["documents"] for span in lines)
    tokens = tokens_per_byte * sum(span["document_bytes"] for span in lines)
    if 2 * documents <= sum(span["documents"] for span in spans) or tokens >= _SHORT_DOCUMENT * documents:
        return ""
    example = max(lines, key=lambda span: int(span["documents"]))["path"]
    return (
        f"documents that are lines average {tokens / documents:.0f} tokens, as in {printable(example)}: a model "
        "forgets at the end of each. For text that continues from line to line set corpus.document to paragraph or file"
    )


def skip_causes(ledger: Ledger, config: CorpusConfig, listing: str = "") -> list[str]:
    """One sentence for each cause of lost text: the files and what to do. The most expensive cause comes first.

    ``listing`` is the command that lists every file.
    """
    groups: dict[tuple[str, bool, str], list[Skip]] = {}
    details: dict[tuple[str, str], str] = {}
    for skip in ledger.skipped:
        if skip.reason not in _HARMLESS:
            # The ledger of a file repeats a detail only if it changes.
            detail = skip.detail or details.get((skip.path, skip.reason), "")
            details[skip.path, skip.reason] = detail
            groups.setdefault((skip.reason, bool(skip.stored), detail), []).append(skip)
    costly = sorted(groups.items(), key=lambda row: -sum(skip.stored or skip.length or 1 for skip in row[1]))
    found = [_cause(*key, skips, config, listing) for key, skips in costly[:_CAUSES]]
    more = len(groups) - len(found)
    return found + [f"{counted(more, 'other cause')}{_listed(listing)}"] * (more > 0) or ["nothing was skipped"]


def _cause(reason: str, is_whole: bool, detail: str, skips: list[Skip], config: CorpusConfig, listing: str) -> str:
    paths, count = list(dict.fromkeys(printable(skip.path) for skip in skips)), f"{len(skips):,}"
    names, is_one = _names(paths, listing), len(skips) == 1
    if reason == "no_text_field":
        instead = f"; they have {detail}: set corpus.text_field" if detail else ""
        if is_whole:
            return f"{names}: no column `{config.text_field}`{instead}"
        return f"{count} {'line has' if is_one else 'lines have'} no key `{config.text_field}` in {names}{instead}"
    if reason == "invalid_utf8" and detail:
        pieces = "piece is not UTF-8 but looks" if is_one else "pieces are not UTF-8 but look"
        return f"{count} {pieces} like {detail} (iconv -f {detail} converts a file), in {names}"
    if what := advice(reason, paths[0], detail):
        others = f"; likewise {_names(paths[1:], listing)}" if len(paths) > 1 else ""
        return f"{counted(len(paths), 'file')}: {paths[0]} is {what}{others}"
    return f"{count} {reason} in {names}"


def _names(paths: list[str], listing: str) -> str:
    more = len(paths) - _NAMES
    return ", ".join(paths[:_NAMES]) + (f" and {counted(more, 'more file')}{_listed(listing)}" if more > 0 else "")


def _listed(listing: str) -> str:
    return f" (`{listing}` lists them)" if listing else ""
