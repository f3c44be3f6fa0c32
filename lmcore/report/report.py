"""A finished run as a page for people: report.md and report.png."""

import platform
import shlex
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lmcore import markdown
from lmcore.clock import duration, for_people
from lmcore.dataset.mixture import Blocks
from lmcore.dataset.stream import source_names
from lmcore.errors import StoreError
from lmcore.markdown import escape, fenced, figure, number
from lmcore.report.data_report import data_sections
from lmcore.report.plots import loss_picture
from lmcore.runs.baselines import Baselines, baselines, compared
from lmcore.runs.metrics import events, figures, loss_table, read_metrics, source_table, warnings
from lmcore.runs.run import Run, TrainingResult
from lmcore.runs.sample_prompts import with_prompts
from lmcore.runs.scores import Evaluation, Score, score_rows
from lmcore.runs.summary import write_settings
from lmcore.settings.config import SampleConfig
from lmcore.settings.section import fingerprint
from lmcore.store.artifacts import read_manifest
from lmcore.store.files import hash_file, write_file
from lmcore.store.json_files import Row
from lmcore.store.outputs import Record

Writer = Callable[[Run, Path, SampleConfig], list[str]]
_PICTURE = "![loss](report.png)"
_EARLIER_SAMPLES = 3
_PACKAGES = ("torch", "transformers", "sentencepiece", "pyarrow", "numpy")


_DIMENSIONS = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "wide": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
}
"""The names of a dimension in config.json, by family of models."""


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
            text = text.replace(_PICTURE, markdown.picture("loss", self.picture.read_bytes()), 1)
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
    samples = write(run, training.checkpoint, settings)
    write_settings(run)
    write_file(run.folder / "report.png", loss_picture(rows, training.run))
    page = _page(run, training, evaluation, blocks, rows, (settings, samples))
    write_file(run.folder / "report.md", page.encode())
    return Report(
        folder=run.folder,
        about=about,
        samples=samples,
        warnings=_warnings(rows, run),
        hashes=_hashes(run.folder),
    ).save()


def report_key(training: TrainingResult, evaluation: Evaluation, blocks: Blocks, settings: SampleConfig) -> str:
    """The fingerprint of everything that a report says, including the dataset's ledger."""
    ledger = read_manifest(Run.open(training.folder).dataset_folder)["ledger"]
    return fingerprint(ledger, *(part.model_dump(mode="json") for part in (training, evaluation, blocks, settings)))


def _warnings(rows: list[Row], run: Run) -> list[str]:
    trained, validated = (source_names(run.dataset_folder, split) for split in ("train", "validation"))
    unseen = [name for name in trained if name not in validated]
    where = "no validation document is of the source {}: its loss is not known (corpus.validation_fraction)"
    return [*warnings(rows), *(where.format(name) for name in unseen)]


def _hashes(folder: Path) -> dict[str, str]:
    names = ("report.md", "report.png")
    return {name: hash_file(folder / name) for name in names if (folder / name).exists()}


def _page(
    run: Run,
    training: TrainingResult,
    evaluation: Evaluation,
    blocks: Blocks,
    rows: list[Row],
    samples: tuple[SampleConfig, list[str]],
) -> str:
    manifest = read_manifest(run.dataset_folder)
    parts = [
        f"# {escape(training.run)}",
        *(f"**Warning:** {escape(warning)}." for warning in _warnings(rows, run)),
        *_goodness(evaluation, baselines(run)),
        markdown.table(("result", ""), _summary(run, training, evaluation, blocks, rows).items()),
        _two_losses(run, training, evaluation),
        _PICTURE,
        "## Samples",
        *_sample_sections(*samples),
        *_earlier_samples([row for row in read_metrics(run.samples) if row["step"] < training.step]),
        "## Losses",
        markdown.table(("step", "tokens", "train", "validation"), (row.values() for row in loss_table(rows, 12))),
        *_source_losses(evaluation.sources),
        *_sources_over_time(source_table(rows)),
        *_events(events(rows)),
        "## Data",
        *data_sections(manifest, blocks),
        "## Made with",
        markdown.table(("", ""), _ids_and_versions(run).items()),
    ]
    return "\n\n".join(parts) + "\n"


def _goodness(evaluation: Evaluation, found: Baselines | None) -> list[str]:
    """A section that compares the model with simple methods."""
    if found is None:
        return []
    rows = [
        ("this model", evaluation.text_bytes, evaluation.bits_per_byte),
        ("5-gram model of bytes", found.text_bytes, found.ngram_bits_per_byte),
        ("zlib, level 9", found.text_bytes, found.zlib_bits_per_byte),
    ]
    cells = [(name, f"{size:,}", number(bits, ".4f")) for name, size, bits in rows]
    about = (
        f"{escape(compared(evaluation.bits_per_byte, found))} The 5-gram model counted {found.train_bytes:,} bytes of "
        "the training text."
    )
    return ["## How good it is", markdown.table(("", "bytes of validation text", "bits per byte"), cells), about]


def _two_losses(run: Run, training: TrainingResult, evaluation: Evaluation) -> str:
    """A paragraph on why the loss of the evaluation differs from the last one of the training."""
    return (
        f"There are two validation losses. During training the model is scored on the same validation documents, up to "
        f"{run.config.train.validation_tokens:,} tokens (train.validation_tokens). At step {training.step:,} that loss "
        f"is {number(training.validation_loss, '.4f')} nats per token; the picture shows it. After training every "
        f"validation document is scored ({evaluation.documents:,} documents, {evaluation.tokens:,} tokens): "
        f"{number(evaluation.nats_per_token, '.4f')}. Both score each document alone, without the text before it. The "
        f"training loss is that of packed blocks, in which one document may follow another."
    )


def _summary(
    run: Run, training: TrainingResult, evaluation: Evaluation, blocks: Blocks, rows: list[Row]
) -> dict[str, str]:
    settings = run.config.train
    beginning = f", begun with {settings.init_from}" if settings.init_from else ""
    epochs = next((row["epoch"] for row in reversed(rows) if row["kind"] == "train"), 0.0)
    return {
        "validation loss": f"{number(evaluation.nats_per_token, '.4f')} nats per token",
        "perplexity": number(evaluation.perplexity, ",.2f"),
        "bits per byte": number(evaluation.bits_per_byte, ".4f"),
        "training loss": f"{number(training.train_loss, '.4f')} nats per token (last {settings.log_every} steps)",
        "model": f"{_describe(run.shape)}{beginning}",
        "parameters": f"{training.parameters:,} ({training.trainable_parameters:,} trained)",
        "FLOPs": f"{training.flops_per_token * training.tokens:.2e} ({training.flops_per_token:.2e} a token)",
        "steps": f"{training.step:,} of {settings.batch_size} blocks of {blocks.block_size} tokens"
        + (f" (the best; training ended at {training.last_step:,})" if training.last_step != training.step else ""),
        "tokens trained on": f"{training.tokens:,} ({epochs:.2f} epochs)",
        "throughput": f"{training.tokens_per_second:,.0f} tokens/s",
        "device": f"{training.device} in {training.precision}",
        **_times(training),
        **figures(rows),
    }


def _describe(shape: dict[str, Any]) -> str:
    """A shape as text, such as "gpt2, 4 layers, 192 wide, 6 heads"."""
    text = shape.get("text_config", shape)
    found = {word: [text[name] for name in names if name in text] for word, names in _DIMENSIONS.items()}
    return ", ".join([str(shape["model_type"]), *(f"{values[0]} {word}" for word, values in found.items() if values)])


def _times(training: TrainingResult) -> dict[str, str]:
    """Rows on the time of the training; none if an earlier version of this program trained it."""
    if not training.ended:
        return {}
    return {
        "training time": f"{duration(training.seconds)} in steps, without validation and checkpoints",
        "training ended": for_people(training.ended),
    }


def _sample_sections(settings: SampleConfig, texts: list[str]) -> list[str]:
    drawn = f"temperature {settings.temperature:g}, top-k {settings.top_k}, seed {settings.seed}"
    pairs = zip(settings.prompts, texts, strict=True)
    return [
        part for prompt, text in pairs for part in (fenced(text), f"Prompt {markdown.code(repr(prompt))}, {drawn}.")
    ]


def _earlier_samples(rows: list[Row]) -> list[str]:
    """What the model wrote to its first prompt at the last few steps of sampling, the oldest first."""
    firsts = [row for row in rows if row["prompt"] == rows[0]["prompt"]][-_EARLIER_SAMPLES:]
    parts = [part for row in firsts for part in (f"Step {row['step']:,}:", fenced(row["text"]))]
    return ["### During training", *parts] if parts else []


def _sources_over_time(table: list[dict[str, Any]]) -> list[str]:
    return [markdown.table(("step", *list(table[0])[1:]), (row.values() for row in table))] if table else []


def _events(found: list[tuple[int, str]]) -> list[str]:
    rows = ((f"{step:,}", message) for step, message in found)
    return ["## Events", markdown.table(("step", ""), rows)] if found else []


def _source_losses(scores: dict[str, Score]) -> list[str]:
    head = ("validation of", "documents", "tokens", "nats per token", "bits per byte")
    figures = [
        (
            name,
            f"{score.documents:,}",
            f"{score.tokens:,}",
            number(score.nats_per_token, ".4f"),
            number(score.bits_per_byte, ".4f"),
        )
        for name, score in scores.items()
    ]
    return [markdown.table(head, figures)] if figures else []


def evaluation_rows(evaluation: Evaluation) -> list[dict[str, str]]:
    """A table of the validation text: all of it, then each source's part where there are several."""
    total = Score(evaluation.documents, evaluation.tokens, evaluation.text_bytes, evaluation.nats)
    rows = score_rows([("all", total), *evaluation.sources.items()])
    return [{name: escape(cell) for name, cell in row.items()} for row in rows]  # the UI reads cells as Markdown


def run_page(training: TrainingResult) -> str:
    """Where a run's files are, how to look at them, and its losses."""
    run = Run.open(training.folder)
    losses = (map(figure, row.values()) for row in loss_table(read_metrics(run.metrics)))
    parts = [
        f"# {escape(training.run)}",
        f"Trained to step {training.step:,} on {training.device}. All files of the run are in this folder:",
        fenced(str(run.folder)),
        "TensorBoard shows this run beside others trained with `train.tensorboard`:",
        fenced(f"tensorboard --logdir {shlex.quote(str(run.folder.parent))}"),
        "These commands draw the losses of runs and generate text:",
        fenced(f"lm plot {(folder := shlex.quote(str(run.folder)))}\nlm generate {folder}"),
        "## Losses",
        markdown.table(("step", "tokens", "train", "validation"), losses),
    ]
    return "\n\n".join(parts) + "\n"


def samples_page(found: Report) -> str:
    """What the trained model wrote."""
    return "\n\n".join([f"# Samples of {escape(found.folder.name)}", *map(fenced, found.samples)]) + "\n"


def _ids_and_versions(run: Run) -> dict[str, str]:
    tokenizer = run.tokenizer_info
    seen = tokenizer.seen_bytes / tokenizer.corpus_bytes if tokenizer.corpus_bytes else None
    trained = f", trained on {seen:.1%} of {tokenizer.corpus_bytes:,} bytes" if seen else ""
    return {
        "run": run.folder.name,
        "dataset": str(run.identity["dataset_id"]),
        "tokenizer": f"{tokenizer.id} ({tokenizer.model_type}, {tokenizer.vocab_size:,} pieces{trained})",
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        **{name: version(name) for name in _PACKAGES},
    }
