"""The places where text, weights and stores may be: anywhere, or only in LM_DATA_ROOTS.

The environment variable holds absolute folders and URLs, separated as in PATH. It is for machines that run what others
ask for: a form or a flag then reaches no other place. A path is checked after all links are followed. So settings are
checked once at the start, and a path again where it may have become a link: where a corpus lists or opens a file, and
where a model, a dataset or a store is opened. Names on the Hugging Face hub are allowed (HF_HUB_OFFLINE=1 forbids
them), and so is Python's standard library as text, without the packages that are installed beside it.
"""

import os
import re
import sysconfig
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from lmcore.errors import ConfigError
from lmcore.settings.section import Section, locations
from lmcore.settings.urls import OPTIONS, is_url

VARIABLE = "LM_DATA_ROOTS"

_SEPARATOR = re.compile(rf"{re.escape(os.pathsep)}(?=/(?!/)|~|[A-Za-z][A-Za-z0-9+.-]*:|$)")
"""A separator is followed by a root or by the end. So a colon inside a URL does not separate."""
_STEP = re.compile(r"[/\\?#;]")
"""What may end a name in a URL: one server or another takes each of them for an end."""
_PORTS = {"http": ":80", "https": ":443"}
_WILDCARD = re.compile(r"[*?\[]")


def check_allowed(path: str | Path, setting: str) -> None:
    """Raise ConfigError when LM_DATA_ROOTS is set and ``path``, a local path or a URL, leads out of it.

    Also raise it for a path that holds the character NUL.
    """
    text = str(path)
    if "\0" in text:
        raise ConfigError(f"{setting}: {text!r} holds the character NUL, which no path has: type it again")
    if not (given := os.environ.get(VARIABLE, "")):
        return
    folders, urls = _roots(given)
    if is_url(text):
        if not any(_is_below(text, url) for url in urls):
            raise _outside(setting, text, text, given)
        return
    real = Path(os.path.realpath(os.path.expanduser(text)))
    is_library = setting.startswith("corpus") and _is_standard_library(real)
    if not is_library and not any(real.is_relative_to(folder) for folder in folders):
        raise _outside(setting, text, str(real), given)


def check_folder_allowed(folder: Path, setting: str) -> None:
    """``check_allowed`` for a path and, if it is a folder, for each entry in it."""
    check_allowed(folder, setting)
    if os.environ.get(VARIABLE) and folder.is_dir():
        for path in folder.iterdir():
            check_allowed(path, setting)


def check_settings_allowed(config: Section) -> None:
    """``check_allowed`` for each path in the settings. A pattern is checked by the folder before its first wildcard."""
    for setting, text in locations(config):
        path = text if is_url(text) else _beginning(text)
        if is_url(path) or path.startswith((".", "/", "~")) or os.path.exists(path):
            check_allowed(path, setting)


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
    """(folders with all links followed, URLs). Raises ConfigError for a root that is neither."""
    folders, urls = [], []
    for root in filter(None, _SEPARATOR.split(given)):
        if is_url(root) and not root.startswith(("/", "file:")):
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
    """Compare whole names, so that s3://texts-evil is not below s3://texts, and the options of a server."""
    found, wanted = OPTIONS.search(url), OPTIONS.search(root)
    is_web = url.startswith(("http://", "https://"))
    if not is_web and (found[0] if found else "") != (wanted[0] if wanted else ""):
        return False
    names, above = _names(url), _names(root)
    return _is_plain(url) and names[: len(above)] == above


def _names(url: str) -> list[str]:
    """The parts of a URL between its slashes; those of a web address as one server understands them."""
    scheme, _, rest = OPTIONS.sub("", url).partition("://")
    names = rest.rstrip("/").split("/") if rest else []
    if names and (port := _PORTS.get(scheme)):
        names = [names[0].lower().removesuffix(port), *map(unquote, names[1:])]
    return [scheme, *names]


def _is_plain(url: str) -> bool:
    """Whether no server can read a step upwards out of the URL, however often it decodes it."""
    while (decoded := unquote(url)) != url:
        url = decoded
    return "::" not in url and "\0" not in url and not {"..", "."} & {*_STEP.split(url)}


def _outside(setting: str, path: str, real: str, given: str) -> ConfigError:
    leads = "" if real == path else f" leads to {real}, which"
    return ConfigError(
        f"{setting}: {path}{leads} is outside the places that this machine allows ({VARIABLE}={given}): "
        "give a place inside them, or ask whoever runs the machine to add one"
    )
