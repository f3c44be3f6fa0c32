"""URLs among the paths of the settings, and their parts."""

import os
import re
from urllib.parse import unquote

WEB_SCHEMES = ("http", "https")
ARROW_SCHEMES = ("s3", "gs", "gcs")
"""pyarrow.fs opens these. Their URLs may end in options of the file system: ?region=x&scheme=http."""
OPTIONS = re.compile(r"\?(?=[a-z_]+=)[^?]*$")
"""The options. Other question marks belong to a name, or match a character."""
_QUERY = re.compile(r"[?#].*", re.DOTALL)


def is_url(path: str) -> bool:
    """True for a URL, False for a local path."""
    return "://" in path


def split_url(url: str) -> tuple[str, str, str]:
    """Scheme, path in the file system, and the options or the query with their question mark."""
    scheme, _, rest = url.partition("://")
    pattern = _QUERY if scheme in WEB_SCHEMES else OPTIONS if scheme in ARROW_SCHEMES else None
    found = pattern.search(rest) if pattern else None
    end = found.start() if found else len(rest)
    return scheme, rest[:end], rest[end:]


def file_name(path: str) -> str:
    """The last part of a path or URL. It decides how the file is read."""
    if not is_url(path):
        return os.path.basename(path)
    scheme, inside, _ = split_url(path)
    name = inside.rpartition("/")[2]
    return unquote(name) if scheme in WEB_SCHEMES else name
