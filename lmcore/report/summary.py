"""The last lines of a run for people: how good the model is, where its files are, and what to do next."""

import shlex
import shutil
import sys
from pathlib import Path
from textwrap import indent

from lmcore.clock import duration
from lmcore.errors import StoreError
from lmcore.markdown import number
from lmcore.report.baselines import Baselines, compared
from lmcore.runs.run import Run, TrainingResult
from lmcore.runs.sample_prompts import with_prompts
from lmcore.runs.scores import Evaluation
from lmcore.settings.read import settings_text
from lmcore.store.files import write_file

_LONGER = 4
"""Factor on the steps in the suggested command for a longer training."""


def summary(folder: Path, samples: list[str], ledger: str, warnings: list[str], page: str = "") -> str:
    """Lines about a finished run for a person: samples, quality, the places of its files, and what to do next.

    ``ledger`` and ``warnings`` are those of its dataset; ``page`` is the address of its page in a browser, if it has
    one. Raises StoreError when the run's records are missing.
    """
    run, training, evaluation = Run.open(folder), TrainingResult.load(folder), Evaluation.load(folder)
    if training is None or evaluation is None:
        raise StoreError(f"{folder} has no training.json or no evaluation.json: the same command makes them again")
    texts = [f"sample {place}\n\n{indent(text, '    ', lambda line: True)}" for place, text in enumerate(samples, 1)]
    time = f" in {duration(training.seconds)}" if training.ended else ""
    speed = f"{training.tokens_per_second:,.0f} tokens/s"
    lines = [
        ("quality", _quality(evaluation, Baselines.load(folder))),
        ("trained", f"{training.step:,} steps{time} on {training.device}, {speed}"),
        ("text", ledger),
        *(("warning", warning) for warning in warnings),
        ("report", str(folder / "report.md")),
        ("picture", str(folder / "report.png")),
        ("model", str(folder / "model")),
        ("page", page or "not kept: lm serve (in a checkout make serve) shows runs in a browser"),
    ]
    figures = "\n".join(f"{name:<12}{indent(about, ' ' * 12).lstrip()}" for name, about in lines)
    return "\n\n".join([*texts, figures, _next(run, training)])


def write_settings(run: Run) -> None:
    """Write the run's settings as TOML into its folder, so that a command can start another run with them."""
    config = run.config.model_copy(update={"store": run.store, "run": "", "fresh": False})
    write_file(run.folder / "settings.toml", settings_text(config).encode() + b"\n")


def _quality(evaluation: Evaluation, found: Baselines | None) -> str:
    beside = "" if found is None else "\n" + compared(evaluation.bits_per_byte, found).replace(". ", ".\n")
    return (
        f"{number(evaluation.bits_per_byte, '.3f')} bits per byte of {evaluation.text_bytes:,} bytes of text that it "
        f"was not trained on (lower is better)\n{number(evaluation.nats_per_token, '.4f')} nats per token, perplexity "
        f"{number(evaluation.perplexity, ',.2f')}{beside}"
    )


def _next(run: Run, training: TrainingResult) -> str:
    prompt = next(filter(None, with_prompts(run.config.sample, run).prompts), "")
    again = ("pretrain", "--config", str(run.folder / "settings.toml"))
    commands = {
        "generate text": ("generate", str(run.folder / "model"), "--prompt", prompt),
        "train longer": (*again, "--train.max-steps", str(_LONGER * training.last_step)),
        "your own text": (*again, "--corpus.paths", "path/to/text"),
    }
    lines = (f"  {what:<14}{shlex.join([*_program(), *words])}" for what, words in commands.items())
    return "\n".join(["what next", *lines])


def _program() -> list[str]:
    """The words that call this program from any folder: ``lm`` if it is installed beside this Python, or the module."""
    lm = Path(sys.executable).with_name("lm")
    if lm.is_file():
        found = shutil.which("lm")
        return ["lm" if found and lm.samefile(found) else str(lm)]
    return [sys.executable, "-m", "lmcore"]
