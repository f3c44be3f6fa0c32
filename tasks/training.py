"""Train, in a process of its own."""

from pathlib import Path

from prefect import get_run_logger, task
from prefect.context import TaskRunContext

from lmcore.config import RunConfig
from lmcore.history import loss_table
from lmcore.launch import train_in_child
from lmcore.metrics import last_standing, read_metrics
from lmcore.run import prepare_run, run_key
from lmcore.tokenization import Dataset
from lmcore.tokenizer import TokenizerInfo
from lmcore.train import TrainingResult
from tasks.policies import stage
from tasks.progress import LiveTable, watched


def _content(config: RunConfig, dataset: Dataset, tokenizer: TokenizerInfo, store: Path) -> str:
    return f"{store}-{run_key(config, dataset)}"


@task(name="training", task_run_name="train", **stage(_content, heeds_fresh=True))
def training(config: RunConfig, dataset: Dataset, tokenizer: TokenizerInfo, store: Path) -> TrainingResult:
    """Start or continue the run. Called directly, so that a cancel reaches it and through it the child."""
    context = TaskRunContext.get()
    first_try = context is None or context.task_run.run_count <= 1
    run = prepare_run(config, dataset, tokenizer, store, fresh=config.fresh and first_try)
    losses = LiveTable(
        "losses", f"Losses of {run.folder.name}, nats per token", lambda: loss_table(read_metrics(run.metrics))
    )
    with watched("training", "steps", lambda: last_standing(run.metrics), losses):
        return train_in_child(run.folder, get_run_logger().info)
