"""``lm deploy`` and ``lm setup``: the work pool, the concurrency limit, the automations, and the deployments.

What exists is kept, because a person may have changed it in the UI.
"""

from collections.abc import Iterator

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.workers.process import ProcessWorker

from deployments.automations import create_automations
from deployments.declaration import declared
from deployments.projects import projects, without_file
from deployments.registration import register_all
from lmcore.errors import ConfigError
from tasks.locks import GPU_LIMIT

POOL = "lm"
"""The work pool of production, as in prefect.yaml. Workers on any machine start each of its runs as a process."""


def deploy() -> Iterator[str]:
    """Set up, and put every deployment on the server for the workers of the pool. Yields lines for a person.

    It may be repeated and keeps what was set on the server.
    """
    own = projects()
    url, deployments = set_up(), [*declared(), *own]
    with get_client(sync_client=True) as client:
        yield from register_all(client, deployments, POOL)
        yield from without_file(client, own)
    yield f"{len(deployments)} deployments are on {url} for the workers of the pool {POOL}"


def server_url() -> str:
    """The server's address. Raises ConfigError if none is named: Prefect would start one that ends with the command."""
    if not (url := str(PREFECT_API_URL.value() or "")):
        raise ConfigError(
            "PREFECT_API_URL names no Prefect server: set it to the server's address with /api at its end"
        )
    return url


def set_up() -> str:
    """Create the missing ones of work pool, limits and automations. Returns the server's address.

    Raises ConfigError as ``server_url`` does.
    """
    url = server_url()
    create_work_pool()
    create_limits()
    create_automations()
    return url


def create_work_pool() -> None:
    """Create the work pool if it is missing."""
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(POOL)
        except ObjectNotFound:
            template = ProcessWorker.get_default_base_job_template()
            client.create_work_pool(WorkPoolCreate(name=POOL, type=ProcessWorker.type, base_job_template=template))


def create_limits() -> None:
    """Create the concurrency limit if it is missing. Each training takes one of its slots, and fails without it."""
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(GPU_LIMIT)
        except ObjectNotFound:
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU_LIMIT, limit=gpu_slots()))


def gpu_slots() -> int:
    """The number of GPUs of this machine, but at least 1, so that two trainings do not share the processor."""
    import torch

    return max(1, torch.cuda.device_count())
