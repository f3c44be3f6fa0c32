"""``lm retrain``, in a file of its own: its settings import numpy and pyarrow, and no other action needs them."""

from lmcore.cli.app import pipeline
from lmcore.retraining import RetrainConfig


def _retrain(config: RetrainConfig) -> None:
    from flows.command import run_flow
    from flows.retrain import retrain as flow

    run_flow(flow, config)


retrain = pipeline(RetrainConfig, "Train a model again if its text has grown.", _retrain)
