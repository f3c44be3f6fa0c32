"""A finished run as a page for people: report.md and report.png."""

import platform
import shlex
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

from lmcore.clock import duration, for_people
from lmcore.dataset.mixture import Blocks
from lmcore.dataset.stream import source_names
from lmcore.errors import StoreError
from lmcore.markdown import code, escape, fenced, number, picture, rows_table, table
from lmcore.report.baselines import baselines, compared
from lmcore.report.data_report import data_sections
from lmcore.report.losses import events, figures, loss_table, warnings
from lmcore.report.plots import loss_picture
from lmcore.report.summary import write_settings
from lmcore.runs.metrics import read_metrics
from lmcore.runs.run import Run, TrainingResult
from lmcore.runs.sample_prompts import with_prompts
from lmcore.runs.scores import Evaluation, Score, score_rows
from lmcore.settings.config import SampleConfig
from lmcore.settings.section import fingerprint
from lmcore.store.artifacts import read_manifest
from lmcore.store.files import hash_file, write_file
from lmcore.store.json_files import Row
from lmcore.store.outputs import Record

Writer = Callable[[Run, Path, SampleConfig], list[str]]
_FILES = ("report.md", "report.png")
_PICTURE = "![loss](report.png)"
_EARLIER_SAMPLES = 3
_PACKAGES = ("torch", "transformers", "sentencepiece", "pyarrow", "numpy")


class Report(Record):
    """The report of a run, and the samples in it."""

    file_name = "report.json"
    about: str
    """Fingerprint of the training, the evaluation and the samples' settings."""
    samples: list[str]
    warnings: list[str]
    """What the losses say, in sentences for the person who started the run."""
    hashes: dict[str, str]
    """Hashes of report.md and report.png."""

    @property
    def path(self) -> Path:
        return self.folder / "report.md"

    @property
    def picture(self) -> Path:
        return self.folder / "report.png"

    def verify(self) -> None:
        super().verify()
        if _hashes(self.folder) != self.hashes:
            raise StoreError(f"{self.path} or {self.picture.name} is missing or was changed")

    def markdown(self, inline_picture: bool = False) -> str:
        """The page. ``inline_picture`` embeds the picture, for readers that cannot open the file."""
        text = self.path.read_text(encoding="utf-8")
        if inline_picture:
            text = text.replace(_PICTURE, picture("loss", self.picture.read_bytes()), 1)
        return text


def report(
    training: TrainingResult, evaluation: Evaluation, blocks: Blocks, settings: SampleConfig, write: Writer
) -> Report:
    """Write the loss picture and the page, or return what is there for this step.

    ``write`` makes the samples (``lmcore.model.generate.write_texts``). It needs torch and the weights, so it is called
    only if samples are missing.
    """
    run = Run.open(training.folder)
    found, about = Report.load(run.folder), report_key(training, evaluation, blocks, settings)
    if found is not None and found.about == about and _hashes(run.folder) == found.hashes:
        return found
    rows, settings = read_metrics(run.metrics), with_prompts(settings, run)
    samples, warned = write(run, training.checkpoint, settings), _warnings(rows, run)
    write_settings(run)
    parts = [
        f"# {escape(training.run)}",
        *(f"**Warning:** {escape(warning)}." for warning in warned),
        *_quality(run, training, evaluation),
        table(("result", ""), _results(run, training, evaluation, blocks, rows)),
        _PICTURE,
        *_samples(run, training, settings, samples),
        *_losses(rows, evaluation),
        "## Data",
        *data_sections(read_manifest(run.dataset_folder), blocks),
        "## Made with",
        table(("", ""), _ids_and_versions(run)),
    ]
    write_file(run.folder / "report.png", loss_picture(rows, training.run))
    write_file(run.folder / "report.md", ("\n\n".join(parts) + "\n").encode())
    hashes = _hashes(run.folder)
    return Report(folder=run.folder, about=about, samples=samples, warnings=warned, hashes=hashes).save()


def report_key(training: TrainingResult, evaluation: Evaluation, blocks: Blocks, settings: SampleConfig) -> str:
    """The fingerprint of everything that a report says, including the dataset's ledger."""
    ledger = read_manifest(Run.open(training.folder).dataset_folder)["ledger"]
    return fingerprint(ledger, *(part.model_dump(mode="json") for part in (training, evaluation, blocks, settings)))


def _hashes(folder: Path) -> dict[str, str]:
    return {name: hash_file(folder / name) for name in _FILES if (folder / name).exists()}


def _warnings(rows: list[Row], run: Run) -> list[str]:
    trained, validated = (source_names(run.dataset_folder, split) for split in ("train", "validation"))
    where = "no validation document is of the source {}: its loss is not known (corpus.validation_fraction)"
    return [*warnings(rows), *(where.format(name) for name in trained if name not in validated)]


def _quality(run: Run, training: TrainingResult, evaluation: Evaluation) -> Iterator[str]:
    """What simple methods reach on the same text, and why two validation losses differ."""
    if found := baselines(run):
        yield "## How good it is"
        yield f"The model needs {number(evaluation.bits_per_byte, '.3f')} bits per byte of the validation text."
        counted = f"The 5-gram model counted {found.train_bytes:,} bytes of the training text."
        yield f"{escape(compared(evaluation.bits_per_byte, found))} {counted}"
    yield (
        f"There are two validation losses, both of documents scored alone. During training up to "
        f"{run.config.train.validation_tokens:,} tokens are scored (train.validation_tokens): "
        f"{number(training.validation_loss, '.4f')} nats per token at step {training.step:,}, as in the picture. After "
        f"training all {evaluation.documents:,} documents are scored ({evaluation.tokens:,} tokens): "
        f"{number(evaluation.nats_per_token, '.4f')}. The training loss is of packed blocks, in which a document may "
        "follow another."
    )


def _results(
    run: Run, training: TrainingResult, evaluation: Evaluation, blocks: Blocks, rows: list[Row]
) -> Iterator[tuple[str, str]]:
    settings = run.config.train
    yield "validation loss", f"{number(evaluation.nats_per_token, '.4f')} nats per token"
    yield "perplexity", number(evaluation.perplexity, ",.2f")
    yield "bits per byte", number(evaluation.bits_per_byte, ".4f")
    last = f"last {settings.log_every} steps"
    yield "training loss", f"{number(training.train_loss, '.4f')} nats per token ({last})"
    yield "model", run.config.model_label
    yield "parameters", f"{training.parameters:,} ({training.trainable_parameters:,} trained)"
    flops = training.flops_per_token
    yield "FLOPs", f"{flops * training.tokens:.2e} ({flops:.2e} a token)"
    is_best = training.last_step != training.step
    best = f" (the best; training ended at {training.last_step:,})" if is_best else ""
    yield "steps", f"{training.step:,} of {settings.batch_size} blocks of {blocks.block_size} tokens{best}"
    epochs = next((row["epoch"] for row in reversed(rows) if row["kind"] == "train"), 0.0)
    yield "tokens trained on", f"{training.tokens:,} ({epochs:.2f} epochs)"
    yield "throughput", f"{training.tokens_per_second:,.0f} tokens/s"
    yield "device", f"{training.device} in {training.precision}"
    if training.ended:
        yield "training time", f"{duration(training.seconds)} in steps, without validation and checkpoints"
        yield "training ended", for_people(training.ended)
    yield from figures(rows).items()


def _samples(run: Run, training: TrainingResult, settings: SampleConfig, texts: list[str]) -> Iterator[str]:
    """What the model writes, and what it wrote to its first prompt during training, the oldest first."""
    yield "## Samples"
    drawn = f"temperature {settings.temperature:g}, top-k {settings.top_k}, seed {settings.seed}"
    for prompt, text in zip(settings.prompts, texts, strict=True):
        yield fenced(text)
        yield f"Prompt {code(repr(prompt))}, {drawn}."
    earlier = [row for row in read_metrics(run.samples) if row["step"] < training.step]
    if earlier:
        yield "### During training"
    for row in [row for row in earlier if row["prompt"] == earlier[0]["prompt"]][-_EARLIER_SAMPLES:]:
        yield f"Step {row['step']:,}:"
        yield fenced(row["text"])


def _losses(rows: list[Row], evaluation: Evaluation) -> Iterator[str]:
    yield "## Losses"
    yield rows_table(loss_table(rows, 12))
    if evaluation.sources:
        yield rows_table(score_rows(evaluation.sources.items()))
    if found := events(rows):
        yield "## Events"
        yield rows_table(found)


def _ids_and_versions(run: Run) -> Iterator[tuple[str, str]]:
    tokenizer = run.tokenizer_info
    seen = tokenizer.seen_bytes / tokenizer.corpus_bytes if tokenizer.corpus_bytes else None
    trained = f", trained on {seen:.1%} of {tokenizer.corpus_bytes:,} bytes" if seen else ""
    yield "run", run.folder.name
    yield "dataset", str(run.identity["dataset_id"])
    yield "tokenizer", f"{tokenizer.id} ({tokenizer.model_type}, {tokenizer.vocab_size:,} pieces{trained})"
    yield "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield from ((name, version(name)) for name in _PACKAGES)


def evaluation_rows(evaluation: Evaluation) -> list[dict[str, str]]:
    """A table of the validation text: all of it, then each source's part where there are several."""
    total = Score(evaluation.documents, evaluation.tokens, evaluation.text_bytes, evaluation.nats)
    rows = score_rows([("all", total), *evaluation.sources.items()])
    return [{name: escape(cell) for name, cell in row.items()} for row in rows]  # the UI reads cells as Markdown


def run_page(training: TrainingResult) -> str:
    """Where a run's files are, how to look at them, and its losses."""
    run = Run.open(training.folder)
    folder, runs = shlex.quote(str(run.folder)), shlex.quote(str(run.folder.parent))
    parts = [
        f"# {escape(training.run)}",
        f"Trained to step {training.step:,} on {training.device}. All files of the run are in this folder:",
        fenced(str(run.folder)),
        "TensorBoard shows this run beside others trained with `train.tensorboard`:",
        fenced(f"tensorboard --logdir {runs}"),
        "These commands draw the losses of runs and generate text:",
        fenced(f"lm plot {folder}\nlm generate {folder}"),
        "## Losses",
        rows_table(loss_table(read_metrics(run.metrics))),
    ]
    return "\n\n".join(parts) + "\n"


def samples_page(found: Report) -> str:
    """What the trained model wrote."""
    return "\n\n".join([f"# Samples of {escape(found.folder.name)}", *map(fenced, found.samples)]) + "\n"
