"""python -m lmcore: one JSON line for programs, one error line for people."""

import json
import os
import pkgutil
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

import lmcore
from lmcore.errors import STOPPED_STATUS
from lmcore.runs.metrics import read_metrics
from lmcore.runs.run import Run, newest_checkpoint, step_of
from lmcore.runs.scores import DocumentScores
from lmcore.store.artifacts import find_artifact
from tests.conftest import Trained, start, wait_for_step, wait_until, write_corpus

KEYS = {
    "run_dir",
    "dataset_id",
    "model_dir",
    "report",
    "step",
    "valid_loss",
    "valid_bits_per_byte",
    "tokens_per_second",
    "warnings",
}
TOML = """
corpus.paths = ["{corpus}"]
tokenizer.vocab_size = 400
dataset.block_size = 16
[model]
layers = 1
width = 16
heads = 2
[train]
max_steps = 100
batch_size = 4
"""


@pytest.fixture
def settings(corpus: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TOML.format(corpus=corpus))
    return path


def call(*arguments: object) -> tuple[int, list[str], list[str]]:
    """Exit status and the lines of standard output and error of ``python -m lmcore``."""
    with start("-m", "lmcore", *arguments) as process:
        output, errors = process.communicate()
    return process.returncode, output.splitlines(), errors.splitlines()


def assert_fails(status: int, error: str, *arguments: object) -> None:
    """One line on standard error says what is wrong; nothing is printed."""
    found, output, errors = call(*arguments)
    assert (found, output) == (status, []), errors
    assert error in errors[-1]
    assert errors[-1].startswith("error: ")
    assert not any("Traceback" in line for line in errors)


def test_pretrain_makes_everything_and_a_second_call_finds_it(settings: Path, tmp_path: Path) -> None:
    command = ("pretrain", "--config", settings, "--train.max_steps", 6, "--store", tmp_path / "store")
    status, output, errors = call(*command)
    assert status == 0, errors
    result: dict[str, Any] = json.loads(output[-1])
    assert result.keys() == KEYS
    assert result["step"] == 6
    run = Path(result["run_dir"])
    assert Path(result["model_dir"]) == run / "model"
    assert Path(result["report"]) == run / "report.md"
    assert (run / "model" / "model.safetensors").exists()
    checkpoint = run / "checkpoints" / "step-00000006" / "manifest.json"
    before = checkpoint.stat().st_ino, checkpoint.stat().st_mtime_ns
    status, output, errors = call(*command)
    assert (status, json.loads(output[-1])) == (0, result)
    assert not any("parameters on" in line for line in errors)
    assert (checkpoint.stat().st_ino, checkpoint.stat().st_mtime_ns) == before


def only_run(store: Path) -> Run:
    [folder] = (store / "runs").iterdir()
    return Run.open(folder)


@pytest.mark.parametrize(("module", "nproc"), [("lmcore pretrain", 1), ("lmcore pretrain", 2), ("flows.pretrain", 1)])
def test_sigterm_amid_training_saves_and_the_status_says_so(
    settings: Path, tmp_path: Path, module: str, nproc: int
) -> None:
    store = tmp_path / "store"
    flags = ("--config", settings, "--store", store, "--train.nproc", nproc, "--train.device", "cpu")
    flags += ("--train.max_steps", 1_000_000, "--train.log_every", 1, "--train.checkpoint_every", 1_000_000)
    flags += ("--train.validate_every", 1_000_000)
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect")}
    with start("-m", *module.split(), *flags, env=environment) as process:
        wait_until(lambda: process.poll() is not None or any(store.glob("runs/*/metrics.jsonl")), "a run", seconds=180)
        wait_for_step(only_run(store), 3, process)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
    assert process.returncode == STOPPED_STATUS, errors
    assert "interrupted: the same command continues" in errors
    run = only_run(store)
    newest = newest_checkpoint(run.checkpoints)
    assert newest is not None
    assert step_of(newest) == read_metrics(run.metrics)[-1]["step"] < 1_000_000


def test_a_training_whose_time_is_up_says_so_by_its_status(settings: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    flags = ("--config", settings, "--store", store, "--train.max_steps", 1_000_000, "--train.max_minutes", 0.01)
    status, output, errors = call("pretrain", *flags)
    assert (status, output) == (STOPPED_STATUS, []), errors
    assert re.match(r"training stopped after 0.01 minutes after step \d+ of 1000000, checkpoint saved", errors[-1])
    assert newest_checkpoint(only_run(store).checkpoints) is not None


def test_prepare_data_prints_the_ids(settings: Path, tmp_path: Path) -> None:
    status, output, errors = call("prepare", "--config", settings, f"--store={tmp_path / 'store'}")
    assert status == 0, errors
    ids = json.loads(output[-1])
    assert (ids["skipped_bytes"], ids["unaccounted_bytes"]) == (0, 0)
    assert any(re.fullmatch(r"[\d,]+ bytes of text read, 0 unaccounted", line) for line in errors)
    assert ids["warnings"] == []  # the lines stand alone, so nothing is wrong
    [line] = [line for line in errors if line.startswith("documents that are lines average 19 tokens, as in ")]
    assert "text.txt: a model forgets at the end of each" in line
    assert "documents of plain text (corpus.document = auto): lines in 1 file (text.txt)" in errors
    assert (tmp_path / "store" / "datasets" / ids["dataset_id"] / "manifest.json").exists()
    assert (tmp_path / "store" / "tokenizers" / ids["tokenizer_id"]).exists()


def test_what_was_lost_is_said(settings: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new\nline"
    write_corpus(folder, documents=200)
    (folder / "bad.txt").write_bytes(b"\xff\n" * 9000)
    (folder / "picture.png").write_bytes(b"")
    command = ("--config", settings, "--corpus.sources", f"bad={folder / 'bad.txt'}", "--store", tmp_path / "store")
    status, output, errors = call("prepare", "--corpus.paths", folder, *command)
    assert status == 0, errors
    assert "files beside them that match no pattern of corpus.include: 1 .png" in errors
    assert any("9,000 of them skipped (pieces and whole files: 9,000 invalid_utf8)" in line for line in errors)
    figures = json.loads(output[-1])
    lost, cause = figures["warnings"]
    assert re.fullmatch(
        r"22\.8% of the corpus could not be used: 9,000 of [\d,]+ bytes of the text that was read\. "
        rf"`lm ledger {figures['dataset_id']}` lists every file",
        lost,
    )
    assert re.fullmatch(r"9,000 invalid_utf8 in '.*bad\.txt'", cause)
    assert errors[-2:] == [lost, cause]
    assert figures["skipped_bytes"] == 9000
    status, output, errors = call("ledger", figures["dataset_id"], "--store", tmp_path / "store")
    assert status == 0, errors
    assert [line.split()[-1].rpartition("/")[2] for line in output[1:3]] == [r"bad.txt'", r"text.txt'"]


def test_ctrl_c_keeps_the_finished_chunks_and_the_same_command_does_the_rest(settings: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    larger = write_corpus(tmp_path / "corpus", documents=3_000)
    command = ("prepare", "--config", settings, "--corpus.paths", larger, "--corpus.chunk_bytes", 1000)
    command += ("--store", store)

    def chunks() -> dict[str, int]:
        return {path.name: path.stat().st_ino for path in store.glob("shards/[!.]*")}

    with start("-m", "lmcore", *command, start_new_session=True) as process:
        wait_until(lambda: len(chunks()) > 5, "chunks")
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate()
    assert (process.returncode, output, errors.splitlines()[-1]) == (130, "", "interrupted: the same command continues")
    assert "Traceback" not in errors
    done = chunks()
    assert all(find_artifact(store / "shards" / name) for name in done)
    assert not list(store.rglob(".tmp-*"))
    assert not (store / "datasets").exists()
    status, output_lines, errors_lines = call(*command)
    assert status == 0, errors_lines
    manifest = store / "datasets" / json.loads(output_lines[-1])["dataset_id"] / "manifest.json"
    assert len(json.loads(manifest.read_text())["chunks"]) > 2 * len(done)
    assert chunks().items() > done.items(), "what was done is not done again"


def test_an_unknown_verb_gets_a_suggestion() -> None:
    assert_fails(2, 'Did you mean "pretrain"?', "pretrian")


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_help_is_no_error(words: list[str]) -> None:
    status, output, errors = call(*words)
    assert (status, errors) == (0, [])
    assert "python -m lmcore COMMAND" in output[0]
    assert any("pretrain" in line for line in output)


def test_help_shows_what_most_people_set_and_help_all_the_rest() -> None:
    few, every = ("\n".join(call("pretrain", flag)[1]) for flag in ("--help", "--help-all"))
    assert "--train.max-steps" in few
    assert "--train.beta2" not in few
    assert "--help-all" in few
    assert "--train.beta2" in every
    assert 20 <= len(re.findall(r"^│ --", few, re.MULTILINE)) <= 30


@pytest.mark.parametrize(
    ("status", "error", "flags"),
    [
        (2, "Did you mean --train.learning-rate?", ["--train.learning_rat", "1"]),
        (1, "error: --train.max-steps: 'many' is not a whole number", ["--train.max_steps", "many"]),
        (1, "error: model: width 16 is not a multiple of heads 3", ["--model.width=16", "--model.heads=3"]),
        (1, "nowhere.toml is neither a file in", ["--config", "nowhere.toml"]),
        (2, "texts: there is no such argument", ["texts"]),
    ],
)
def test_bad_flags_are_named(status: int, error: str, flags: list[str]) -> None:
    assert_fails(status, error, "pretrain", *flags)


def test_a_corpus_smaller_than_a_block_is_one_line(settings: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    command = ("pretrain", "--config", settings, "--store", store, "--dataset.block_size", 100_000)
    assert_fails(1, "error: the corpus is smaller than one block: ", *command)
    assert not list(store.glob("runs/*"))


def test_training_what_is_no_run_is_one_line(tmp_path: Path) -> None:
    assert_fails(1, "is not a run", "train", tmp_path)


def test_generate_continues_every_prompt(trained: Trained, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("東京\ndata\n")
    run = trained.run.folder
    command = ("generate", "--prompt", "学習", "--prompt=", "--prompts-file", file, "--tokens", 5, "--temperature", 0)
    status, output, errors = call(*command, run.name, "--store", run.parents[1])
    assert status == 0, errors
    result = json.loads(output[-1])
    assert [sample["prompt"] for sample in result["samples"]] == ["学習", "", "東京", "data"]
    assert all(sample["text"].startswith(sample["prompt"]) for sample in result["samples"])
    assert "\n\n".join(sample["text"] for sample in result["samples"]) == "\n".join(output[:-1])


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        ("holds no model: it is neither a run", [".", "--tokens", "3"]),
        ("--tokens: '0' is out of range: it must be at least 1", [".", "--tokens", "0"]),
        ("--top-p: 'most' is not a number", [".", "--top_p", "most"]),
        ("--prompts-file nowhere.txt: [Errno 2]", [".", "--prompts-file", "nowhere.txt"]),
    ],
)
def test_generating_from_what_is_wrong_is_one_line(error: str, arguments: list[str], tmp_path: Path) -> None:
    assert_fails(1, error, "generate", *arguments, "--store", tmp_path)


def test_evaluate_scores_a_model_on_old_and_new_text(trained: Trained, tmp_path: Path) -> None:
    text = write_corpus(tmp_path / "more", documents=30, seed=5)
    dataset, store = trained.run.identity["dataset_id"], trained.run.store
    flags = ["--corpus", text, "--dataset", dataset, "--out", tmp_path / "scores.arrow", "--store", store]
    status, output, errors = call("evaluate", trained.run.folder.name, *flags)
    assert status == 0, errors
    figures = json.loads(output[-1])
    old, new = figures["groups"]["old"], figures["groups"]["new"]
    assert old["bits_per_byte"] == pytest.approx(trained.evaluation.bits_per_byte, rel=1e-5)
    assert new["documents"] == 30
    assert set(figures["sources"]) == {"corpus", str(text)}
    assert [line.split()[0] for line in output[:-1]] == ["text", "all", "new", "old", str(text), "corpus"]
    scores = DocumentScores.load(tmp_path / "scores.arrow")
    assert scores.fingerprint == figures["fingerprint"]
    assert scores.total.bits_per_byte == figures["bits_per_byte"]


def test_evaluating_on_a_dataset_that_is_not_there_is_one_line(trained: Trained) -> None:
    assert_fails(1, "there is no dataset or folder named none", "evaluate", trained.run.folder, "--dataset", "none")
    assert_fails(1, "no text to score: '' is not a model with a champion", "evaluate", trained.run.folder)


def test_plot_draws_runs_by_name_and_by_folder(trained: Trained, tmp_path: Path) -> None:
    copy = shutil.copytree(trained.run.folder, tmp_path / "学習")
    command = ("plot", trained.run.folder.name, copy, "--store", trained.run.store, "--out", tmp_path / "losses.png")
    status, output, errors = call(*command)
    assert status == 0, errors
    picture = tmp_path / "losses.png"
    assert json.loads(output[-1]) == {"picture": str(picture), "runs": [trained.run.folder.name, str(copy)]}
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert not any("Warning" in line for line in errors)
    assert_fails(1, "has no losses to draw", "plot", tmp_path)
    missing = tmp_path / "nowhere"
    assert_fails(1, f"there is no folder {missing}. Make it first", "plot", copy, "--out", missing / "losses.png")


_IMPORT = "import sys, importlib; [importlib.import_module(name) for name in sys.argv[1:]]; print(*sys.modules)"


def test_no_module_of_lmcore_knows_prefect() -> None:
    names = [
        module.name for module in pkgutil.walk_packages(lmcore.__path__, "lmcore.") if "__main__" not in module.name
    ]
    assert "lmcore.training.train" in names
    with start("-c", _IMPORT, *names) as process:
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    modules = output.split()
    assert set(names) <= set(modules)
    assert not {"prefect", "tasks", "flows", "deployments"} & set(modules)


@pytest.mark.parametrize("module", ["lmcore.settings.config", "lmcore.errors", "lmcore.__main__"])
def test_settings_and_help_need_no_torch(module: str) -> None:
    with start("-c", _IMPORT, module) as process:
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert not {"torch", "transformers", "pyarrow"} & set(output.split())


@pytest.mark.parametrize("module", ["lmcore.retraining.gate", "flows.pretrain", "flows.retrain", "flows.actions"])
def test_deciding_and_starting_need_no_torch(module: str) -> None:
    with start("-c", _IMPORT, module) as process:
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert module in output.split()
    assert not {"torch", "transformers", "matplotlib"} & set(output.split())
