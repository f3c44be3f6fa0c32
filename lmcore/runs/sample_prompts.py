"""Default prompts for the samples of a run: the beginnings of validation documents."""

from lmcore.dataset.stream import TokenStream
from lmcore.runs.run import Run
from lmcore.settings.config import SampleConfig

_PROMPTS, _DOCUMENTS, _TOKENS = 3, 50, 5
"""Number of prompts, documents that are tried for them, and most tokens of a prompt."""


def with_prompts(settings: SampleConfig, run: Run) -> SampleConfig:
    """``settings``; if they name no prompts, with the beginnings of a run's validation documents. Always the same."""
    return settings if settings.prompts else settings.model_copy(update={"prompts": _beginnings(run)})


def _beginnings(run: Run) -> list[str]:
    """Beginnings of different documents, in the order of their hashes. One empty prompt if no document has text."""
    tokenizer = run.tokenizer()
    documents = TokenStream(run.dataset_folder, "validation").first_by_hash(_DOCUMENTS)
    # Half of a short document, so that the model has something to write.
    texts = [tokenizer.decode(ids[: min(_TOKENS, len(ids) // 2)].tolist()) for ids in documents]
    # The beginning of a line, without half a character or a space at its end.
    lines = [text.partition("\n")[0].rstrip("\ufffd").rstrip() for text in texts]
    return list(dict.fromkeys(filter(None, lines)))[:_PROMPTS] or [""]
