"""The champion's text has grown: what is new -> a challenger -> both scored on the same text -> promoted, or why not."""

from pathlib import Path
from typing import Literal

from prefect import flow
from pydantic import BaseModel, ConfigDict

from flows.command import run_command
from flows.prepare_data import Stages, dataset_of
from flows.pretrain import Pretrained, trained_model
from lmcore.challenge import Champion, refused_before
from lmcore.config import RunConfig
from lmcore.news import News
from lmcore.registry import model_folder
from lmcore.retraining import RetrainConfig, continued, too_little
from lmcore.retraining_report import retraining_page
from lmcore.run import run_key
from lmcore.store import locked
from lmcore.tokenization import Dataset
from lmcore.tokenizer import TokenizerInfo
from tasks.corpus import look_at_corpus
from tasks.retraining import gate, look_at_champion, look_for_news, promotion, retraining_report
from tasks.tokenizer import tokenizer
