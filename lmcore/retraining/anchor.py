"""The anchor of a model: the held-out text that its champions brought, with a reference score of each document.

A challenger may lose a little against the champion at each promotion. The anchor bounds the sum of these losses. Its
founding part is the held-out text of the first champion, its joined part the held-out text that came with later ones.
The reference of a document is the score of the first champion that came with it. The reference of a part moves to a
challenger only if that is proved better on the whole part, or because a person says so. If it moved to the best version
so far, luck would raise it without end; if it never moved, half a year's gain could be lost unseen.

    models/<name>/v0003/  anchor.arrow   the anchor while v0003 is the champion: nats are those of the references
                          scores.arrow   the scores of v0003 on the same documents

Both are ``DocumentScores`` with the groups founding and joined. A rollback brings back the anchor of that version. The
texts are in the datasets of the versions, where ``forget`` removes them; a document whose text is gone does not count.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from lmcore.registry.versions import Version, history
from lmcore.runs.scores import DocumentScores

ANCHOR, SCORES = "anchor.arrow", "scores.arrow"
FOUNDING, JOINED = PARTS = ("founding", "joined")


def reference(best: Version, on_old_text: DocumentScores) -> DocumentScores:
    """The anchor in force. A champion without one, of an older version of this program, founds it.

    ``on_old_text`` are the champion's scores of the validation documents of a challenger's run.
    """
    path = best.folder / (SCORES if _is_set_by_a_person(best) else ANCHOR)
    if path.exists():
        return DocumentScores.load(path)
    return _part(on_old_text.taken(np.flatnonzero(on_old_text.groups == "old")), FOUNDING)


def next_anchor(
    anchor: DocumentScores | None, own: DocumentScores, challenger: DocumentScores, moved: list[str]
) -> tuple[DocumentScores, DocumentScores]:
    """The anchor after a promotion of the challenger, and its own scores on it.

    ``own`` are the challenger's scores of those documents of ``anchor`` that have a text, ``challenger`` those of its
    validation documents, and ``moved`` the parts on which it becomes the reference. None: the first model.
    """
    if anchor is None:
        founded = _part(challenger, FOUNDING)
        return founded, founded
    moves = np.isin(anchor.groups, moved) & np.isin(anchor.hashes, own.hashes)
    kept = anchor.taken(np.flatnonzero(~moves)).joined(own.taken(np.flatnonzero(np.isin(own.groups, moved))))
    came = _part(challenger.taken(np.flatnonzero(~np.isin(challenger.hashes, anchor.hashes))), JOINED)
    return replace(kept.joined(came), weights=challenger.weights), own.joined(came)


def aligned(anchor: DocumentScores, scores: DocumentScores) -> DocumentScores:
    """The rows of ``scores`` for the documents of an anchor, in its order and with its sources and parts.

    Documents without a score are left out.
    """
    hashes, first = np.unique(scores.hashes, return_index=True)
    there = np.isin(anchor.hashes, hashes)
    rows = first[np.searchsorted(hashes, anchor.hashes[there])]
    return replace(scores.taken(rows), sources=anchor.sources[there], groups=anchor.groups[there])


def own_scores_path(folder: Path) -> Path:
    """Where the folder of a challenger's run has its scores of the champion's anchor."""
    return folder / "scores" / "on-anchor.arrow"


def _part(scores: DocumentScores, part: str) -> DocumentScores:
    """Each text once, as a part of an anchor."""
    once = scores.taken(np.unique(scores.hashes, return_index=True)[1])
    return replace(once, groups=np.full(len(once), part))


def _is_set_by_a_person(version: Version) -> bool:
    events = history(version.store, version.model)
    return any(event["version"] == version.id and event.get("reference") for event in events)
