"""Score the trained model, and export it."""

from prefect import task
from prefect.artifacts import create_table_artifact

from lmcore.evaluate import Evaluation, evaluate
from lmcore.export import Export, export
from lmcore.inputs import Inputs
from lmcore.run import Run
from lmcore.train import TrainingResult
from tasks.policies import stage


def _content(training: TrainingResult, evaluation: Evaluation | None = None) -> Inputs:
    return {"store": str(training.store), "run": training.run, "weights": training.weights}


@task(name="evaluation", task_run_name="evaluate", **stage(_content))
def evaluation(training: TrainingResult) -> Evaluation:
    """Score every validation document once."""
    score = evaluate(Run.open(training.folder), training.checkpoint)
    create_table_artifact(
        key="evaluation",
        table=score.rows(),
        description=f"Validation of {training.run}",
    )
    return score


@task(name="export", task_run_name="export", **stage(_content))
def export_model(training: TrainingResult, evaluation: Evaluation) -> Export:
    """Write the folder that transformers opens."""
    return export(training, evaluation)
