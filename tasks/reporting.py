"""Write the report and show it in the Prefect UI."""

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact

from lmcore.config import RunConfig
from lmcore.dataset import Blocks
from lmcore.evaluate import Evaluation
from lmcore.inputs import Inputs
from lmcore.report import Report, report, report_key
from lmcore.train import TrainingResult
from tasks.policies import stage


def _content(config: RunConfig, training: TrainingResult, evaluation: Evaluation, blocks: Blocks) -> Inputs:
    return {
        "store": str(training.store),
        "run": training.run,
        "weights": training.weights,
        "sample": config.sample.model_dump(mode="json"),
        "report": report_key(training, evaluation, blocks, config.sample),
    }


@task(name="report", task_run_name="report", **stage(_content))
def loss_report(config: RunConfig, training: TrainingResult, evaluation: Evaluation, blocks: Blocks) -> Report:
    """The page in the run's folder, and the same as an artifact with the picture inside it."""
    page = report(training, evaluation, blocks, config.sample)
    for warning in page.warnings:
        get_run_logger().warning(warning)
    create_markdown_artifact(
        key="report", markdown=page.markdown(inline_picture=True), description=f"Report of {training.run}"
    )
    return page
