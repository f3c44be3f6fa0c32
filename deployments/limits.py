"""The global concurrency limit that trainings take a slot of; they ask strictly, and fail where it is missing."""

import torch
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.exceptions import ObjectNotFound

from tasks.locks import GPU_LIMIT


def gpu_slots() -> int:
    """One a GPU of this machine; one where there is none, so that two trainings do not share the processor."""
    return max(1, torch.cuda.device_count())


def create_limits() -> None:
    """Create what is missing on the server. What is there stays as somebody may have set it in the UI."""
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(GPU_LIMIT)
        except ObjectNotFound:
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU_LIMIT, limit=gpu_slots()))
