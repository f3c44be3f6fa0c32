"""The verbs of python -m lmcore that take things out of a store: their flags, and what they print."""

import argparse
import re
import sys

from lmcore.cli import count, verb_parser
from lmcore.markdown import columns
from lmcore.plain_json import to_json

_DOCUMENT = "a hash of 16 hexadecimal digits, or a file, cut into documents as each dataset was"


def forget_document(arguments: list[str]) -> None:
    parser = verb_parser("forget", document=_DOCUMENT)
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    options = parser.parse_args(arguments)
    from lmcore.forget import forget

    done = forget(options.store, options.document, options.dry_run)
    print(columns(done.rows()))
    print(f"{done.summary} in {options.store}", file=sys.stderr)
    print(to_json({**done.model_dump(mode="json"), "dry_run": options.dry_run}))
    sys.exit(int(bool(done.absent)))


def collect_garbage(arguments: list[str]) -> None:
    parser = verb_parser("gc")
    parser.add_argument(
        "--keep-runs", type=count, default=3, help="newest runs to keep with all they need (default: 3)"
    )
    parser.add_argument("--grace-hours", type=_hours, default=24.0, help="younger things are kept (default: 24)")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    options = parser.parse_args(arguments)
    from lmcore.garbage import collect

    grace_seconds = options.grace_hours * 3600
    gone = collect(options.store, options.keep_runs, grace_seconds, options.dry_run)
    print(columns(gone.rows()))
    print(to_json({"removed": len(gone.removed), "bytes": gone.bytes, "dry_run": options.dry_run}))


def _hours(text: str) -> float:
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):  # with nan nothing would be young
        raise argparse.ArgumentTypeError(f"{text!r} is no number of hours")
    return float(text)
