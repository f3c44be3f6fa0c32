"""The work pool of production: workers on any machine take runs from it and start each as a process."""

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

NAME = "lm"
"""As in prefect.yaml."""


def create_work_pool() -> None:
    """Create it if it is missing."""
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(NAME)
        except ObjectNotFound:
            template = ProcessWorker.get_default_base_job_template()
            pool = WorkPoolCreate(name=NAME, type=ProcessWorker.type, base_job_template=template)
            client.create_work_pool(pool)
