"""Documents that the settings name by their hashes, to be left out of a dataset."""

import re
from pathlib import Path

from lmcore.config import CorpusConfig
from lmcore.errors import ConfigError

HASH = "[0-9a-fA-F]{16}"


def excluded_hashes(config: CorpusConfig) -> list[int]:
    """What corpus.exclude_documents names, sorted. Raises ConfigError for what is neither hash nor a file of them."""
    found = set()
    for entry in config.exclude_documents:
        for line in [entry] if re.fullmatch(HASH, entry) else _lines(entry):
            if not re.fullmatch(HASH, line):
                raise ConfigError(
                    f"corpus.exclude_documents: {line[:40]!r} in {entry} is no hash of 16 hexadecimal digits"
                )
            found.add(int(line, 16))
    return sorted(found)


def _lines(entry: str) -> list[str]:
    try:
        lines = Path(entry).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"corpus.exclude_documents: {entry} is neither a document hash (16 hexadecimal digits) nor a file of them, "
            f"one a line: {error}"
        ) from None
    return [line.strip() for line in lines if line.strip()]
