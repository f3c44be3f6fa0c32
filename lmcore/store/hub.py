"""Folders that a setting names: a path, or a name on the Hugging Face hub such as user/name."""

import os
from functools import cache
from pathlib import Path

from lmcore.errors import LMError
from lmcore.store.allowed_paths import check_folder_allowed


def resolve(source: str, setting: str, what: str, patterns: tuple[str, ...], error: type[LMError]) -> Path:
    """The file or folder ``source``; for a hub name a folder of the files that match a pattern, downloaded or cached.

    Messages name ``setting`` and ``what`` it should lead to. Raises ``error`` when there is no such file, folder or
    name, ConfigError when it is outside LM_DATA_ROOTS, and ConnectionError when the hub does not answer.
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
            f"{setting}: {source} is not a file or folder here, and no {what} of that name came from the hub "
            f"({type(cause).__name__})"
        ) from cause


def is_local_path(name: str) -> bool:
    """True for a name that can only be a path. Others, with one slash at most, may be on the hub."""
    return name.startswith((".", "/", "~")) or name.endswith(".model") or name.count("/") > 1


@cache  # all stages of a run get the same revision
def _fetched(name: str, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=list(patterns)))


def is_no_answer(error: BaseException) -> bool:
    """True for a failed connection or a server error; False for a refusal, and where the hub is switched off."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError):
        cause = error.__cause__  # why the hub gave none; it is not in the cache either
        return cause is not None and not isinstance(cause, errors.OfflineModeIsEnabled) and is_no_answer(cause)
    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return not isinstance(error, errors.HFValidationError)
