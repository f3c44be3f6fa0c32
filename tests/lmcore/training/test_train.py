"""A training that is stopped, killed or damaged ends with the weights of one that was not."""

import dataclasses
import errno
import json
import math
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

import lmcore.corpus.hash_index
import lmcore.training.plan
import lmcore.training.train
from lmcore.dataset.loader import loader
from lmcore.dataset.mixture import open_blocks
from lmcore.errors import ConfigError, NoSpaceError, RunError, StoppedError, StoreError, TrainingError
from lmcore.model.loss import NextTokenLoss
from lmcore.model.model import new_model
from lmcore.runs.metrics import read_metrics
from lmcore.runs.prepare import run_name
from lmcore.runs.run import Run, TrainingResult, newest_checkpoint, step_of
from lmcore.store.artifacts import read_manifest
from lmcore.store.files import hash_text
from lmcore.store.locks import locked
from lmcore.training.train import train
from lmcore.training.train_step import TrainStep
from lmcore.training.validation import Validation
from tests.benchmarks.kill_training import Train as KilledTraining
from tests.benchmarks.kills import kills
from tests.conftest import Prepared, Trained, start, wait_for_step

STEPS = 24
SETTINGS: dict[str, Any] = {"max_steps": STEPS, "log_every": 5, "validate_every": 6, "checkpoint_every": 4}


@pytest.fixture(scope="module")
def whole(prepared: Prepared) -> Run:
    """A run of ``SETTINGS`` that nothing interrupted."""
    run = prepared.run(**SETTINGS)
    train(run)
    return run


@contextmanager
def stopping_after(steps: int) -> Iterator[Callable[[], bool]]:
    """A request to stop that comes with the end of a step, counted from now. It is asked in validations too."""
    with mock.patch.object(TrainStep, "update", autospec=True, side_effect=TrainStep.update) as update:
        yield lambda: update.call_count == steps


def stop_after(run: Run, step: int) -> None:
    """Train until ``step`` steps are done in all, and stop."""
    expected = pytest.raises(StoppedError, match=f"after step {step} of")
    with stopping_after(step - newest_step(run)) as should_stop, expected:
        train(run, should_stop=should_stop)


def newest_step(run: Run) -> int:
    newest = newest_checkpoint(run.checkpoints)
    return int(newest.name.removeprefix("step-")) if newest else 0


def rows(run: Run) -> list[dict[str, Any]]:
    """Without what a machine measures and a run does not decide."""
    measured = ("tokens_per_second", "memory_bytes", "data_wait_share")
    return [{name: value for name, value in row.items() if name not in measured} for row in read_metrics(run.metrics)]


def assert_same_training(run: Run, other: Run) -> None:
    """Weights, optimizer, random state and rows are equal to the last bit."""
    mine, others = (newest_checkpoint(each.checkpoints) for each in (run, other))
    assert mine is not None
    assert others is not None
    for part in ("model", "optimizer", "random"):
        tensors, other_tensors = (load_file(path / f"{part}.safetensors") for path in (mine, others))
        assert tensors.keys() == other_tensors.keys()
        assert all(torch.equal(tensors[name], other_tensors[name]) for name in tensors), part
    assert rows(run) == rows(other)


def truncate_newest(run: Run) -> None:
    newest = newest_checkpoint(run.checkpoints)
    assert newest is not None
    file = newest / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


# --- interruptions ---


@pytest.mark.parametrize("stops", [[1], [7], [23], [3, 4, 5, 20]], ids=str)
def test_stopped_and_continued_is_the_same_training(prepared: Prepared, whole: Run, stops: list[int]) -> None:
    run = prepared.run(**SETTINGS)
    for step in stops:
        stop_after(run, step)
        assert newest_step(run) == step
    assert train(run).step == STEPS
    assert_same_training(run, whole)


@pytest.mark.parametrize("model", [{"architecture": "llama", "kv_heads": 1}, {"architecture": "qwen3"}], ids=str)
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
def test_so_it_is_for_every_architecture_and_optimizer(prepared: Prepared, model: Any, optimizer: str) -> None:
    runs = [prepared.run(model=model, optimizer=optimizer, **SETTINGS) for _ in range(2)]
    stop_after(runs[0], 9)
    for run in runs:
        train(run)
    assert_same_training(runs[0], runs[1])


def test_a_damaged_newest_checkpoint_costs_steps_not_the_result(prepared: Prepared, whole: Run) -> None:
    run = prepared.run(**SETTINGS)
    stop_after(run, 14)
    truncate_newest(run)
    train(run)
    assert_same_training(run, whole)
    assert (run.checkpoints / "bad-step-00000014").exists()


def test_ten_kills_at_any_moment_change_nothing(tmp_path: Path) -> None:
    found = list(kills(KilledTraining(tmp_path), 10, random.Random(0)))
    assert len(found) == 10
    assert [problem for kill in found for problem in kill.problems] == []


def test_a_row_that_the_kill_cut_off_is_made_again(prepared: Prepared, whole: Run) -> None:
    run = prepared.run(**SETTINGS)
    stop_after(run, 12)
    content = run.metrics.read_bytes()
    run.metrics.write_bytes(content + content[:30])
    train(run)
    assert_same_training(run, whole)


def test_sigterm_saves_a_checkpoint_and_says_so_in_the_status(prepared: Prepared) -> None:
    settings = {"max_steps": 2000, "log_every": 1, "validate_every": 1000, "checkpoint_every": 1000}
    run = prepared.run(**settings)
    with start("-m", "lmcore", "train", run.folder) as child:
        wait_for_step(run, 3, child)
        child.terminate()
        output, _ = child.communicate()
    assert child.returncode == 75
    assert "the same command continues" in output.splitlines()[-1]
    assert newest_step(run) == read_metrics(run.metrics)[-1]["step"] >= 3
    assert TrainingResult.load(run.folder) is None


def test_sigterm_ends_one_that_waits_for_the_lock(prepared: Prepared) -> None:
    run = prepared.run()
    with locked(run.lock, "refuse"), start("-m", "lmcore", "train", run.folder) as child:
        assert child.stderr is not None
        assert "waiting: " in child.stderr.readline()
        child.terminate()
        try:
            child.communicate(timeout=60)
        finally:
            child.kill()
    assert child.returncode == 75
    assert not run.checkpoints.exists()


@pytest.mark.parametrize("patience", [0, 1])
def test_a_stop_during_a_validation_does_not_wait_for_its_end(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, patience: int
) -> None:
    """Each validation is interrupted, the first one twice; the weights and all rows are those of a whole training."""
    settings = SETTINGS | {"patience": patience, "min_gain": 10.0 if patience else 0.0}
    whole, run = (prepared.run(**settings) for _ in range(2))
    train(whole)
    validate, calls = Validation.__call__, count(1)

    def interrupted(self: Validation, should_stop: Callable[[], bool]) -> Any:
        call = next(calls)
        return validate(self, (lambda: True) if call == 1 or call % 2 == 0 else should_stop)

    monkeypatch.setattr(Validation, "__call__", interrupted)
    stops = 0
    while TrainingResult.load(run.folder) is None:
        try:
            train(run)
        except StoppedError:
            stops += 1
    assert stops == (3 if patience else 5)
    assert_same_training(run, whole)


def test_a_stop_at_the_last_step_ends_its_validation(prepared: Prepared) -> None:
    run = prepared.run(max_steps=1)
    with pytest.raises(StoppedError, match="after step 1 of 1"):
        train(run, should_stop=lambda: True)
    assert train(run).step == 1


# --- one run, one process ---


def test_a_run_in_use_refuses_or_waits_for_the_result(prepared: Prepared) -> None:
    run = prepared.run(max_steps=300, log_every=1, validate_every=100)
    impatient = dataclasses.replace(run, config=run.config.model_copy(update={"when_locked": "refuse"}))
    with start("-m", "lmcore", "train", run.folder) as child:
        wait_for_step(run, 1, child)
        with pytest.raises(RunError, match=f"in use by process {child.pid} on "):
            train(impatient)
        result = train(run)
        output, _ = child.communicate()
    assert child.returncode == 0
    assert TrainingResult.model_validate_json(output.splitlines()[-1]) == result


def test_a_finished_run_is_returned_without_training(whole: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmcore.training.train, "_Training", None)
    result = train(whole)
    assert result.step == STEPS
    result.verify()


def test_a_finished_run_whose_checkpoint_is_damaged_is_finished_again(prepared: Prepared, whole: Run) -> None:
    run = prepared.run(**SETTINGS)
    first = train(run)
    truncate_newest(run)
    assert train(run).weights == first.weights
    assert_same_training(run, whole)


@pytest.fixture
def in_own_store(prepared: Prepared, tmp_path: Path) -> tuple[Run, Path]:
    """A run in a copy of the store, and a shard of its dataset as it was written minutes ago."""
    run = prepared.run(max_steps=2)
    store = tmp_path / "store"
    for name in ("tokenizers", "shards", "datasets", f"runs/{run.folder.name}"):
        shutil.copytree(prepared.store / name, store / name)
    [chunk] = read_manifest(run.dataset_folder)["chunks"]  # others may have tokenized in this store too
    shard = store / "shards" / chunk["key"] / "train.arrow"
    for path in shard.parent.iterdir():
        os.utime(path, (1e9, 1e9))
    return Run.open(store / "runs" / run.folder.name), shard


@pytest.mark.parametrize("damage", [lambda content: content[:-8], lambda content: content[:-9] + b"?" + content[-8:]])
def test_a_damaged_shard_is_never_trained_on(in_own_store: tuple[Run, Path], damage: Callable[[bytes], bytes]) -> None:
    run, shard = in_own_store
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(StoreError, match=r"train.arrow .* \(lm repair \w+ --store .*/store makes it again"):
        train(run)
    assert not run.checkpoints.exists()


def test_the_bytes_of_a_dataset_are_checked_once_its_sizes_at_every_start(
    in_own_store: tuple[Run, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, shard = in_own_store
    stop_after(run, 1)
    monkeypatch.setattr(lmcore.corpus.hash_index, "read_stored", lambda path: pytest.fail(f"{path} was read again"))
    train(run)
    shard.write_bytes(shard.read_bytes() + b"?")
    with pytest.raises(StoreError, match=r"train.arrow has [\d,]+ bytes, expected"):
        train(dataclasses.replace(run, folder=run.folder.with_name("next")))


# --- what does and does not decide the weights ---


@pytest.mark.parametrize(
    "change",
    [
        {"log_every": 1},
        {"log_every": 1000},
        {"validate_every": 1},
        {"validate_every": 1000},
        {"validation_tokens": 1000},
        {"checkpoint_every": 1, "keep_checkpoints": 1},
        {"checkpoint_every": 1000},
        {"device": "cpu"},
    ],
    ids=str,
)
def test_watching_does_not_change_the_weights(prepared: Prepared, whole: Run, change: dict[str, Any]) -> None:
    assert train(prepared.run(**{**SETTINGS, **change})).weights == train(whole).weights


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"batch_size": 5},
        {"optimizer": "adam"},
        {"schedule": "constant"},
        {"weight_decay": 0.0},
        {"grad_clip": 0.1},
        {"beta1": 0.5},
        {"model": {"dropout": 0.0}},
        {"dataset": {"shuffle": False}},
        {"dataset": {"packing": "best_fit"}},
        {"dataset": {"document_masking": True}},
    ],
    ids=str,
)
def test_result_settings_change_the_weights(prepared: Prepared, whole: Run, change: dict[str, Any]) -> None:
    assert train(prepared.run(**{**SETTINGS, **change})).weights != train(whole).weights


@pytest.mark.parametrize(
    ("architecture", "optimizer", "schedule"),
    [("gpt2", "adamw", "cosine"), ("llama", "adam", "constant"), ("qwen3", "muon", "cosine")],
)
def test_every_kind_learns(prepared: Prepared, architecture: str, optimizer: str, schedule: str) -> None:
    settings = {"optimizer": optimizer, "schedule": schedule, "learning_rate": 1e-2, "max_steps": 30}
    # Decay inside Adam's normalized gradient would outweigh it at this rate.
    run = prepared.run(model={"architecture": architecture}, weight_decay=0.01, **settings)
    result = train(run)
    validations = [row["loss"] for row in read_metrics(run.metrics) if row["kind"] == "validation"]
    assert result.validation_loss == validations[-1] < validations[0] - 0.3
    rates = [row["learning_rate"] for row in read_metrics(run.metrics) if row["kind"] == "train"]
    assert rates[-1] == pytest.approx(1e-2 if schedule == "constant" else 1e-4)


def test_frozen_parameters_stay_and_the_others_change(prepared: Prepared) -> None:
    run = prepared.run(trainable=["*.ln_1.*", "transformer.wpe*"], max_steps=8, warmup="0 steps")
    stop = iter([False, False, True])
    with pytest.raises(StoppedError):
        train(run, should_stop=lambda: next(stop))
    result = train(run)
    saved = load_file(result.checkpoint / "model.safetensors")
    changed = {name for name, first in new_model(run).named_parameters() if not torch.equal(saved[name], first)}
    assert changed == {"transformer.h.0.ln_1.weight", "transformer.h.0.ln_1.bias", "transformer.wpe.weight"}
    assert result.trainable_parameters == 16 + 16 + 16 * 16
    moments = load_file(result.checkpoint / "optimizer.safetensors")
    assert {name.rsplit("/", 1)[0] for name in moments} == changed


def test_a_pattern_that_names_nothing_trains_nothing(prepared: Prepared) -> None:
    run = prepared.run(trainable=["*lora*"])
    with pytest.raises(ConfigError, match=r"train\.trainable.*lora"):
        train(run)
    assert not run.checkpoints.exists()


# --- epochs ---


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The input ids of every batch that is trained on."""
    seen: list[torch.Tensor] = []
    load: Callable[..., Iterator[dict[str, torch.Tensor]]] = lmcore.training.plan.loader

    def spy(*arguments: Any, **options: Any) -> Iterator[dict[str, torch.Tensor]]:
        for batch in load(*arguments, **options):
            seen.append(batch["input_ids"])
            yield batch

    monkeypatch.setattr(lmcore.training.plan, "loader", spy)
    return seen


@pytest.mark.parametrize("parts", [1, 2, 3.7])
def test_an_epoch_is_every_block_once_the_last_batch_may_be_short(
    prepared: Prepared, trained: Trained, batches: list[torch.Tensor], parts: float
) -> None:
    blocks = trained.blocks.train_blocks
    size = math.ceil(blocks / parts)
    run = prepared.run(max_steps=0, epochs=2, batch_size=size, log_every=1, validate_every=1000)
    result = train(run)
    assert result.step == len(batches) == math.ceil(2 * blocks / size)
    assert result.tokens == 2 * blocks * 16
    assert [len(batch) for batch in batches] == [size] * (2 * blocks // size) + (
        [rest] if (rest := 2 * blocks % size) else []
    )
    order = [tuple(block) for block in torch.cat(batches).tolist()]
    assert Counter(order[:blocks]) == Counter(order[blocks:])
    assert order[:blocks] != order[blocks:]
    assert len(set(order)) > 0.9 * blocks
    validated = [row["step"] for row in read_metrics(run.metrics) if row["kind"] == "validation"]
    assert validated == [math.ceil(blocks / size), math.ceil(2 * blocks / size)]
    assert read_metrics(run.metrics)[-1]["epoch"] == 2


def test_steps_may_go_through_many_epochs(prepared: Prepared, trained: Trained, batches: list[torch.Tensor]) -> None:
    size = trained.blocks.train_blocks // 2
    run = prepared.run(max_steps=7, batch_size=size, validate_every=1000)
    assert train(run).step == 7
    assert {len(batch) for batch in batches} == {size}
    validated = [row["step"] for row in read_metrics(run.metrics) if row["kind"] == "validation"]
    ends = {math.ceil(trained.blocks.train_blocks * epoch / size) for epoch in (1, 2, 3)}
    assert validated == sorted(ends | {7})  # an epoch that ends with the last step is validated once


# --- packed blocks and several sources ---


def test_padding_is_not_learnt_and_not_counted(prepared: Prepared) -> None:
    packed = {"packing": "best_fit", "document_masking": True}
    run = prepared.run(dataset=packed, model={"dropout": 0.0}, max_steps=0, epochs=1, batch_size=7, log_every=1)
    result = train(run)
    assert result.tokens == prepared.dataset.tokens
    rows = read_metrics(run.metrics)
    assert rows[-1]["epoch"] == 1
    blocks = open_blocks(run.dataset_folder, run.config.dataset)
    batch = next(loader(blocks, 7, first_block=0, last_block=7, seed=0, document_ids=True))
    model, nats, tokens = new_model(run), 0.0, 0
    for row, labels in enumerate(batch["labels"]):
        for number in batch["document_ids"][row][labels != -100].unique():
            ours = (batch["document_ids"][row] == number) & (labels != -100)
            scores = model(batch["input_ids"][row, ours][None]).logits[0].log_softmax(-1)
            nats -= scores[range(len(scores)), labels[ours]].sum().item()
            tokens += len(scores)
    assert rows[0]["loss"] == pytest.approx(nats / tokens, rel=1e-5)


def test_a_mixture_resumes_to_the_last_bit(mixed: Prepared) -> None:
    settings: dict[str, Any] = {"dataset": {"weights": {"web": 1, "wiki": 2}, "packing": "best_fit"}, **SETTINGS}
    whole, stopped = mixed.run(**settings), mixed.run(**settings)
    train(whole)
    stop_after(stopped, 7)
    train(stopped)
    assert_same_training(whole, stopped)


# --- a broken loss ---

EXPLODING = {"learning_rate": 10, "weight_decay": 10, "grad_clip": 0, "warmup": "0 steps", "schedule": "constant"}


def test_a_loss_that_is_no_number_ends_the_training(prepared: Prepared) -> None:
    run = prepared.run(max_steps=200, log_every=1, validate_every=1000, **EXPLODING)
    for _ in range(2):
        with pytest.raises(TrainingError, match=r"step \d+ has loss (nan|inf) .*Lower train\.learning_rate"):
            train(run)
    assert TrainingResult.load(run.folder) is None
    last = read_metrics(run.metrics)[-1]["step"]
    # The last update of this shorter run is the one that broke the weights, and no step is left to notice.
    shorter = prepared.run(max_steps=last - 1, log_every=1, validate_every=1000, **EXPLODING)
    with pytest.raises(TrainingError, match=r"validation loss is (nan|inf) after step"):
        train(shorter)


@pytest.mark.parametrize("validate_every", [1, 1000])
def test_metrics_stay_json_when_the_loss_breaks(prepared: Prepared, validate_every: int) -> None:
    run = prepared.run(max_steps=200, log_every=7, validate_every=validate_every, **EXPLODING)
    with pytest.raises(TrainingError):
        train(run)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    for line in run.metrics.read_text().splitlines():
        json.loads(line, parse_constant=refuse)


# --- guards ---


@pytest.fixture
def broken_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, float]], None]:
    """Multiplies the loss of the training that follows by a factor, at some positions of blocks."""

    def breaks(factors: dict[int, float]) -> None:
        load = lmcore.training.plan.loader
        firsts: list[int] = []

        def spy(*arguments: Any, **options: Any) -> Iterator[dict[str, torch.Tensor]]:
            for number, batch in enumerate(load(*arguments, **options)):
                firsts.append(options["first_block"] + number * arguments[1])
                yield batch

        real = NextTokenLoss.forward

        def forward(self: NextTokenLoss, *arguments: Any, **options: Any) -> torch.Tensor:
            return real(self, *arguments, **options) * factors.get(firsts[-1] if firsts else -1, 1.0)  # none: the probe

        monkeypatch.setattr(lmcore.training.plan, "loader", spy)
        monkeypatch.setattr(NextTokenLoss, "forward", forward)

    return breaks


def events(run: Run) -> list[dict[str, Any]]:
    return [row for row in read_metrics(run.metrics) if row["kind"] == "event"]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_bad_step_is_skipped_and_its_documents_are_named(
    prepared: Prepared, broken_at: Callable[[dict[int, float]], None], optimizer: str
) -> None:
    run = prepared.run(**SETTINGS, max_skipped=2, optimizer=optimizer)
    broken_at({8: math.nan})  # batches have 4 blocks: step 3
    result = train(run)
    assert (result.step, result.skipped_steps, result.tokens) == (STEPS, 1, (STEPS - 1) * 4 * 16)
    [event] = events(run)
    assert (event["step"], event["text"]) == (3, "step 3 was skipped")
    texts = (prepared.config.corpus.paths[0] + "/text.txt",)
    known = {f"{hash_text(line.encode()):016x}" for line in Path(texts[0]).read_text().splitlines()}
    assert event["documents"]
    assert known.issuperset(event["documents"])
    assert read_metrics(run.metrics)[-2]["skipped"] == 1


def test_a_skipped_step_changes_no_weight(prepared: Prepared, broken_at: Callable[[dict[int, float]], None]) -> None:
    broken_at({4: math.nan, 8: math.inf})
    skipping = train(prepared.run(max_steps=3, max_skipped=2, schedule="constant", warmup="0 steps"))
    once = train(prepared.run(max_steps=1, schedule="constant", warmup="0 steps"))
    saved, expected = (load_file(result.checkpoint / "model.safetensors") for result in (skipping, once))
    assert all(torch.equal(saved[name], expected[name]) for name in expected)


def test_skipping_resumes_to_the_last_bit(prepared: Prepared, broken_at: Callable[[dict[int, float]], None]) -> None:
    settings: dict[str, Any] = {**SETTINGS, "max_skipped": 3, "spike_deviations": 5}
    broken_at({8: math.nan, 40: math.inf})
    whole, stopped = prepared.run(**settings), prepared.run(**settings)
    train(whole)
    for step in (3, 11):
        stop_after(stopped, step)
    train(stopped)
    assert_same_training(whole, stopped)


def test_one_bad_step_too_many_keeps_the_good_checkpoint(
    prepared: Prepared, broken_at: Callable[[dict[int, float]], None]
) -> None:
    run = prepared.run(**SETTINGS, max_skipped=1)
    broken_at({24: math.nan, 36: math.nan})  # steps 7 and 10
    with pytest.raises(TrainingError, match=r"step 10 has loss nan .* 1 bad steps are allowed"):
        train(run)
    assert newest_step(run) == 8
    assert [event["step"] for event in events(run)] == [7, 10]


def test_a_rollback_passes_over_the_blocks_since(
    prepared: Prepared, broken_at: Callable[[dict[int, float]], None], caplog: pytest.LogCaptureFixture
) -> None:
    run = prepared.run(**SETTINGS, rollback=True)
    broken_at({36: math.nan})  # step 10; the last checkpoint is of step 8
    result = train(run)
    assert result.step == STEPS
    assert any("rolled back from step 10 to 8" in event["text"] for event in events(run))
    assert [row["step"] for row in read_metrics(run.metrics) if row["kind"] == "train"] == [5, 10, 15, 20, 24]
    state = json.loads((result.checkpoint / "state.json").read_text())
    assert state["passed_over"] == 8


def test_a_second_rollback_is_refused(prepared: Prepared, broken_at: Callable[[dict[int, float]], None]) -> None:
    run = prepared.run(**SETTINGS, rollback=True)
    broken_at({36: math.nan, 64: math.nan})
    with pytest.raises(TrainingError, match="has loss nan"):
        train(run)


def test_training_ends_early_with_its_best_checkpoint(prepared: Prepared) -> None:
    settings: dict[str, Any] = {"max_steps": 60, "validate_every": 3, "patience": 2, "min_gain": 0.001}
    settings |= {"learning_rate": 2.0, "schedule": "constant", "warmup": "0 steps", "grad_clip": 0.0}
    run, stopped = prepared.run(**settings), prepared.run(**settings)
    result = train(run)
    assert result.step < result.last_step < 60
    losses = {row["step"]: row["loss"] for row in read_metrics(run.metrics) if row["kind"] == "validation"}
    assert losses[result.step] == min(losses.values()) == result.validation_loss
    asked = iter(range(1, 60))
    with pytest.raises(StoppedError):
        train(stopped, should_stop=lambda: next(asked) == result.step + 1)
    assert train(stopped).weights == result.weights
    assert train(run) == result, "finished is finished"
    (run.folder / "training.json").unlink()
    assert train(run).weights == result.weights, "also where it was killed before it could say so"
    assert train(run).last_step == result.last_step


def test_the_moments_of_validation_decide_only_where_patience_ends(prepared: Prepared) -> None:
    change = {"validate_every": 3, "validation_tokens": 1000}
    plain, patient = prepared.changed(patience=0), prepared.changed(patience=2)
    for config, same in ((plain, True), (patient, False)):
        other = config.model_copy(update={"train": config.train.model_copy(update=change)})
        assert (run_name(config, prepared.dataset) == run_name(other, prepared.dataset)) is same


def test_the_time_may_be_up(prepared: Prepared, whole: Run) -> None:
    run = prepared.run(**SETTINGS, max_minutes=1e-9)
    with pytest.raises(StoppedError, match=r"stopped after 1e-09 minutes after step 1 of .*: the same command"):
        train(run)
    for _ in range(STEPS - 2):
        with pytest.raises(StoppedError):
            train(run)
    train(run)
    assert_same_training(run, whole)


def test_a_run_rolls_back_once_however_often_it_is_resumed(
    prepared: Prepared, broken_at: Callable[[dict[int, float]], None]
) -> None:
    run = prepared.run(**SETTINGS, rollback=True)
    broken_at({20: math.nan, 72: math.nan})  # steps 6 and, after what is passed over, 17
    # Eleven steps are made: 1 to 6, and again from 5 on.
    with stopping_after(11) as should_stop, pytest.raises(StoppedError, match="after step 9 of"):
        train(run, should_stop=should_stop)
    with pytest.raises(TrainingError, match="has loss nan"):
        train(run)
    texts = [event["text"] for event in events(run)]
    assert [text.split(":")[0] for text in texts[:2]] == ["step 6 was skipped", "rolled back from step 6 to 4"]


def test_gradients_that_overflow_for_ever_are_bad_in_fp16_too(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: real(*_) * math.nan)
    run = prepared.run(**{**SETTINGS, "max_steps": 40}, precision="fp16")
    with pytest.raises(TrainingError, match=r"step 21 has loss \d"):
        train(run)
    short = prepared.run(**{**SETTINGS, "max_steps": 10}, precision="fp16")
    with pytest.raises(TrainingError, match="none of 10 steps had a finite gradient"):
        train(short)


def test_rows_have_the_tokens_and_seconds_of_their_own_steps(prepared: Prepared) -> None:
    run = prepared.run(max_steps=40, log_every=10, validate_every=15, checkpoint_every=9)
    result = train(run)
    found = read_metrics(run.metrics)
    assert all(row["tokens"] == row["step"] * 4 * 16 for row in found)
    speeds = [row["tokens_per_second"] for row in found if row["kind"] == "train"]
    assert len(speeds) / sum(1 / speed for speed in speeds) == pytest.approx(result.tokens_per_second, rel=0.1)


@pytest.mark.parametrize("block_size", [2, 4])
def test_blocks_may_be_very_short(prepared: Prepared, block_size: int) -> None:
    assert train(prepared.run(dataset={"block_size": block_size}, max_steps=2)).step == 2


def test_a_trunk_that_was_never_reached_is_none(prepared: Prepared) -> None:
    assert train(prepared.run(max_steps=4, schedule="wsd", warmup="0 steps", decay="100 %")).trunk is None


# --- which checkpoints stay ---


def test_the_best_the_trunk_and_every_tenth_stay(prepared: Prepared) -> None:
    settings: dict[str, Any] = {"checkpoint_every": 1, "keep_checkpoints": 1, "keep_every": 10, "validate_every": 7}
    run = prepared.run(max_steps=24, schedule="wsd", warmup="0 steps", decay="8 steps", **settings)
    result = train(run)
    losses = {row["loss"]: row["step"] for row in read_metrics(run.metrics) if row["kind"] == "validation"}
    kept = {step_of(path) for path in run.checkpoints.iterdir()}
    assert kept == {10, 16, 20, 24, losses[min(losses)]}
    assert result.trunk == run.checkpoints / "step-00000016"


def test_a_checkpoint_that_cannot_be_written_ends_the_training(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lmcore.training.checkpoint.save_file", full)
    run = prepared.run(**SETTINGS)
    with pytest.raises(NoSpaceError, match=r"no space left while writing .*checkpoints"):
        train(run)
    assert not list(run.checkpoints.iterdir())


# --- micro-batches ---


@pytest.mark.parametrize("packing", ["stream", "best_fit"])
def test_micro_batches_weigh_every_token_the_same(prepared: Prepared, packing: str) -> None:
    settings: dict[str, Any] = {**SETTINGS, "model": {"dropout": 0.0}, "dataset": {"packing": packing}}
    runs = [prepared.run(**settings, micro_batch_size=size) for size in (0, 1, 3)]
    for run in runs:
        train(run)
    whole, *parts = ([row["loss"] for row in rows(run)] for run in runs)
    for losses in parts:
        assert losses == pytest.approx(whole, rel=1e-5)


def test_a_micro_batch_that_fits_is_found(prepared: Prepared, monkeypatch: pytest.MonkeyPatch, whole: Run) -> None:
    most = 1
    real = NextTokenLoss.forward

    def forward(self: NextTokenLoss, input_ids_BT: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        if len(input_ids_BT) > most:
            raise torch.OutOfMemoryError
        return real(self, input_ids_BT, *arguments, **options)

    monkeypatch.setattr(NextTokenLoss, "forward", forward)
    run = prepared.run(**SETTINGS, find_micro_batch=True)
    small = prepared.run(**SETTINGS, micro_batch_size=1)
    assert train(run).weights == train(small).weights, "looking for it draws no random numbers"
    most = 0
    with pytest.raises(ConfigError, match="one block does not fit into memory"):
        train(prepared.run(**SETTINGS, find_micro_batch=True))


# --- the result ---


def test_the_result_says_what_was_done(whole: Run) -> None:
    result = train(whole)
    logged = [row for row in read_metrics(whole.metrics) if row["kind"] == "train"]
    assert [row["step"] for row in logged] == [5, 10, 15, 20, 24]
    assert result.tokens == STEPS * 4 * 16 == logged[-1]["tokens"]
    assert result.train_loss == logged[-1]["loss"]
    assert result.parameters == sum(parameter.numel() for parameter in new_model(whole).parameters())
    assert (result.device, result.precision) == ("cpu", "fp32")
    assert result.tokens_per_second > 0
    assert TrainingResult.load(whole.folder) == result


def test_a_log_row_is_the_mean_over_its_steps(prepared: Prepared, whole: Run) -> None:
    each = prepared.run(**{**SETTINGS, "log_every": 1})
    train(each)
    losses = [row["loss"] for row in read_metrics(each.metrics) if row["kind"] == "train"]
    means = [row["loss"] for row in read_metrics(whole.metrics) if row["kind"] == "train"]
    expected = [sum(part) / len(part) for part in (losses[start : start + 5] for start in range(0, STEPS, 5))]
    assert means == pytest.approx(expected, rel=1e-12)


def test_a_store_may_be_moved(prepared: Prepared, whole: Run, tmp_path: Path) -> None:
    moved = shutil.copytree(prepared.store, tmp_path / "moved")
    run = Run.open(moved / "runs" / whole.folder.name)
    assert train(run).weights == train(whole).weights
    assert train(run).checkpoint.is_relative_to(moved)
