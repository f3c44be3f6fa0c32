"""A finished run as a page for people: report.md and report.png."""

import base64
import logging
import platform
import re
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

from lmcore.checkpoint import trained_model
from lmcore.config import SampleConfig, fingerprint
from lmcore.dataset import Blocks, SourceCounts
from lmcore.device import choose_device
from lmcore.errors import StoreError
from lmcore.evaluate import Evaluation, Score
from lmcore.generate import generate
from lmcore.metrics import Row, read_metrics
from lmcore.run import Run
from lmcore.store import Record, hash_file, read_manifest, write_file
from lmcore.tokenization import Dataset
from lmcore.tokenizer_report import dataset_report
from lmcore.train import TrainingResult

logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it announces its font cache otherwise
_PACKAGES = ("torch", "transformers", "sentencepiece", "pyarrow", "numpy")


class Report(Record):
    """The report of a run, and the sample in it."""

    file_name = "report.json"
    about: str
    """Fingerprint of the training, the evaluation and the sample's settings."""
    sample: str
    hashes: dict[str, str]
    """Of report.md and report.png."""

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
        """The page; with its picture inside it, for places that cannot reach the file."""
        text = self.path.read_text(encoding="utf-8")
        if inline_picture:
            data = base64.b64encode(self.picture.read_bytes()).decode()
            text = text.replace("(report.png)", f"(data:image/png;base64,{data})", 1)
        return text


def report(training: TrainingResult, evaluation: Evaluation, blocks: Blocks, settings: SampleConfig) -> Report:
    """Write a sample, the loss picture and the page, or return what is there for this very step."""
    run = Run.open(training.folder)
    found, about = Report.load(run.folder), report_key(training, evaluation, blocks, settings)
    if found is not None and found.about == about and _hashes(run.folder) == found.hashes:
        return found
    rows = read_metrics(run.metrics)
    sample = _sample(run, training, settings)
    write_file(run.folder / "report.png", loss_picture(rows, training.run))
    page = _page(run, training, evaluation, blocks, rows, (settings, sample))
    write_file(run.folder / "report.md", page.encode())
    return Report(
        folder=run.folder,
        about=about,
        sample=sample,
        hashes=_hashes(run.folder),
    ).save()


def report_key(training: TrainingResult, evaluation: Evaluation, blocks: Blocks, settings: SampleConfig) -> str:
    """Names everything that a report says, the dataset's ledger included."""
    ledger = read_manifest(Run.open(training.folder).dataset_folder)["ledger"]
    return fingerprint(ledger, *(part.model_dump(mode="json") for part in (training, evaluation, blocks, settings)))


def loss_table(rows: list[Row], most: int = 50) -> list[dict[str, Any]]:
    """At most ``most`` rows of step, tokens and losses, spread evenly to the last; every validation if they fit."""
    validations = {row["step"]: row["loss"] for row in rows if row["kind"] == "validation"}
    trains = {row["step"]: row for row in rows if row["kind"] == "train"}
    steps = sorted(trains.keys() | validations.keys())
    if len(steps) > most:
        steps = [step for step in steps if step in validations] or steps
    stride = -(-len(steps) // most) or 1
    tokens = {row["step"]: row["tokens"] for row in rows}
    return [
        {
            "step": step,
            "tokens": tokens[step],
            "train loss": _rounded(trains.get(step, {}).get("loss")),
            "validation loss": _rounded(validations.get(step)),
        }
        for step in reversed(steps[::-1][::stride])
    ]


def _rounded(value: float | None) -> float | str:
    return "" if value is None else round(value, 4)


def loss_picture(rows: list[Row], title: str) -> bytes:
    """Training and validation loss against tokens, as PNG. Texts in it are ASCII."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    for kind, style, color in (("train", "-", "#7da7d9"), ("validation", "o-", "#c0392b")):
        points = [(row["tokens"], row["loss"]) for row in rows if row["kind"] == kind]
        if points:
            tokens, losses = zip(*points, strict=True)
            axes.plot(tokens, losses, style, color=color, label=kind, markersize=4, linewidth=1.4)
    axes.set_xlabel("tokens trained on")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title(title.encode("ascii", "replace").decode(), fontsize=10)
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    axes.grid(alpha=0.25)
    if rows:
        axes.legend()
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _short(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _sample(run: Run, training: TrainingResult, settings: SampleConfig) -> str:
    model = trained_model(run, training.checkpoint)
    model.to(choose_device(run.config.train.device))
    return generate(model, run.tokenizer(), settings, run.config.dataset.block_size)


def _hashes(folder: Path) -> dict[str, str]:
    names = ("report.md", "report.png")
    return {name: hash_file(folder / name) for name in names if (folder / name).exists()}


def _page(
    run: Run,
    training: TrainingResult,
    evaluation: Evaluation,
    blocks: Blocks,
    rows: list[Row],
    sample: tuple[SampleConfig, str],
) -> str:
    model, settings = run.config.model, run.config.train
    drawn, text = sample
    manifest = read_manifest(run.dataset_folder)
    summary = {
        "validation loss": f"{evaluation.nats_per_token:.4f} nats per token",
        "perplexity": f"{evaluation.perplexity:.2f}",
        "bits per byte": f"{evaluation.bits_per_byte:.4f}",
        "training loss": f"{training.train_loss:.4f} nats per token (last {settings.log_every} steps)",
        "model": f"{model.architecture}, {model.layers} layers, {model.width} wide, {model.heads} heads",
        "parameters": f"{training.parameters:,} ({training.trainable_parameters:,} trained)",
        "steps": f"{training.step:,} of {settings.batch_size} blocks of {blocks.block_size} tokens",
        "tokens trained on": f"{training.tokens:,} ({rows[-1]['epoch']:.2f} epochs)",
        "throughput": f"{training.tokens_per_second:,.0f} tokens/s on {training.device} in {training.precision}",
    }
    parts = [
        f"# {training.run}",
        _table(("result", ""), summary.items()),
        "![loss](report.png)",
        "## Sample",
        _fenced(text),
        f"Prompt {drawn.prompt!r}, temperature {drawn.temperature:g}, top-k {drawn.top_k}, seed {drawn.seed}.",
        "## Losses",
        _table(("step", "tokens", "train", "validation"), (row.values() for row in loss_table(rows, 12))),
        *_source_losses(evaluation.sources),
        "## Data",
        *data_sections(manifest, blocks),
        "## Made with",
        _table(("", ""), _ids_and_versions(run).items()),
    ]
    return "\n\n".join(parts) + "\n"


def _source_losses(scores: dict[str, Score]) -> list[str]:
    head = ("validation of", "documents", "tokens", "nats per token", "bits per byte")
    figures = [
        (name, f"{score.documents:,}", f"{score.tokens:,}", f"{score.nats_per_token:.4f}", f"{score.bits_per_byte:.4f}")
        for name, score in scores.items()
    ]
    return [_table(head, figures)] if figures else []


def data_page(dataset: Dataset) -> str:
    """The dataset and its byte ledger as a page of its own."""
    parts = [f"# Dataset {dataset.id}", *data_sections(read_manifest(dataset.folder))]
    parts.append(
        f"{dataset.chunks_made} of {dataset.chunks} chunks were new; "
        f"{dataset.duplicate_documents:,} documents stand in it more than once; tokenizer {dataset.tokenizer_id}."
    )
    parts.append(dataset_report(dataset.folder, dataset.tokenizer_id).markdown())
    return "\n\n".join(parts) + "\n"


def data_sections(manifest: dict[str, Any], blocks: Blocks | None = None) -> list[str]:
    """The dataset and its byte ledger as markdown."""
    ledger = manifest["ledger"]
    splits = manifest["splits"]
    longest = max(c[split]["longest_bytes"] for c in manifest["chunks"] for split in splits)
    counts = [(name, *(f"{split[key]:,}" for key in split)) for name, split in splits.items()]
    account: list[tuple[str, str]] = [
        ("read", f"{ledger['source_bytes']:,}"),
        ("in documents", f"{ledger['document_bytes']:,}"),
        ("separators", f"{ledger['separator_bytes']:,}"),
        *([("filtered", f"{ledger['filtered_bytes']:,}")] if ledger.get("filtered_bytes") else []),
        *(
            (f"skipped: {reason} ({row['pieces']:,} pieces)", f"{row['bytes']:,}")
            for reason, row in ledger["skipped"].items()
        ),
        ("**unaccounted**", f"**{ledger['unaccounted_bytes']:,}**"),
    ]
    sections = [
        _table(("split", "documents", "tokens", "bytes of text"), counts),
        f"Longest document {longest:,} bytes; {len(manifest['chunks'])} chunks; "
        f"{ledger['stored_bytes']:,} bytes on disk.",
        _table(("bytes", ""), account),
    ]
    for reason, row in ledger["dropped"].items():
        sections.append(f"{row['documents']:,} documents ({row['bytes']:,} bytes) were left out: {reason}.")
    if ledger["normalized_documents"]:
        sections.append(f"{ledger['normalized_documents']:,} documents were changed by Unicode normalization.")
    if ledger["undecodable_stored_bytes"]:
        sections.append(f"{ledger['undecodable_stored_bytes']:,} compressed bytes could not be unpacked.")
    if blocks is not None:
        rest = (
            f"{blocks.padding:.2%} are padding."
            if blocks.padding
            else f"{blocks.tail_tokens} tokens at the end fill none."
        )
        sections.append(f"{blocks.train_blocks:,} training blocks of {blocks.block_size} tokens; {rest}")
        if len(blocks.sources) > 1:
            head = ("source", "documents", "tokens", "bytes of text", "share of training")
            sections.append(_table(head, (_source_row(name, row) for name, row in blocks.sources.items())))
    return sections


def _source_row(name: str, source: SourceCounts) -> tuple[str, ...]:
    return (name, f"{source.documents:,}", f"{source.tokens:,}", f"{source.text_bytes:,}", f"{source.share:.1%}")


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


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _fenced(text: str) -> str:
    """A code block whose fence is longer than any run of backticks in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
