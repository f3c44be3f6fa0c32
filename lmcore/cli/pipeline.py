"""The pipeline without Prefect: text to shards, text to a model, and the training of one run."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from lmcore.cli.outcome import print_json
from lmcore.errors import STOPPED_STATUS, LMError, StoppedError
from lmcore.progress import Standing, Update, report_progress
from lmcore.settings.config import RunConfig
from lmcore.signals import StopRequest, leave

_log = logging.getLogger("lmcore")


def tokenize(config: RunConfig) -> None:
    """Encode a corpus into shards and print the JSON line."""
    dataset, tokenizer, _ = _prepare(config)
    figures = {"skipped_bytes": dataset.skipped_bytes, "unaccounted_bytes": dataset.unaccounted_bytes}
    about = {"dataset_id": dataset.id, "tokenizer_id": tokenizer.id, **figures, "warnings": dataset.warnings}
    print_json(about)


def pretrain(config: RunConfig) -> None:
    """Train a model on a corpus, from text to report, and print the JSON line."""
    from lmcore.dataset.mixture import count_blocks
    from lmcore.report.report import report
    from lmcore.report.summary import summary
    from lmcore.runs.launch import train_in_child
    from lmcore.runs.prepare import prepare_run
    from lmcore.runs.training_progress import training_poll

    dataset, tokenizer, store = _prepare(config)
    blocks = count_blocks(dataset, config.dataset)
    run = prepare_run(config, dataset, tokenizer, store, config.fresh)
    with _watched("training", "steps", training_poll(run, _log)):
        training = train_in_child(run.folder, _log.info)
    with _watched("evaluating", "tokens") as progress:
        from lmcore.model.evaluate import evaluate

        evaluation = evaluate(run, training.checkpoint, progress)
    with _watched("export", "files"):
        from lmcore.model.export import export

        model_dir = export(training, evaluation).model_dir
    with _watched("report", "samples"):
        from lmcore.model.generate import write_texts

        page = report(training, evaluation, blocks, config.sample, write_texts)
    for warning in page.warnings:
        _log.warning("%s", warning)
    print(f"\n{summary(run.folder, page.samples, dataset.ledger_summary(), dataset.warnings)}\n")
    print_json(
        {
            "run_dir": str(run.folder),
            "dataset_id": dataset.id,
            "model_dir": str(model_dir),
            "report": str(page.path),
            "step": training.step,
            "valid_loss": evaluation.nats_per_token,
            "valid_bits_per_byte": evaluation.bits_per_byte,
            "tokens_per_second": training.tokens_per_second,
            "warnings": dataset.warnings,
        }
    )


def _prepare(config: RunConfig) -> Any:
    from lmcore.corpus.listing import open_corpus
    from lmcore.dataset.tokenization import tokenize
    from lmcore.tokenizer.make import make_tokenizer

    with _watched("corpus", "bytes"):
        corpus, store = open_corpus(config)
    with _watched("tokenizer", "bytes") as progress:
        tokenizer = make_tokenizer(config.tokenizer, config.corpus, corpus, store, progress)
    with _watched("tokenizing", "bytes") as progress:
        dataset = tokenize(config.corpus, corpus, tokenizer, store, progress)
    _log.info(dataset.ledger_summary())
    for warning in dataset.warnings:
        _log.warning(warning)
    return dataset, tokenizer, store


def _watched(label: str, unit: str, poll: Callable[[], Standing] | None = None) -> AbstractContextManager[Update]:
    return report_progress(label, unit, Console(stderr=True), _log, poll)


def train(
    run_folder: Annotated[Path, Parameter(help="A run's folder in the store.")],
    /,
    *,
    parent: Annotated[int | None, Parameter(show=False)] = None,  # the process whose death asks for the end
) -> None:
    """Start or continue the training of one run, as the pipeline does for each."""
    should_stop = StopRequest()

    from lmcore.runs.launch import end_with_parent
    from lmcore.runs.run import Run, TrainingResult
    from lmcore.training.distributed import Ranks, is_worker, run_workers
    from lmcore.training.train import train as train_run

    is_first = Ranks.from_environment().is_first
    if not is_first:
        _log.setLevel(logging.ERROR)
    starter = os.getppid() if is_worker() else parent
    if starter is not None:
        end_with_parent(starter)
    run = Run.open(run_folder)
    try:
        if run.config.train.nproc > 1 and not is_worker():
            if status := run_workers(run, should_stop):
                sys.exit(status)
        else:
            train_run(run, should_stop)
    except StoppedError as error:
        if is_first:
            print(error)
        if should_stop.signal == signal.SIGINT:
            leave(signal.SIGINT)
        sys.exit(STOPPED_STATUS)
    except LMError:
        if is_first:
            raise
        sys.exit(1)  # the first rank says why
    result = TrainingResult.load(run.folder)
    if parent is None and not is_worker() and result is not None:
        print_json(result.model_dump(mode="json"))
