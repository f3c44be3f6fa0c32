"""What was lost from a corpus and why, as sentences for the person who started the run.

One place for errors and warnings, so that a cause reads the same whether the tokenizer is trained or loaded.
"""

from collections import Counter

from lmcore.config import CorpusConfig
from lmcore.finding import Beside
from lmcore.formats import advice
from lmcore.ledger import Ledger, Skip, printable

MUCH = 0.1
"""Share of lost bytes above which a warning is given."""
_SHOWN = 5
_SHORT_DOCUMENT = 50
"""Average tokens in a line, below which a model learns little about longer text."""
_HARMLESS = {"unsettled"}


def warnings(ledger: Ledger, beside: Beside, config: CorpusConfig, documents: int, tokens: int) -> list[str]:
    """What was lost, what lay beside the files that were read, and documents that are very short."""
    found = []
    lost, share = _lost_files(ledger), lost_share(ledger)
    if lost or share > MUCH:
        found.append(f"{_what_was_lost(ledger, lost)}: {causes(ledger, config)}")
    if beside.bytes > ledger.stored_bytes:
        found.append(
            f"{size(beside.bytes)} lie beside the {size(ledger.stored_bytes)} that were read, in files that "
            f"corpus.include does not name: {beside.in_words()}"
        )
    lines = ledger.units.get("line", 0)
    if lines and 2 * lines > sum(ledger.units.values()) and tokens < _SHORT_DOCUMENT * documents:
        found.append(
            f"documents average {tokens / documents:.0f} tokens, since each line of a .txt is one: a model forgets at "
            "its end. For text that goes on from line to line set corpus.document to paragraph or file"
        )
    return found


def lost_share(ledger: Ledger) -> float:
    """The share of the corpus that was lost: stored bytes without text, and text that became no document."""
    stored = ledger.undecodable_stored_bytes / max(1, ledger.stored_bytes)
    return stored + (1 - stored) * ledger.skipped_bytes / max(1, ledger.source_bytes)


def _lost_files(ledger: Ledger) -> set[str]:
    """Files that were skipped as a whole, except .json: JSON other than JSON lines is common beside text."""
    return {
        s.path for s in ledger.skipped if s.stored and not (s.path.lower().endswith(".json") or s.reason in _HARMLESS)
    }


def _what_was_lost(ledger: Ledger, lost: set[str]) -> str:
    files = f", {len(lost):,} whole {'file' if len(lost) == 1 else 'files'} among them" if lost else ""
    return f"{lost_share(ledger):.1%} of {size(ledger.stored_bytes)} could not be used{files}"


def causes(ledger: Ledger, config: CorpusConfig) -> str:
    """The reasons of the skips, those that cost most first, each with the files it stands in and what to do."""
    weights: Counter[str] = Counter()
    for skip in ledger.skipped:
        if skip.reason not in _HARMLESS:
            weights[skip.reason] += skip.stored or skip.length or 1
    parts = [
        _cause([s for s in ledger.skipped if s.reason == reason], config) for reason, _ in weights.most_common(_SHOWN)
    ]
    more = len(weights) - len(parts)
    return "; ".join(parts + [f"and {more} other reasons"] * (more > 0)) or "nothing was skipped"


def _cause(skips: list[Skip], config: CorpusConfig) -> str:
    reason = skips[0].reason
    paths = list(dict.fromkeys(printable(skip.path) for skip in skips))
    detail = next((skip.detail for skip in skips if skip.detail), "")
    others = f" (and {len(paths) - 1:,} more: {_names(paths[1:])})" if len(paths) > 1 else ""
    where = f"in {_names(paths)}"
    if reason == "no_text_field" and skips[0].stored:
        return f"{_names(paths)}: no column `{config.text_field}`{_instead(detail)}"
    if reason == "no_text_field":
        return f"{len(skips):,} lines have no key `{config.text_field}` {where}{_instead(detail)}"
    if reason == "invalid_utf8" and detail:
        return f"{len(skips):,} pieces {where} are not UTF-8 but look like {detail} (iconv -f {detail} converts a file)"
    if what := advice(reason, paths[0], detail):
        return f"{paths[0]} is {what}{others}"
    return f"{len(skips):,} {reason} {where}"


def _instead(detail: str) -> str:
    return f"; they have {detail}: set corpus.text_field" if detail else ""


def _names(paths: list[str]) -> str:
    more = f" and {len(paths) - 3:,} more files" if len(paths) > 3 else ""
    return ", ".join(paths[:3]) + more


def size(count: float) -> str:
    """Bytes for a person: 38.9 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
