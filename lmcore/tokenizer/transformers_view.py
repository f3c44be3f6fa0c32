"""A tokenizer in plain transformers: saved, opened again, and compared with our ids.

A folder is saved without a template and with ``split_special_tokens``: transformers adds no id that our shards lack,
and text that spells a control token stays text. ``split_special_tokens=False`` gives control ids in a prompt.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lmcore.errors import TokenizerError

ROLES = ("pad_token", "unk_token", "bos_token", "eos_token", "cls_token", "sep_token", "mask_token")
"""transformers' names of common control tokens. The first six are those of a trained tokenizer, in order."""

_PROBES = [
    "a  b",
    " lead",
    "\n\ttab\r\n",
    "\u3000\uff21\uff22 \u6f22\u5b57\u304b\u306a",
    "don't , stop .",
    "\U0001f468\u200d\U0001f469 \U0001f600",
    "\u2581",
    "\u0e33\u0000e\u0301",
]


def open_in_transformers(folder: Path) -> Any:
    """The tokenizer that transformers opens in a folder. Raises TokenizerError if it opens none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        raise TokenizerError(f"{folder} holds no tokenizer that transformers opens: {error}") from error


def save_fast(fast: Any, folder: Path, roles: dict[str, str], extra: list[str], **settings: Any) -> None:
    """Save a ``tokenizers.Tokenizer``; ``roles`` and ``extra`` are its control tokens."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=fast,
        extra_special_tokens=extra,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        **roles,
        **settings,
    ).save_pretrained(folder)


def save_loaded(tokenizer: Any, folder: Path) -> None:
    """Save a fast transformers tokenizer of any class without its template, truncation and padding.

    It is saved as a plain tokenizer.json, because transformers may rebuild its own class differently.
    """
    fast = tokenizer.backend_tokenizer
    fast.post_processor = None
    fast.no_truncation()
    fast.no_padding()
    roles = {role: token for role, token in tokenizer.special_tokens_map.items() if role in ROLES}
    extra = [token for token in tokenizer.all_special_tokens if token not in roles.values()]
    save_fast(fast, folder, roles, extra, chat_template=tokenizer.chat_template)


def check_in_transformers(folder: Path, encode: Callable[[str], list[int]], texts: Iterable[str]) -> None:
    """Compare plain transformers with ``encode`` on texts, difficult strings and control tokens.

    Raises TokenizerError if the ids differ: a model would later get other ids than in training.
    """
    theirs = open_in_transformers(folder)
    for text in [*texts, *_PROBES, *(f"a{token} b" for token in theirs.all_special_tokens)]:
        ids, found = encode(text), theirs.encode(text)
        if found != ids:
            raise TokenizerError(
                f"transformers gives other ids than this tokenizer for {text[:60]!r}: {found[:8]} instead of "
                f"{ids[:8]}. It cannot be used through transformers"
            )
