"""Push a version into a repository of the Hugging Face hub.

The files that open the model are pushed, and its card: weights, config, tokenizer, README.md. Receipt and metrics are
not, since the receipt names the files of the corpus. One commit adds them and deletes what an earlier version left, so
that whoever loads the repository meanwhile gets one version. Other files of the repository stay. A new repository is
private; its owner may publish it on the hub.
"""

import os
from fnmatch import fnmatch

from lmcore.errors import ConfigError
from lmcore.registry.registry import record_push
from lmcore.registry.versions import Version, history
from lmcore.runs.initial_model import MODEL_FILES
from lmcore.runs.model_card import CARD
from lmcore.store.artifacts import verify_artifact
from lmcore.store.hub import is_no_answer
from lmcore.tokenizer.tokenizer import TOKENIZER_FILES

_PUBLIC = (CARD, *MODEL_FILES, *TOKENIZER_FILES)


def push(version: Version, repository: str) -> str:
    """Put a version into a repository, user/name, record it in the history, and return the address of the commit.

    The environment gives the token (HF_TOKEN) and the hub (HF_ENDPOINT). Raises ConfigError when the hub refuses,
    StoreError when the version is damaged, and ConnectionError when the hub does not answer.
    """
    if not (token := os.environ.get("HF_TOKEN", "")):
        raise ConfigError(
            f"HF_TOKEN is not set: {version} is pushed with a token that may write to {repository}; for a run on a "
            "server, Prefect's block Secret hf-token will do"
        )
    names = [name for name in verify_artifact(version.folder)["files"] if _is_public(name)]
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, errors

    hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
    try:
        hub.create_repo(repository, private=True, exist_ok=True)
        stale = [name for name in hub.list_repo_files(repository) if _is_public(name) and name not in names]
        changes = [CommitOperationAdd(name, version.folder / name) for name in names]
        changes += [CommitOperationDelete(name) for name in stale]
        commit = hub.create_commit(repository, changes, commit_message=f"{version.model} {version.id}").commit_url
    except (errors.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise _explained(error, version, repository) from error
    record_push(version, repository, commit)
    return str(commit)


def pushed(version: Version, repository: str) -> bool:
    """True if the last push of this model into the repository was this version."""
    pushes = [event for event in history(version.store, version.model) if event["event"] == "pushed"]
    last = [event["version"] for event in pushes if event["repository"] == repository][-1:]
    return last == [version.id]


def _is_public(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in _PUBLIC)


def _explained(error: BaseException, version: Version, repository: str) -> Exception:
    """The error to raise: what to do, or that the hub did not answer."""
    from huggingface_hub import errors

    cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error  # an upload's own
    reason = str(cause).strip().partition("\n")[0] or type(cause).__name__
    status = cause.response.status_code if isinstance(cause, errors.HfHubHTTPError) else 0
    if status in (401, 403) or isinstance(cause, PermissionError):  # the latter from its xet storage
        return ConfigError(
            f"the hub does not let HF_TOKEN put {version} into {repository} ({status or reason}): give a token that "
            f"may write there, or another repository, and push again (lm push {version} {repository})"
        )
    is_final = isinstance(cause, ValueError | FileNotFoundError | errors.OfflineModeIsEnabled)
    if is_final or (status and not is_no_answer(cause)):
        return ConfigError(f"{version} cannot be pushed to {repository}: {reason}")
    return ConnectionError(f"the hub did not take {version} for {repository}, try again later: {reason}")
