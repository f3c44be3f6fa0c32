"""``lm retrain``, in a file of its own: its settings import numpy and pyarrow, and no other action needs them."""

from functools import partial

from deployments import flow_command
from lmcore.cli.app import pipeline
from lmcore.settings.retraining import RetrainConfig

retrain = pipeline(RetrainConfig, "Train a model again if its text has grown.", partial(flow_command.run, "retrain"))
