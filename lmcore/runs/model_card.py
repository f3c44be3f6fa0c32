"""The model card: README.md of an export and of a version, with licence, languages and facts.

The Hugging Face hub reads the header. Where no licence is set, the card says so.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lmcore.markdown import table
from lmcore.settings.config import RunConfig

CARD = "README.md"

Facts = Iterable[tuple[str, str]]

_USE = """```python
from transformers import pipeline

write = pipeline("text-generation", "path/to/this/folder")
print(write("")[0]["generated_text"])
```"""


def model_card(title: str, config: RunConfig, about: str, facts: Facts, sections: Iterable[str] = ()) -> str:
    """The card as Markdown. ``about`` is a sentence on what the model is; ``sections`` follow the table of facts."""
    card = config.card
    header: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "model_name": title}
    header |= {"license": card.licence} if card.licence else {}
    header |= {"language": card.languages} if card.languages else {}
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in header.items()]
    stated = [
        ("licence", card.licence or "not stated: set card.licence before the model is passed on"),
        ("language", ", ".join(card.languages) or "not stated"),
    ]
    parts = ["\n".join(["---", *lines, "---"]), f"# {title}", about, table(("", ""), [*stated, *facts]), _USE]
    if form := config.corpus.normalize:
        parts.append(
            f"Trained on text in Unicode normalization {form}. The tokenizer here normalizes by itself in transformers "
            f"(one that is only a spiece.model: NFKC, not NFC). Normalize text to {form} before you give it to another "
            "program, such as llama.cpp."
        )
    return "\n\n".join([*parts, *sections, "The model knows only the text it was trained on."]) + "\n"


def training_facts(training: Mapping[str, Any], evaluation: Mapping[str, Any], config: RunConfig) -> Facts:
    """Names and values of a training and its evaluation, from their records."""
    yield "parameters", f"{training['parameters']:,}"
    yield "trained on", f"{training['tokens']:,} tokens in {training['last_step']:,} steps"
    yield "training loss", f"{training['train_loss']:.4f} nats per token"
    yield "validation loss", f"{evaluation['nats_per_token']:.4f} nats per token"
    yield "perplexity", f"{evaluation['perplexity']:,.2f}"
    yield "bits per byte", f"{evaluation['bits_per_byte']:.4f}"
    yield "validation text", f"{evaluation['documents']:,} documents, {evaluation['text_bytes']:,} bytes"
    yield "longest context", f"{config.dataset.block_size} tokens"


def public_name(path: str) -> str:
    """A place in the store or on a hub. A folder elsewhere is its name only, because the card may be published."""
    return Path(path).name if Path(path).is_absolute() else path
