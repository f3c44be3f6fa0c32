"""Write the report and show it in the Prefect UI."""

from prefect import get_run_logger, task
from prefect.artifacts import Artifact, MarkdownArtifact

from lmcore.dataset.mixture import Blocks
from lmcore.report.report import Report, report, report_key, samples_page
from lmcore.runs.run import TrainingResult
from lmcore.runs.scores import Evaluation
from lmcore.settings.config import RunConfig
from lmcore.store.remembered_inputs import Inputs
from tasks.policies import stage
from tasks.progress import report_progress


def _content(config: RunConfig, training: TrainingResult, evaluation: Evaluation, blocks: Blocks) -> Inputs:
    return {
        "store": str(training.store),
        "run": training.run,
        "weights": training.weights,
        "sample": config.sample.model_dump(mode="json"),
        "report": report_key(training, evaluation, blocks, config.sample),
    }


def _page(found: Report) -> list[Artifact]:
    run = found.folder.name
    page = found.markdown(inline_picture=True)
    return [
        MarkdownArtifact(key="report", markdown=page, description=f"Report of {run}, in {found.folder}"),
        MarkdownArtifact(key="samples", markdown=samples_page(found), description=f"Samples of {run}"),
    ]


@task(name="report", task_run_name="report of {training.run}", **stage(_content, page=_page))
def loss_report(config: RunConfig, training: TrainingResult, evaluation: Evaluation, blocks: Blocks) -> Report:
    """The page in the run's folder; its artifact has the picture inside it."""
    with report_progress("report", "samples"):
        page = report(training, evaluation, blocks, config.sample)
    for warning in page.warnings:
        get_run_logger().warning(warning)
    return page
