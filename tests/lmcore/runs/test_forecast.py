"""What a training will take, in words, and which preset would take less."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from lmcore.model.model import blank_model, flops_per_token
from lmcore.progress import Standing
from lmcore.runs.forecast import estimated_flops_per_token, forecast, preset_seconds, training_poll
from lmcore.runs.training_progress import TrainingProgress
from lmcore.settings.config import ModelConfig, RunConfig
from lmcore.settings.read import preset_names, read_settings
from tests.conftest import Prepared

START = TrainingProgress(
    step=0,
    total_steps=700,
    phase="steps",
    seconds_per_step=0.1,
    seconds_left=70.0,
    flops_per_step=1e10,
    device="cpu",
)


def test_a_short_training_is_a_line_of_information() -> None:
    level, text = forecast(START, RunConfig(), 10**6)
    assert (level, text) == (
        logging.INFO,
        "At this speed the training takes about 1 min 10 s on this CPU (700 steps)",
    )


def test_a_training_that_goes_on_says_what_is_left() -> None:
    progress = replace(START, step=400, seconds_left=30.0, device="cuda")
    _, text = forecast(progress, RunConfig(), 10**6)
    assert text == "At this speed the training takes about 30 s on this GPU (300 steps left)"


def test_hours_are_a_warning_that_names_a_preset_that_fits() -> None:
    small = RunConfig.model_validate(read_settings("small"))
    rate = 1 / 50e9
    flops = estimated_flops_per_token(small.model, 16_000, 512) * 64 * 512
    progress = replace(START, seconds_per_step=flops * rate, flops_per_step=flops, seconds_left=32_400.0)
    level, text = forecast(progress, small, 10**8)
    assert level == logging.WARNING
    assert text.startswith("At this speed the training takes about 9 h 00 min on this CPU (700 steps). ")
    presets = {name: RunConfig.model_validate(read_settings(name)) for name in preset_names()}
    seconds = {name: preset_seconds(preset, rate, 10**8) for name, preset in presets.items()}
    assert seconds["tiny"] < 3600 < seconds["small"] < seconds["base"]
    assert "the preset tiny would take about " in text
    assert "small" not in text
    assert "train.max_minutes" in text


def test_where_no_preset_fits_none_is_named() -> None:
    level, text = forecast(replace(START, seconds_per_step=1e9, seconds_left=1e9), RunConfig(), 10**9)
    assert level == logging.WARNING
    assert "preset" not in text


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(layers=3, width=128, heads=4),
        ModelConfig(architecture="llama", layers=2, width=96, heads=6, kv_heads=2),
        ModelConfig(architecture="qwen3", layers=2, width=128, heads=4, mlp_width=200),
    ],
)
def test_the_count_from_settings_is_that_of_the_model(prepared: Prepared, model: ModelConfig) -> None:
    run = prepared.run(model=model.model_dump())
    vocabulary = prepared.tokenizer.vocab_size
    counted = flops_per_token(blank_model(run), run.config.dataset.block_size)
    assert estimated_flops_per_token(model, vocabulary, run.config.dataset.block_size) == pytest.approx(
        counted, rel=0.03
    )


def test_the_forecast_is_said_once_and_an_old_file_is_forgotten(prepared: Prepared, caplog: object) -> None:
    run = prepared.run()
    logger = logging.getLogger("test.forecast")
    records: list[str] = []
    logger.addHandler(_Keeper(records))
    logger.setLevel(logging.INFO)
    run.progress.write_text("old")
    poll = training_poll(run, logger)
    assert not run.progress.exists()
    assert poll() == Standing(note="loading")
    write(run.progress, replace(START, seconds_left=None))
    assert poll() == Standing(0, 700, "the first step")
    write(run.progress, replace(START, step=5))
    assert poll().seconds_left == 70.0
    write(run.progress, replace(START, step=70, phase="validation"))
    assert poll() == Standing(70, 700, "validation", 70.0)
    run.progress.write_text("")
    assert poll().done == 70
    assert len(records) == 1


def write(path: Path, progress: TrainingProgress) -> None:
    import json
    from dataclasses import asdict

    path.write_text(json.dumps(asdict(progress)))


class _Keeper(logging.Handler):
    def __init__(self, records: list[str]) -> None:
        super().__init__()
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record.getMessage())
