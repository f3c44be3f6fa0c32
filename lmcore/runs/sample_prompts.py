"""Prompts for the samples of a run whose settings name none: how documents that it was not trained on begin."""

from lmcore.dataset.stream import TokenStream
from lmcore.runs.run import Run
from lmcore.settings.config import SampleConfig

_PROMPTS, _DOCUMENTS, _TOKENS = 3, 50, 5
"""So many prompts, from the first of so many documents that begin with some text, of so many tokens at most."""


def with_prompts(settings: SampleConfig, run: Run) -> SampleConfig:
    """``settings`` with their prompts, or with the beginnings of a run's validation documents; the same each time."""
    return settings if settings.prompts else settings.model_copy(update={"prompts": _beginnings(run)})


def _beginnings(run: Run) -> list[str]:
    """Of different documents, by their hashes; an empty one, which begins any document, where no document has text."""
    tokenizer = run.tokenizer()
    documents = TokenStream(run.dataset_folder, "validation").first_by_hash(_DOCUMENTS)
    # Half of a short document, so that something is left to be written.
    texts = [tokenizer.decode(ids[: min(_TOKENS, len(ids) // 2)].tolist()) for ids in documents]
    # A line's beginning without half a character, or a space, at its end.
    lines = [text.partition("\n")[0].rstrip("\ufffd").rstrip() for text in texts]
    return list(dict.fromkeys(filter(None, lines)))[:_PROMPTS] or [""]
