"""The page of a retraining: what it compared and what it decided."""

from collections.abc import Iterator
from pathlib import Path

from lmcore import markdown
from lmcore.dataset.manifest import Dataset
from lmcore.registry.versions import Version
from lmcore.report.plots import comparison_picture
from lmcore.retraining.gate import Decision
from lmcore.retraining.new_documents import NewDocuments
from lmcore.settings.retraining import RetrainConfig


def retraining_page(
    config: RetrainConfig,
    verdict: str,
    champion: Version | None,
    dataset: Dataset,
    news: NewDocuments | None,
    decision: Decision | None = None,
    run_folder: Path | None = None,
) -> str:
    """The page as Markdown, with an embedded picture of the comparison. ``champion`` is the one before the decision."""
    decided, _, reasons = verdict.partition(": ")
    parts = [f"# {config.retraining.model_name}: {decided}", markdown.escape(reasons)]
    best = "none yet" if champion is None else f"{champion}, trained on dataset {champion.dataset.name}"
    looked_at = [("corpus", dataset.ledger_summary()), ("dataset", dataset.id), ("champion", best)]
    parts.append(markdown.table(("looked at", ""), [*looked_at, *_news(config, news)]))
    if decision is not None:
        parts += _decided(decision)
    if run_folder is not None:
        parts.append(f"The run and its report: {markdown.code(str(run_folder))}")
    return "\n\n".join(parts) + "\n"


def _news(config: RetrainConfig, news: NewDocuments | None) -> Iterator[tuple[str, str]]:
    if news is None:
        return
    yield "new training text", f"{news.new_bytes:,} bytes in {news.new_documents:,} documents"
    yield "minimum", f"{config.retraining.min_new_bytes:,} bytes"
    yield "new validation text", f"{news.new_validation_documents:,} documents"
    yield "old training text", f"{news.old_documents:,} documents, {news.gone_documents:,} more are no longer there"


def _decided(decision: Decision) -> Iterator[str]:
    yield markdown.rows_table(decision.rows())
    if decision.comparisons:
        yield "Bits per byte. Below 0 the challenger is better."
        yield markdown.rows_table(decision.comparison_rows())
        yield " ".join(decision.power)
        picture = comparison_picture(decision.comparisons, decision.verdict.partition(":")[0])
        yield markdown.picture("comparison", picture)
