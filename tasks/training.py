"""Train, in a process of its own."""

from pathlib import Path

from prefect import get_run_logger, task
from prefect.artifacts import Artifact, MarkdownArtifact
from prefect.context import TaskRunContext
from prefect.exceptions import TerminationSignal

from lmcore.dataset.tokenization import Dataset
from lmcore.errors import StoppedError
from lmcore.report.report import run_page
from lmcore.runs.forecast import training_poll
from lmcore.runs.history import loss_table
from lmcore.runs.launch import train_in_child
from lmcore.runs.metrics import read_metrics
from lmcore.runs.run import TrainingResult, prepare_run, run_identity
from lmcore.settings.config import RunConfig
from lmcore.store.remembered_inputs import Inputs
from lmcore.tokenizer.tokenizer import TokenizerInfo
from tasks.locks import gpu_slot
from tasks.policies import stage, stopped
from tasks.progress import LiveTable, report_progress, run_logger


def _content(config: RunConfig, dataset: Dataset, tokenizer: TokenizerInfo, store: Path) -> Inputs:
    # The card too, which the run's record holds: a finished training is found again at once.
    return {"store": str(store), "run": config.run, "card": config.card.model_dump(), **run_identity(config, dataset)}


def _page(training: TrainingResult) -> list[Artifact]:
    return [MarkdownArtifact(key="run", markdown=run_page(training), description=f"Files of {training.run}")]


@task(
    name="training",
    task_run_name="train {config.model_label} on dataset {dataset.id}",
    **stage(_content, respect_fresh=True, page=_page),
)
def training(config: RunConfig, dataset: Dataset, tokenizer: TokenizerInfo, store: Path) -> TrainingResult:
    """Start or continue the run. Called directly, so that a cancel reaches it and through it the child.

    One that was asked to stop (train.max_minutes, a signal to the child) is no failure: its state is Stopped, a kind
    of Cancelled.
    """
    context = TaskRunContext.get()
    first_try = context is None or context.task_run.run_count <= 1
    run = prepare_run(config, dataset, tokenizer, store, fresh=config.fresh and first_try)
    losses = LiveTable(
        "losses", f"Losses of {run.folder.name}, nats per token", lambda: loss_table(read_metrics(run.metrics))
    )
    logger = run_logger()
    with gpu_slot(config), report_progress("training", "steps", training_poll(run, logger), losses):
        try:
            return train_in_child(run.folder, logger.info)
        except StoppedError as stop:
            result: TrainingResult = stopped(stop)
            return result
        except TerminationSignal:
            get_run_logger().info("%s was told to end: it can go on from its last checkpoint", run.folder.name)
            raise
