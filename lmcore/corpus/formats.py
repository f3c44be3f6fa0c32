"""The formats of files: what a name says, and how files that are not read can be converted.

The suffix gives the kind. The first bytes overrule it (detection.py). To add a format, add its suffix here and in
``TEXT_PATTERNS`` (settings/config.py). Then say how its text is cut (``unit_of`` in text_range.py) and parsed
(documents.py), or for a table how it is read (readers.py).
"""

import shlex
from dataclasses import dataclass

from lmcore.settings.config import DEFAULT_SOURCE
from lmcore.settings.urls import file_name

_KINDS = {"parquet": "parquet", "arrow": "arrow", "feather": "arrow", "txt": "txt"}
_KINDS |= dict.fromkeys(("jsonl", "ndjson", "jsonlines", "json"), "jsonl")
PLAIN_TEXT = {"txt": "lines", "paragraphs": "paragraphs", "text": "whole files"}
"""What a document of each kind of plain text is if corpus.document is auto."""

_JSON_LINES = "one JSON object a line is needed"
_ADVICE = {
    "git_lfs_pointer": "a pointer of git-lfs, not the file itself: run `git lfs pull` in its folder",
    "git_annex_pointer": "a pointer of git-annex, not the file itself: run `git annex get` in its folder",
    "zip": "a zip archive: unpack it with `unzip {path}`",
    "tar": "a tar archive: unpack it with `tar xf {path}`",
    "docx": "a Word document: convert it with `pandoc -t plain --wrap=none {path} -o {stem}.txt`",
    "odt": "an OpenDocument text: convert it with `pandoc -t plain --wrap=none {path} -o {stem}.txt`",
    "epub": "an e-book: convert it with `pandoc -t plain --wrap=none {path} -o {stem}.txt`",
    "rtf": "a rich text document: convert it with `pandoc -t plain --wrap=none {path} -o {stem}.txt`",
    "office": "an office document: save it as plain text in UTF-8, or as CSV and convert that to JSON lines",
    "pdf": "a PDF: convert it with `pdftotext {path} {stem}.txt`",
    "html": "a web page: convert it with `pandoc -f html -t plain --wrap=none {path} -o {stem}.txt`",
    "warc": "a WARC archive of web pages: extract their text first, for example with trafilatura",
    "csv": "a table in CSV: convert it to JSON lines with `{csv}`",
    "tsv": "a table in TSV: convert it to JSON lines with `{csv}`",
    "gzip": "compressed with gzip: rename it to {path}.gz",
    "bzip2": "compressed with bzip2: rename it to {path}.bz2",
    "xz": "compressed with xz: rename it to {path}.xz",
    "zstd": "compressed with zstd: rename it to {path}.zst",
    "parquet": "a Parquet table: rename it to {stem}.parquet",
    "arrow": "an Arrow table: rename it to {stem}.arrow",
    "sqlite": "an SQLite database: export its text as JSON lines",
    "picture": "a picture: leave it out with corpus.exclude",
    "json_array": f"one JSON array, and {_JSON_LINES}: convert it with `jq -c '.[]' {{path}} > {{stem}}.jsonl`",
    "pretty_json": f"JSON over several lines, and {_JSON_LINES}: convert it with `jq -c . {{path}} > {{stem}}.jsonl`",
    "no_json_lines": f"JSON, and {_JSON_LINES}",
    "other_encoding": "{detail} text, not UTF-8: convert it with "
    "`{unpack}iconv -f {detail} -t UTF-8 {input}> {stem}.utf8.txt`",
    "nul_bytes": "text that contains NUL bytes: remove them with `{unpack}tr -d '\\000' {stdin}> {stem}.clean.txt`",
    "escape_sequences": "full of a terminal's escape sequences: remove them with "
    "`{unpack}sed 's/\\x1b\\[[0-9;?]*[A-Za-z]//g' {input}> {stem}.clean.txt`",
    "no_text": "neither UTF-8 text nor text in another encoding that is known here: leave it out with corpus.exclude",
    "empty_file": "empty: copy it again, or leave it out with corpus.exclude",
    "empty_table": "a table without rows",
    "damaged_table": "a damaged table: copy it again, or leave it out with corpus.exclude",
    "damaged_archive": "damaged, or not compressed as its name says: copy it again",
    "truncated_archive": "cut short: copy it again",
    "name_is_no_utf8": "a name in another encoding than UTF-8: rename it (convmv -f cp932 -t utf-8 does so)",
    "path_too_long": "too long a path: move it up",
}
_UNPACKERS = {"gz": "gzip -dc", "bz2": "bzip2 -dc", "xz": "xz -dc", "zst": "zstd -dc --long=31"}


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of the corpus and the hash of its stored bytes."""

    path: str
    stored_bytes: int
    digest: str
    source: str = DEFAULT_SOURCE
    detected_kind: str = ""
    """The kind that the content shows; empty if the content was not examined."""

    @property
    def name(self) -> str:
        return file_name(self.path).lower()

    @property
    def compression(self) -> str:
        return compression_of(self.name)

    @property
    def kind(self) -> str:
        """How the unpacked bytes are read: jsonl, parquet, arrow, txt, paragraphs or text."""
        return self.detected_kind or _KINDS.get(suffix_of(self.name), "text")


def compression_of(name: str) -> str:
    """The compression suffix of a file name; empty for none."""
    suffix = name.rpartition(".")[2]
    return suffix if suffix in _UNPACKERS else ""


def suffix_of(name: str) -> str:
    """The last suffix in lower case, without that of a compression: json for ROWS.JSON.GZ."""
    name = name.lower()
    return name.removesuffix(f".{compression_of(name)}").rpartition(".")[2] if "." in name else ""


def advice(reason: str, path: str, detail: str = "") -> str:
    """What a file is that is skipped for this reason, and what to do; empty for reasons that need no advice."""
    compression = compression_of(path.lower())
    stem = path.removesuffix(f".{compression}") if compression else path
    stem = stem.rpartition(".")[0] or stem if "." in stem.rpartition("/")[2] else stem
    quoted = shlex.quote(path)
    reader = "csv.DictReader(open(sys.argv[1], newline='')" + (", delimiter='\\t')" if reason == "tsv" else ")")
    program = f"import csv, json, sys; [print(json.dumps(row)) for row in {reader}]"
    return _ADVICE.get(reason, "").format(
        path=quoted,
        stem=shlex.quote(stem),
        detail=detail,
        unpack=f"{_UNPACKERS[compression]} {quoted} | " if compression else "",
        input="" if compression else f"{quoted} ",
        stdin="" if compression else f"< {quoted} ",
        csv=f"python3 -c {shlex.quote(program)} {quoted} > {shlex.quote(stem)}.jsonl",
    )
