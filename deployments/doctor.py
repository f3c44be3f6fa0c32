"""Looks at everything that a run needs, says what is wrong and how to mend it, and mends what is safe to mend."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_HOME

from deployments import machine, server
from deployments.database import unreadable_rows
from deployments.finding import Check, Finding

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"


def findings(store: Path, mend: bool) -> Iterator[Finding]:
    """One a check. With ``mend``, what can be mended is, and then looked at again."""
    home: Path = PREFECT_HOME.value()
    of_machine: list[Check] = [
        partial(machine.versions, CONSTRAINTS),
        partial(machine.store, store),
        partial(machine.half_written, store),
        partial(machine.disk, store),
        machine.gpu,
        lambda: machine.locks(machine.lock_files(store, home)),
        unreadable_rows,
    ]
    for check in of_machine:
        yield _look(check, mend)
    answer = server.reachable()
    yield answer
    refused: list[str] = []
    if not answer.remedy:
        with get_client(sync_client=True) as client:
            for check in server.checks(client):
                try:
                    yield _look(check, mend)
                except PrefectHTTPStatusError as error:
                    refused.append(f"{error.response.status_code} to {error.request.url.path}")
    if refused:
        fact = f"it answers {', '.join(dict.fromkeys(refused))}"
        yield Finding("server", fact, "see the line of the database above, else the server's own output")


def _look(check: Check, mend: bool) -> Finding:
    finding = check()
    if mend and finding.mend:
        finding.mend()
        return check()
    return finding


def line(finding: Finding) -> str:
    """For a person."""
    if not finding.remedy:
        return f"ok     {finding.name}: {finding.fact}"
    return f"WRONG  {finding.name}: {finding.fact}\n       to mend it: {finding.remedy}"
