"""Nothing is pickled: a run completes where pickling raises, and no file that it leaves holds a pickle."""

import base64
import json
import pickle
from pathlib import Path

import cloudpickle
import pytest

from tests.deployments.conftest import Api, Completed

pytestmark = pytest.mark.flows


def holds_pickle(content: bytes) -> bool:
    """Of any protocol since 2, at its beginning or as base64 within JSON, as Prefect keeps its results."""
    return content[:1] == b"\x80" or b"cloudpickle" in content or any(mark in content for mark in IN_BASE64)


IN_BASE64 = [base64.b64encode(pickle.dumps([1], protocol))[:3] for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)]
IN_BASE64 = [b'"' + mark for mark in IN_BASE64]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_would_be_noticed(protocol: int) -> None:
    content = cloudpickle.dumps(Path("x"), protocol)
    assert holds_pickle(content)
    assert holds_pickle(json.dumps({"result": base64.b64encode(content).decode()}).encode())
    assert not holds_pickle(b'{"result": "gas"}')


def test_the_run_and_its_training_could_not_pickle(served: Api, completed: Completed) -> None:
    guarded = (served.home / "guarded").read_text()
    assert "prefect.flow_engine" in guarded or "prefect.engine" in guarded
    assert "-m lmcore train" in guarded
    assert completed.state["type"] == "COMPLETED"


def test_no_file_of_the_run_holds_a_pickle(served: Api, completed: Completed) -> None:
    results = [path for path in (served.home / "storage").rglob("*") if path.is_file()]
    made = [path for path in completed.store.rglob("*") if path.is_file()]
    assert len(results) > 4
    assert len(made) > 20
    assert not [path for path in results + made if holds_pickle(path.read_bytes())]
    # Of a task a record that says how it was written; of a flow, such as evaluate, the value itself.
    records = [json.loads(path.read_bytes()) for path in results]
    assert {row["metadata"]["serializer"]["type"] for row in records if "metadata" in row} == {"json"}
