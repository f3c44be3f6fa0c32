"""python -m deployments VERB: what production needs.

    deploy               put all deployments on the Prefect server for workers, and what they rely on; what was
                         set on the server stays. May be repeated
    setup                only what they rely on: work pool, limits, automations
    doctor [--mend]      look at everything that a run needs; exit status 1 if anything is wrong

The server is the one that Prefect's own settings name (PREFECT_API_URL, PREFECT_API_AUTH_STRING); the store is that of
LM_STORE, else ./store.
"""

import argparse
import sys

import flows  # sets the defaults that must stand before Prefect is imported  # noqa: F401
from lmcore import cli
from lmcore.config import default_store


def main() -> None:
    verbs = {"deploy": _deploy, "setup": _setup, "doctor": _doctor}
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    if verb not in verbs:
        print(__doc__, file=sys.stdout if verb in ("-h", "--help") else sys.stderr)
        sys.exit(0 if verb in ("-h", "--help") else 2)
    cli.main(lambda: verbs[verb](sys.argv[2:]))


def _setup(arguments: list[str]) -> None:
    argparse.ArgumentParser(prog="python -m deployments setup", allow_abbrev=False).parse_args(arguments)

    from deployments.deploy import set_up

    set_up()
    print("work pool, limits and automations are there")


def _deploy(arguments: list[str]) -> None:
    argparse.ArgumentParser(prog="python -m deployments deploy", allow_abbrev=False).parse_args(arguments)

    from deployments.deploy import deploy

    for line in deploy():
        print(line, flush=True)


def _doctor(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m deployments doctor", allow_abbrev=False)
    parser.add_argument("--mend", action="store_true", help="mend what can be mended without touching what is in use")
    mend = parser.parse_args(arguments).mend

    from deployments.doctor import findings, line

    wrong = False
    for finding in findings(default_store().absolute(), mend):
        print(line(finding), flush=True)
        wrong = wrong or bool(finding.remedy)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
