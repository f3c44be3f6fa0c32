"""Where text and weights may come from, and where a store may be: anywhere, or in LM_DATA_ROOTS.

The environment variable holds absolute folders and URLs, separated as in PATH. It is meant for machines that run what
others ask for: a form or a flag then reaches nothing else there. A path counts as what it leads to once every link is
followed. A name on the Hugging Face hub is no path and stays free; HF_HUB_OFFLINE=1 closes that way. So does the
standard library as text, which is everybody's; what is installed beside it is not.
"""

import os
import re
import sysconfig
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from lmcore.errors import ConfigError
from lmcore.settings.config import STANDARD_LIBRARY, RunConfig

VARIABLE = "LM_DATA_ROOTS"

_SEPARATOR = re.compile(rf"{re.escape(os.pathsep)}(?=/(?!/)|~|[A-Za-z][A-Za-z0-9+.-]*:|$)")
"""Not the colon within a URL: what follows is a new root, or nothing."""
_OPTIONS = re.compile(r"\?(?=[a-z_]+=)[^?]*$")
_WILDCARD = re.compile(r"[*?\[]")


def check_allowed(path: str | Path, setting: str) -> None:
    """Raise ConfigError when there are roots and ``path``, a local path or a URL, leads to a place outside them."""
    if not (given := os.environ.get(VARIABLE, "")):
        return
    folders, urls = _roots(given)
    text = str(path)
    if "://" in text:
        if not any(_is_below(text, url) for url in urls):
            raise _outside(setting, text, text, given)
        return
    real = Path(os.path.realpath(os.path.expanduser(text)))
    is_library = setting.startswith("corpus") and _is_standard_library(real)
    if not is_library and not any(real.is_relative_to(folder) for folder in folders):
        raise _outside(setting, text, str(real), given)


def check_folder_allowed(folder: Path, setting: str) -> None:
    """``check_allowed``, also what lies directly in the folder, if it is one."""
    check_allowed(folder, setting)
    if os.environ.get(VARIABLE) and folder.is_dir():
        for path in folder.iterdir():
            check_allowed(path, setting)


def check_settings_allowed(config: RunConfig) -> None:
    """``check_allowed`` every place that the settings name; of a pattern, the folder where it begins."""
    places = {
        "corpus.paths": config.corpus.paths,
        **{f"corpus.sources.{name}": paths for name, paths in config.corpus.sources.items()},
        "corpus.validation_paths": config.corpus.validation_paths,
        "store": [str(config.store)],
    }
    for setting, paths in places.items():
        for path in paths:
            if path != STANDARD_LIBRARY:  # corpus.scan knows where that is
                check_allowed(path if "://" in path else _beginning(path), setting)
    for setting, name in (("tokenizer.source", config.tokenizer.source), ("train.init_from", config.train.init_from)):
        if name and (os.path.exists(os.path.expanduser(name)) or "://" in name or name.startswith((".", "/", "~"))):
            check_allowed(name, setting)


def _beginning(path: str) -> str:
    wildcard = _WILDCARD.search(path)
    if wildcard is None or os.path.exists(path):
        return path
    return os.path.dirname(path[: wildcard.start()]) or "."


def _is_standard_library(real: Path) -> bool:
    library = Path(os.path.realpath(sysconfig.get_path("stdlib")))
    return real.is_relative_to(library) and not {"site-packages", "dist-packages"} & {*real.parts}


@lru_cache(maxsize=8)
def _roots(given: str) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Folders, their links followed, and URLs. Raises ConfigError for what is neither."""
    folders, urls = [], []
    for root in filter(None, _SEPARATOR.split(given)):
        if "://" in root and not root.startswith(("/", "file:")):
            urls.append(root)
        elif root.startswith(("/", "~")):
            folders.append(Path(os.path.realpath(os.path.expanduser(root))))
        else:
            raise ConfigError(
                f"{VARIABLE}: {root!r} is neither an absolute folder nor the beginning of a URL "
                f"(s3://bucket/texts): write {VARIABLE}=/first/folder{os.pathsep}/second/folder"
            )
    return tuple(folders), tuple(urls)


def _is_below(url: str, root: str) -> bool:
    """Whole names are compared, so that s3://texts-evil is not below s3://texts; so are a server's options."""
    found, wanted = _OPTIONS.search(url), _OPTIONS.search(root)
    is_web = url.startswith(("http://", "https://"))
    if not is_web and (found[0] if found else "") != (wanted[0] if wanted else ""):
        return False
    names = _OPTIONS.sub("", url).split("/")
    above = _OPTIONS.sub("", root).rstrip("/").split("/")
    is_plain = "::" not in url and not {"..", "."} & {unquote(name) for name in names}
    return is_plain and names[: len(above)] == above


def _outside(setting: str, path: str, real: str, given: str) -> ConfigError:
    leads = "" if real == path else f" leads to {real}, which"
    return ConfigError(
        f"{setting}: {path}{leads} is outside the places that this machine allows ({VARIABLE}={given}): "
        "give a place inside them, or ask whoever runs the machine to add one"
    )
