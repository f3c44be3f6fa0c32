"""Open the shards as blocks."""

from prefect import task

from lmcore.config import RunConfig
from lmcore.inputs import Inputs
from lmcore.mixture import Blocks, build_dataset
from lmcore.section import result_fields
from lmcore.tokenization import Dataset
from tasks.policies import stage


def _content(config: RunConfig, dataset: Dataset) -> Inputs:
    return {"store": str(dataset.store), "dataset": {"id": dataset.id, **result_fields(config.dataset)}}


@task(
    name="dataset",
    task_run_name="blocks of {config.dataset.block_size} tokens from dataset {dataset.id}",
    **stage(_content),
)
def blocks(config: RunConfig, dataset: Dataset) -> Blocks:
    """Count the blocks that training will draw; a corpus smaller than one block ends here."""
    return build_dataset(dataset, config.dataset)
