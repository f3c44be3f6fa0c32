"""The page says what is in the run, whatever the model writes into it."""

import json
import re
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

import lmcore.model.generate
import lmcore.report.report
from lmcore.dataset.mixture import Blocks
from lmcore.errors import StoreError
from lmcore.model.generate import write_texts
from lmcore.report.data_report import data_page, data_sections, tokenizer_page
from lmcore.report.report import Report, evaluation_rows, report, run_page, samples_page
from lmcore.runs.metrics import Row, read_metrics
from lmcore.runs.scores import Score
from lmcore.settings.config import SampleConfig
from lmcore.store.artifacts import manifest_bytes, read_manifest
from tests.conftest import Prepared, Trained, train_and_evaluate

SAMPLE = SampleConfig(prompts=[""], tokens=20)


@pytest.fixture
def own(prepared: Prepared) -> Trained:
    """A finished run of the test's own."""
    return train_and_evaluate(prepared, prepared.run())


@pytest.fixture(scope="module")
def page(trained: Trained) -> Report:
    return report(trained.training, trained.evaluation, trained.blocks, SAMPLE, write_texts)


def test_the_page_has_the_figures_of_the_run(trained: Trained, page: Report) -> None:
    text = page.markdown()
    assert text.startswith(f"# {trained.run.folder.name}\n")
    for figure in (
        f"| validation loss | {trained.evaluation.nats_per_token:.4f} nats per token |",
        f"| bits per byte | {trained.evaluation.bits_per_byte:.4f} |",
        "| steps | 20 of 4 blocks of 16 tokens |",
        f"| dataset | {trained.run.identity['dataset_id']} |",
        "| **unaccounted** | **0** |",
    ):
        assert figure in text.splitlines() or f"{figure} |" in text, figure
    assert all(sample in text for sample in page.samples)
    assert "![loss](report.png)" in text


def test_a_run_whose_losses_are_lost_has_a_page(own: Trained) -> None:
    own.run.metrics.unlink()
    assert "(0.00 epochs)" in report(own.training, own.evaluation, own.blocks, SAMPLE, write_texts).markdown()


def test_sources_have_their_counts_and_losses_on_the_page(mixed: Prepared) -> None:
    found = train_and_evaluate(mixed, mixed.run(dataset={"weights": {"web": 1, "wiki": 3}, "packing": "best_fit"}))
    text = report(found.training, found.evaluation, found.blocks, SAMPLE, write_texts).markdown()
    assert "% are padding." in text
    for name, share in (("web", "25."), ("wiki", "75.")):
        source, score = found.blocks.sources[name], found.evaluation.sources[name]
        counts = f"| {name} | {source.documents:,} | {source.tokens:,} | {source.text_bytes:,} | "
        share_in_page = text.split(counts)[1].split("%")[0]
        assert float(share_in_page) == pytest.approx(float(share), abs=0.2)
        losses = f"{score.nats_per_token:.4f} | {score.perplexity:,.2f} | {score.bits_per_byte:.4f} |"
        assert f"| {name} | {score.documents} | {score.text_bytes:,} | {score.tokens:,} | {losses}" in text


def test_the_picture_is_a_png_and_can_stand_in_the_page(page: Report) -> None:
    image = matplotlib.image.imread(BytesIO(page.picture.read_bytes()), format="png")
    assert image.shape[:2] == (495, 880)
    assert image.std() > 0.01
    inline = page.markdown(inline_picture=True)
    assert "(report.png)" not in inline
    assert "(data:image/png;base64,iVBORw0KGgo" in inline


def fence_of(text: str) -> str:
    return text.split("## Samples\n\n")[1].splitlines()[0].removesuffix("text")


@pytest.mark.parametrize("sample", ["", "```", "a ```` b\n``````\n```", "| a | b |\n# no heading", "</s>\n学習"])
def test_a_sample_cannot_leave_its_fence(own: Trained, monkeypatch: pytest.MonkeyPatch, sample: str) -> None:
    monkeypatch.setattr(lmcore.model.generate, "generate", lambda *_: [sample])
    text = report(own.training, own.evaluation, own.blocks, SAMPLE, write_texts).markdown()
    fence = fence_of(text)
    assert len(fence) > max((len(run) for run in re.findall("`+", sample)), default=2)
    assert f"\n{fence}text\n{sample}\n{fence}\n" in text


def test_a_report_is_written_once(trained: Trained, page: Report) -> None:
    before = page.path.stat().st_mtime_ns
    assert report(trained.training, trained.evaluation, trained.blocks, SAMPLE, write_texts) == page
    assert page.path.stat().st_mtime_ns == before


def test_another_sample_is_another_report(own: Trained) -> None:
    first, second = (
        report(own.training, own.evaluation, own.blocks, SampleConfig(tokens=20, prompts=prompts), write_texts)
        for prompts in (["学習"], ["学習", "東京"])
    )
    assert first.samples == second.samples[:1]
    assert second.samples[1].startswith("東京")
    assert "Prompt `'東京'`" in second.markdown()


def test_the_page_tells_the_course_of_the_training(own: Trained) -> None:
    losses = [(4.0, 4.0), (3.5, 3.8), (3.2, 3.9), (3.0, 4.0), (2.8, 4.1), (2.6, 4.2)]
    rows: list[Row] = [{**read_metrics(own.run.metrics)[-1], "kind": "event", "step": 3, "text": "a | spike"}]
    for step, (train, validation) in enumerate(losses, 1):
        place = {"step": step, "tokens": step * 64, "epoch": 0.5}
        rows.append({**place, "kind": "train", "loss": train, "mfu": 0.4, "skipped": 1})
        rows.append({**place, "kind": "validation", "loss": validation, "sources": {"web": 3.25, "wiki": validation}})
    own.run.metrics.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    samples = [{"step": step, "prompt": prompt, "text": f"{prompt}{step}"} for step in range(1, 7) for prompt in "ab"]
    own.run.samples.write_text("".join(f"{json.dumps(row)}\n" for row in samples))
    page = report(own.training, own.evaluation, own.blocks, SAMPLE, write_texts)
    text = page.markdown()
    assert "**Warning:** overfitting: from step 4 to 6 the validation loss rose by 0.20" in text
    assert [f"**Warning:** {warning}." in text for warning in page.warnings] == [True]
    assert "| MFU | 40.0% of the stated peak |" in text
    assert "## Events\n\n| step | event |\n| --- | --- |\n| 3 | a \\| spike |" in text
    assert re.findall(r"Step (\d):\n\n```text\na\1\n```", text) == ["3", "4", "5"]
    assert own.training.step == 6


def test_a_source_that_nobody_validates_is_a_warning(mixed: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    found = train_and_evaluate(mixed, mixed.run())
    assert "Warning" not in report(found.training, found.evaluation, found.blocks, SAMPLE, write_texts).markdown()
    monkeypatch.setattr(
        lmcore.report.report, "source_names", lambda _, split: ["web", "wiki"][: 1 + (split == "train")]
    )
    other = SampleConfig(tokens=1)
    assert (
        "document is of the source wiki"
        in report(found.training, found.evaluation, found.blocks, other, write_texts).markdown()
    )


def edit(page: Report) -> None:
    page.path.write_text(page.path.read_text() + "better than it is\n")


def edit_picture(page: Report) -> None:
    page.picture.write_bytes(page.picture.read_bytes() + b"x")


def remove_page(page: Report) -> None:
    page.path.unlink()


def remove_record(page: Report) -> None:
    (page.folder / "report.json").unlink()


@pytest.mark.parametrize("change", [edit, edit_picture, remove_page, remove_record])
def test_an_edited_report_is_noticed_and_written_again(own: Trained, change: Any) -> None:
    page = report(own.training, own.evaluation, own.blocks, SAMPLE, write_texts)
    page.verify()
    text, picture = page.path.read_bytes(), page.picture.read_bytes()
    change(page)
    with pytest.raises(StoreError):
        page.verify()
    report(own.training, own.evaluation, own.blocks, SAMPLE, write_texts).verify()
    assert (page.path.read_bytes(), page.picture.read_bytes()) == (text, picture)


MANIFEST = {
    "splits": {
        "train": {"documents": 1200, "tokens": 345678, "text_bytes": 1234567},
        "validation": {"documents": 60, "tokens": 17000, "text_bytes": 61000},
    },
    "chunks": [
        {"train": {"longest_bytes": 9000}, "validation": {"longest_bytes": 100}},
        {"train": {"longest_bytes": 20}, "validation": {"longest_bytes": 12345}},
    ],
    "ledger": {
        "source_bytes": 1300000,
        "document_bytes": 1295567,
        "separator_bytes": 4400,
        "skipped": {"not UTF-8": {"pieces": 2, "bytes": 33}},
        "unaccounted_bytes": 0,
        "stored_bytes": 400000,
        "undecodable_stored_bytes": 77,
        "normalized_documents": 12,
        "dropped": {"duplicate": {"documents": 2, "bytes": 45}},
    },
}


def test_the_data_sections_are_the_golden_ones(check_golden: Any) -> None:
    blocks = Blocks(block_size=256, train_blocks=1350, tail_tokens=77)
    check_golden("data_sections.md", "\n\n".join(data_sections(MANIFEST, blocks)) + "\n")


def test_the_keys_of_the_golden_manifest_are_those_of_a_real_one(prepared: Prepared) -> None:
    text = data_page(prepared.dataset)
    manifest = json.loads((prepared.dataset.folder / "manifest.json").read_text())
    assert manifest["splits"].keys() == MANIFEST["splits"].keys()
    assert set(MANIFEST["ledger"]) <= set(manifest["ledger"])
    assert text.startswith(f"# Dataset {prepared.dataset.id}\n")
    assert "| **unaccounted** | **0** |" in text


def test_a_missing_run_leaves_no_report(tmp_path: Path) -> None:
    assert Report.load(tmp_path) is None


def test_the_page_of_a_dataset_counts_its_sources(mixed: Prepared) -> None:
    text = data_page(mixed.dataset)
    rows = [line.split(" | ") for line in text[text.index("## Sources") :].splitlines() if line.startswith("| w")]
    assert [row[0] for row in rows] == ["| web", "| wiki"]
    totals = [sum(int(row[column].strip(" |").replace(",", "")) for row in rows) for column in (2, 3)]
    dataset = mixed.dataset
    assert totals == [dataset.documents + dataset.validation_documents, dataset.tokens + dataset.validation_tokens]


def test_files_of_a_chunk_that_was_split_by_age_count_for_both_sources(mixed: Prepared, tmp_path: Path) -> None:
    manifest = read_manifest(mixed.dataset.folder)
    new = [{**chunk, "source": f"{chunk['source']} (new)", "spans": []} for chunk in manifest["chunks"]]
    (tmp_path / "manifest.json").write_bytes(manifest_bytes({**manifest, "chunks": [*manifest["chunks"], *new]}))
    text = data_page(mixed.dataset.model_copy(update={"folder": tmp_path}))
    rows = [line.split(" | ") for line in text[text.index("## Sources") :].splitlines() if line.startswith("| w")]
    assert [row[0] for row in rows] == ["| web", "| web (new)", "| wiki", "| wiki (new)"]
    assert [row[1] for row in rows] == ["1"] * 4


def test_the_page_of_a_tokenizer_says_what_it_is_and_how_it_fits(prepared: Prepared) -> None:
    text = tokenizer_page(prepared.dataset)
    assert text.startswith(f"# Tokenizer {prepared.tokenizer.id}\n")
    assert f"| seen bytes | {prepared.tokenizer.seen_bytes:,} |" in text
    assert f"| vocab size | {prepared.tokenizer.vocab_size} |" in text
    assert "| vocabulary in use | " in text


def test_the_page_of_a_run_says_where_it_is(trained: Trained) -> None:
    text = run_page(trained.training)
    assert f"\n{trained.run.folder}\n" in text
    assert f"tensorboard --logdir {trained.run.folder.parent}\n" in text
    assert "| 20 | " in text


def test_the_evaluation_has_a_row_for_all_text_and_for_each_source(trained: Trained) -> None:
    score = Score(documents=1000, tokens=2000, text_bytes=10, nats=2000.0)
    first, *others = evaluation_rows(trained.evaluation.model_copy(update={"sources": {"web": score}}))
    assert first["nats per token"] == f"{trained.evaluation.nats_per_token:.4f}"
    assert [(row["text"], row["documents"], row["perplexity"]) for row in others] == [("web", "1,000", "2.72")]


def test_the_page_of_samples_cannot_be_broken_by_them(tmp_path: Path) -> None:
    found = Report(folder=tmp_path / "run", about="", samples=["a ```` b", "# c"], warnings=[], hashes={})
    assert samples_page(found) == "# Samples of run\n\n`````text\na ```` b\n`````\n\n```text\n# c\n```\n"


PAGE_WITHOUT_TORCH = """
import json, sys
from pathlib import Path
import lmcore.retraining.challenge
import lmcore.retraining.gate
from lmcore.dataset.mixture import Blocks
from lmcore.report.report import report
from lmcore.runs.run import TrainingResult
from lmcore.runs.scores import Evaluation
from lmcore.settings.config import SampleConfig

folder, blocks = Path(sys.argv[1]), Blocks.model_validate_json(sys.argv[2])
records = TrainingResult.load(folder), Evaluation.load(folder)
page = report(*records, blocks, SampleConfig(prompts=["a"]), lambda *_: ["a text"])
assert "a text" in page.markdown()
print(json.dumps(sorted({"torch", "transformers"} & {*sys.modules})))
"""


def test_pages_and_gate_do_without_torch(own: Trained) -> None:
    command = [sys.executable, "-c", PAGE_WITHOUT_TORCH, str(own.run.folder), own.blocks.model_dump_json()]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "[]\n"
