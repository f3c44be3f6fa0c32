"""The stages of a run, one Prefect task each, in the order in which a run passes them.

Each stage names what its output depends on (``_..._inputs``) and, where it has one, its page in the UI
(``_..._page``). Torch and transformers are imported inside a stage, because a flow starts without them.
"""

from pathlib import Path

from prefect import get_run_logger, task
from prefect.artifacts import Artifact, MarkdownArtifact, TableArtifact
from prefect.context import TaskRunContext
from prefect.exceptions import TerminationSignal

from lmcore.corpus.listing import Corpus, open_corpus
from lmcore.dataset.manifest import Dataset
from lmcore.dataset.mixture import Blocks, count_blocks
from lmcore.dataset.tokenization import dataset_inputs, tokenize
from lmcore.errors import StoppedError
from lmcore.markdown import escape
from lmcore.report.data_report import data_page, tokenizer_page
from lmcore.report.losses import loss_table
from lmcore.report.report import Report, evaluation_rows, report, report_key, run_page, samples_page
from lmcore.runs.launch import train_in_child
from lmcore.runs.metrics import read_metrics
from lmcore.runs.prepare import prepare_run, run_identity
from lmcore.runs.run import Export, Run, TrainingResult, finished_training
from lmcore.runs.scores import Evaluation
from lmcore.runs.training_progress import training_poll
from lmcore.settings.config import RunConfig, SampleConfig
from lmcore.settings.section import result_fields
from lmcore.store.remembered_inputs import Inputs
from lmcore.tokenizer.make import make_tokenizer, tokenizer_inputs
from lmcore.tokenizer.tokenizer import TokenizerInfo
from tasks.locks import gpu_slot
from tasks.policies import NEVER_CACHED, RETRIED, found, stage, stopped
from tasks.progress import LiveTable, report_progress, run_logger


@task(name="corpus", task_run_name="look at {config.corpus.label}", **NEVER_CACHED, **RETRIED)
def look_at_corpus(config: RunConfig) -> tuple[Corpus, Path]:
    """The corpus in figures, and the opened store. Never cached: this task notices new text."""
    with report_progress("corpus", "bytes"):
        return open_corpus(config)


def _tokenizer_inputs(config: RunConfig, corpus: Corpus, store: Path) -> Inputs:
    return {"store": str(store), **tokenizer_inputs(config.tokenizer, corpus)}


@task(name="tokenizer", task_run_name="tokenizer for {config.corpus.label}", **stage(_tokenizer_inputs))
def tokenizer(config: RunConfig, corpus: Corpus, store: Path) -> TokenizerInfo:
    """A tokenizer in the store, trained on the corpus or loaded from config.tokenizer.source."""
    with report_progress("tokenizer", "bytes") as progress:
        return make_tokenizer(config.tokenizer, config.corpus, corpus, store, progress)


def _tokenization_inputs(config: RunConfig, corpus: Corpus, tokenizer: TokenizerInfo, store: Path) -> Inputs:
    return {"store": str(store), **dataset_inputs(config.corpus, corpus, tokenizer)}


def _tokenization_page(dataset: Dataset) -> list[Artifact]:
    about = f"{dataset.tokens:,} tokens to train on, dataset {dataset.id}"
    rate = f"{dataset.text_bytes / dataset.tokens:.2f} bytes of text a token, " if dataset.tokens else ""
    name = f"{rate}tokenizer {dataset.tokenizer_id}"
    return [
        MarkdownArtifact(key="data", markdown=data_page(dataset), description=about),
        MarkdownArtifact(key="tokenizer", markdown=tokenizer_page(dataset), description=name),
    ]


@task(
    name="tokenization",
    task_run_name="tokenize {config.corpus.label}",
    **stage(_tokenization_inputs, page=_tokenization_page),
)
def tokenization(config: RunConfig, corpus: Corpus, tokenizer: TokenizerInfo, store: Path) -> Dataset:
    """The dataset: token ids in memory-mapped shards. Only chunks that the store lacks are encoded."""
    with report_progress("tokenizing", "bytes") as progress:
        dataset = tokenize(config.corpus, corpus, tokenizer, store, progress)
    get_run_logger().info(dataset.ledger_summary())
    return dataset


def _blocks_inputs(config: RunConfig, dataset: Dataset) -> Inputs:
    return {"store": str(dataset.store), "dataset": {"id": dataset.id, **result_fields(config.dataset)}}


@task(
    name="dataset",
    task_run_name="blocks of {config.dataset.block_size} tokens from dataset {dataset.id}",
    **stage(_blocks_inputs),
)
def blocks(config: RunConfig, dataset: Dataset) -> Blocks:
    """The number of blocks that training draws. Raises CorpusError for a corpus smaller than one block."""
    return count_blocks(dataset, config.dataset)


def _training_inputs(config: RunConfig, dataset: Dataset, tokenizer: TokenizerInfo, store: Path) -> Inputs:
    # The card is part of the run's record: with it, a finished training is found again at once.
    return {"store": str(store), "run": config.run, "card": config.card.model_dump(), **run_identity(config, dataset)}


def _losses(training: TrainingResult) -> str:
    return f"Validation loss {training.validation_loss:.4f} nats per token at step {training.step:,}, {training.run}"


def _training_page(training: TrainingResult) -> list[Artifact]:
    return [MarkdownArtifact(key="run", markdown=run_page(training), description=_losses(training))]


@task(
    name="training",
    task_run_name="train {config.model_label} on dataset {dataset.id}",
    **stage(_training_inputs, respect_fresh=True, page=_training_page),
)
def training(config: RunConfig, dataset: Dataset, tokenizer: TokenizerInfo, store: Path) -> TrainingResult:
    """The result of the run, which is started or continued in a child process.

    A training that was asked to stop (train.max_minutes, a signal to the child) has not failed: its state is Stopped, a
    kind of Cancelled.
    """
    context = TaskRunContext.get()
    first_try = context is None or context.task_run.run_count <= 1
    run = prepare_run(config, dataset, tokenizer, store, fresh=config.fresh and first_try)
    if finished := finished_training(run):
        made_before: TrainingResult = found(finished)
        return made_before
    about = f"Losses of {run.folder.name}, nats per token"
    losses = LiveTable("losses", about, lambda: loss_table(read_metrics(run.metrics)))
    logger = run_logger()
    with gpu_slot(config, config.train.nproc), report_progress("training", "steps", training_poll(run, logger), losses):
        try:
            return train_in_child(run.folder, logger.info)
        except StoppedError as stop:
            result: TrainingResult = stopped(stop)
            return result
        except TerminationSignal:
            get_run_logger().info(
                "%s was stopped on request: it can continue from its last checkpoint", run.folder.name
            )
            raise


def _weights_inputs(training: TrainingResult) -> Inputs:
    return {"store": str(training.store), "run": training.run, "weights": training.weights}


def _evaluation_page(evaluation: Evaluation) -> list[Artifact]:
    about = f"{evaluation.bits_per_byte:.4f} bits per byte, {evaluation.folder.name}"
    return [TableArtifact(key="evaluation", table=evaluation_rows(evaluation), description=about)]


@task(
    name="evaluation",
    task_run_name="evaluate {training.run} at step {training.step}",
    **stage(_weights_inputs, page=_evaluation_page),
)
def evaluation(training: TrainingResult) -> Evaluation:
    """The scores of the trained model on every validation document."""
    run = Run.open(training.folder)
    with gpu_slot(run.config), report_progress("evaluating", "tokens") as progress:
        from lmcore.model.evaluate import evaluate

        return evaluate(run, training.checkpoint, progress)


def _export_inputs(training: TrainingResult, evaluation: Evaluation) -> Inputs:
    card = Run.open(training.folder).config.card
    return {**_weights_inputs(training), "card": card.model_dump(mode="json")}


@task(name="export", task_run_name="export {training.run}", **stage(_export_inputs))
def export_model(training: TrainingResult, evaluation: Evaluation) -> Export:
    """The folder that transformers opens."""
    with report_progress("export", "files"):
        from lmcore.model.export import export

        return export(training, evaluation)


def _report_inputs(config: RunConfig, training: TrainingResult, evaluation: Evaluation, blocks: Blocks) -> Inputs:
    return {
        **_weights_inputs(training),
        "sample": config.sample.model_dump(mode="json"),
        "report": report_key(training, evaluation, blocks, config.sample),
    }


def _report_page(found: Report) -> list[Artifact]:
    run, page, score = found.folder.name, found.markdown(inline_picture=True), Evaluation.load(found.folder)
    about = f"{score.bits_per_byte:.4f} bits per byte, " if score else ""
    return [
        MarkdownArtifact(
            key="report", markdown=page, description=f"{about}report of {run}, in {escape(str(found.folder))}"
        ),
        MarkdownArtifact(
            key="samples", markdown=samples_page(found), description=f"{len(found.samples)} samples of {run}"
        ),
    ]


def _write_texts(run: Run, checkpoint: Path, settings: SampleConfig) -> list[str]:
    from lmcore.model.generate import write_texts

    with gpu_slot(run.config):
        return write_texts(run, checkpoint, settings)


@task(name="report", task_run_name="report of {training.run}", **stage(_report_inputs, page=_report_page))
def loss_report(config: RunConfig, training: TrainingResult, evaluation: Evaluation, blocks: Blocks) -> Report:
    """The report in the run's folder. Its artifact has the picture inside it."""
    with report_progress("report", "samples"):
        page = report(training, evaluation, blocks, config.sample, _write_texts)
    for warning in page.warnings:
        get_run_logger().warning(warning)
    return page
