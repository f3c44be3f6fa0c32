"""The last lines of a run for people: how good the model is, where its files are, and what to do next."""

import shlex
import shutil
import sys
from pathlib import Path
from textwrap import indent

from lmcore.clock import duration
from lmcore.errors import StoreError
from lmcore.markdown import number
from lmcore.runs.baselines import Baselines, compared
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
    texts = "\n\n".join(
        f"sample {place}\n\n{indent(text, '    ', lambda line: True)}" for place, text in enumerate(samples, 1)
    )
    lines = [
        ("quality", _goodness(evaluation, Baselines.load(folder))),
        ("trained", _trained(training)),
        ("text", ledger),
        *(("warning", warning) for warning in warnings),
        ("report", str(folder / "report.md")),
        ("picture", str(folder / "report.png")),
        ("model", str(folder / "model")),
        ("page", page or "not kept: lm serve (in a checkout make serve) shows runs in a browser"),
    ]
    figures = "\n".join(f"{name:<12}{indent(about, ' ' * 12).lstrip()}" for name, about in lines)
    return f"{texts}\n\n{figures}\n\n{_next(run, training)}"


def write_settings(run: Run) -> None:
    """Write the run's settings as TOML into its folder, so that a command can start another run with them."""
    config = run.config.model_copy(update={"store": run.store, "run": "", "fresh": False})
    write_file(_settings_file(run), settings_text(config).encode() + b"\n")


def _goodness(evaluation: Evaluation, found: Baselines | None) -> str:
    loss = (
        f"{number(evaluation.bits_per_byte, '.3f')} bits per byte of {evaluation.text_bytes:,} bytes of text that it "
        f"was not trained on (lower is better)\n{number(evaluation.nats_per_token, '.4f')} nats per token, perplexity "
        f"{number(evaluation.perplexity, ',.2f')}"
    )
    return loss if found is None else f"{loss}\n{_sentences(compared(evaluation.bits_per_byte, found))}"


def _sentences(text: str) -> str:
    return text.replace(". ", ".\n")


def _trained(training: TrainingResult) -> str:
    time = f" in {duration(training.seconds)}" if training.ended else ""
    return f"{training.step:,} steps{time} on {training.device}, {training.tokens_per_second:,.0f} tokens/s"


def _next(run: Run, training: TrainingResult) -> str:
    prompt = next(filter(None, with_prompts(run.config.sample, run).prompts), "")
    again = ("pretrain", "--config", str(_settings_file(run)))
    commands = {
        "generate text": ("generate", str(run.folder / "model"), "--prompt", prompt),
        "train longer": (*again, "--train.max-steps", str(_LONGER * training.last_step)),
        "your own text": (*again, "--corpus.paths", "path/to/text"),
    }
    lines = (f"  {what:<14}{shlex.join([*_program(), *words])}" for what, words in commands.items())
    return "\n".join(["what next", *lines])


def _settings_file(run: Run) -> Path:
    return run.folder / "settings.toml"


def _program() -> list[str]:
    """The words that call this program from any folder: ``lm`` if it is installed, else the module."""
    started, python = Path(sys.argv[0]).absolute(), Path(sys.executable)
    lm = started if started.name == "lm" else python.with_name("lm")
    if lm.is_file():
        found = shutil.which("lm")
        return ["lm" if found and lm.samefile(found) else str(lm)]
    # Links to one Python are the Pythons of different environments.
    return ["python" if shutil.which("python") == str(python) else str(python), "-m", "lmcore"]
