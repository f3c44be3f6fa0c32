"""What Prefect keeps of a table that grows."""

import json
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from tasks.progress import LiveTable

pytestmark = pytest.mark.flows


@flow
def publish() -> None:
    rows: list[dict[str, Any]] = []
    table = LiveTable("growing", "Losses", lambda: list(rows))
    for step in range(3):
        rows.append({"step": step, "loss": float("nan") if step == 1 else 2.5})
        table.publish()


def test_a_table_that_grows_is_one_artifact() -> None:
    publish()
    with get_client(sync_client=True) as client:
        [artifact] = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["growing"])))
    assert artifact.description == "Losses"
    assert json.loads(str(artifact.data)) == [
        {"step": 0, "loss": 2.5},
        {"step": 1, "loss": None},
        {"step": 2, "loss": 2.5},
    ]
