"""Open the shards as blocks."""

from prefect import task

from lmcore.dataset.mixture import Blocks, build_dataset
from lmcore.dataset.tokenization import Dataset
from lmcore.settings.config import RunConfig
from lmcore.settings.section import result_fields
from lmcore.store.remembered_inputs import Inputs
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
