"""All checks of the doctor, in order: first this machine, then the Prefect server."""

from collections.abc import Iterator
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_HOME

from deployments.doctor import Check, Finding, machine, server
from deployments.doctor.database_rows import unreadable_rows

_CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


def findings(store: Path, fix: bool) -> Iterator[Finding]:
    """One finding for each check. With ``fix``, it fixes what it can and checks again."""
    home: Path = PREFECT_HOME.value()
    of_machine: list[Check] = [
        lambda: machine.versions(_CONSTRAINTS),
        lambda: machine.store(store),
        lambda: machine.half_written(store),
        lambda: machine.disk(store),
        machine.gpu,
        lambda: machine.locks(machine.lock_files(store, home)),
        unreadable_rows,
    ]
    for check in of_machine:
        yield _check(check, fix)
    answer = server.reachable()
    yield answer
    refused: list[str] = []
    if not answer.remedy:
        with get_client(sync_client=True) as client:
            for check in server.checks(client):
                try:
                    yield _check(check, fix)
                except PrefectHTTPStatusError as error:
                    refused.append(f"{error.response.status_code} to {error.request.url.path}")
    if refused:
        fact = f"it answers {', '.join(dict.fromkeys(refused))}"
        yield Finding("server", fact, "see the line of the database above, else the server's own output")


def _check(check: Check, fix: bool) -> Finding:
    finding = check()
    if fix and finding.fix:
        finding.fix()
        return check()
    return finding
