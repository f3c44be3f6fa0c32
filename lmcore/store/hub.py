"""Folders that a setting names: here on disk, or on the Hugging Face hub by a name like user/name."""

import os
from functools import cache
from pathlib import Path

from lmcore.errors import LMError
from lmcore.store.allowed_paths import check_folder_allowed


def resolve(source: str, setting: str, what: str, patterns: tuple[str, ...], error: type[LMError]) -> Path:
    """The file or folder of ``source``; of a hub name, those files that match a pattern, fetched or from its cache.

    ``setting`` and ``what`` are for messages: which setting gave the source, and what it should lead to. Raises
    ``error`` when there is no such thing, ConfigError when it is outside LM_DATA_ROOTS, and ConnectionError, to be
    tried again, when the hub does not answer.
    """
    path = Path(os.path.expanduser(source))
    if path.exists():
        check_folder_allowed(path, setting)
        return path
    if is_local_path(source):
        raise error(f"{setting}: {source} does not exist (looked in {Path.cwd()})")
    from huggingface_hub import errors

    try:
        return _fetched(source, patterns)
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.HFValidationError, errors.HTTPError) as cause:
        if is_no_answer(cause):
            raise ConnectionError(f"{setting}: the hub did not answer for {source}: {cause}") from cause
        raise error(
            f"{setting}: {source} is no file or folder here, and no {what} of that name came from the hub "
            f"({type(cause).__name__})"
        ) from cause


def is_local_path(name: str) -> bool:
    """Whether a name can only be a path. Others with one slash or none may be on the hub."""
    return name.startswith((".", "/", "~")) or name.endswith(".model") or name.count("/") > 1


@cache  # the stages of a run ask more than once, and are to find the same
def _fetched(name: str, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=list(patterns)))


def is_no_answer(error: BaseException) -> bool:
    """True for a broken connection and a server in trouble; False for "no", and where the hub is switched off."""
    from huggingface_hub import errors

    if isinstance(
        error, errors.LocalEntryNotFoundError
    ):  # not in the cache either; its cause says why the hub gave none
        cause = error.__cause__
        return cause is not None and not isinstance(cause, errors.OfflineModeIsEnabled) and is_no_answer(cause)
    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return not isinstance(error, errors.HFValidationError)
