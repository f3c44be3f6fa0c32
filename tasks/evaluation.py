"""Score the trained model, and export it."""

from prefect import task
from prefect.artifacts import Artifact, TableArtifact

from lmcore.report.report import evaluation_rows
from lmcore.runs.run import Export, Run, TrainingResult
from lmcore.runs.scores import Evaluation
from lmcore.store.remembered_inputs import Inputs
from tasks.policies import stage
from tasks.progress import report_progress


def _content(training: TrainingResult) -> Inputs:
    return {"store": str(training.store), "run": training.run, "weights": training.weights}


def _export_content(training: TrainingResult, evaluation: Evaluation) -> Inputs:
    return {**_content(training), "card": Run.open(training.folder).config.card.model_dump(mode="json")}


def _page(evaluation: Evaluation) -> list[Artifact]:
    about = f"{evaluation.bits_per_byte:.4f} bits per byte, {evaluation.folder.name}"
    return [TableArtifact(key="evaluation", table=evaluation_rows(evaluation), description=about)]


@task(
    name="evaluation",
    task_run_name="evaluate {training.run} at step {training.step}",
    **stage(_content, page=_page),
)
def evaluation(training: TrainingResult) -> Evaluation:
    """Score every validation document once."""
    with report_progress("evaluating", "tokens") as progress:
        from lmcore.model.evaluate import evaluate  # and with it torch: a flow starts without

        return evaluate(Run.open(training.folder), training.checkpoint, progress)


@task(name="export", task_run_name="export {training.run}", **stage(_export_content))
def export_model(training: TrainingResult, evaluation: Evaluation) -> Export:
    """Write the folder that transformers opens."""
    with report_progress("export", "files"):
        from lmcore.model.export import export  # and with it transformers

        return export(training, evaluation)
