"""python -m deployments deploy: what workers need on the Prefect server, the deployments included."""

from collections.abc import Iterator

from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL

from deployments import work_pool
from deployments.automations import create_automations
from deployments.declaration import declared
from deployments.limits import create_limits
from deployments.registration import register_all
from lmcore.errors import ConfigError


def set_up() -> str:
    """Work pool, limits and automations, as far as they are missing; the server's address.

    Raises ConfigError where no server is named: Prefect would start one that ends with this command.
    """
    url = str(PREFECT_API_URL.value() or "")
    if not url:
        raise ConfigError(
            "PREFECT_API_URL names no Prefect server: set it to the server's address with /api at its end"
        )
    work_pool.create_work_pool()
    create_limits()
    create_automations()
    return url


def deploy() -> Iterator[str]:
    """Set up, and put every deployment on the server for the workers of the pool; what there is to say, line by line.

    It may be repeated: what was set on the server stays.
    """
    url, deployments = set_up(), declared()
    with get_client(sync_client=True) as client:
        yield from register_all(client, deployments, work_pool.NAME)
    yield f"{len(deployments)} deployments are on {url} for the workers of the pool {work_pool.NAME}"
