"""Actions that look at what a run or a model can do."""

import logging
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from lmcore.cli.command import print_json
from lmcore.cli.options import STORE, OutputFile, Store
from lmcore.cli.settings import read
from lmcore.errors import ConfigError
from lmcore.markdown import columns
from lmcore.settings.config import SampleConfig

_log = logging.getLogger("lmcore")
_PROMPT = (
    "Text to continue; may be given again. End it with a word, not with a space: tokenizers join a space to the word "
    "after it, so the model has hardly seen a space alone."
)


def _sample(name: str) -> Parameter:
    """The option for a setting of samples; its value is checked with the settings."""
    info = SampleConfig.model_fields[name]
    return Parameter(help=info.description, metavar="NUMBER", show_default=lambda _: str(info.default))


def generate(
    model: Annotated[str, Parameter(help="An exported folder, a run's folder or name, a checkpoint, or a version.")],
    /,
    *,
    prompt: Annotated[tuple[str, ...], Parameter(help=_PROMPT, negative=())] = (),
    prompts_file: Annotated[Path | None, Parameter(help="More prompts, one a line.")] = None,
    tokens: Annotated[str | None, _sample("tokens")] = None,
    temperature: Annotated[str | None, _sample("temperature")] = None,
    top_k: Annotated[str | None, _sample("top_k")] = None,
    top_p: Annotated[str | None, _sample("top_p")] = None,
    seed: Annotated[str | None, _sample("seed")] = None,
    store: Store = STORE,
) -> None:
    """Let a model continue prompts."""
    given = {"tokens": tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    prompts = [*prompt, *(_read_prompts(prompts_file) if prompts_file else [])]
    settings = read(SampleConfig, changes | {"prompts": prompts or [""]})

    from lmcore.registry.find import find

    folder = find(store, model, "folder", "run", "version")

    from lmcore.model.device import choose_device
    from lmcore.model.export import open_model
    from lmcore.model.generate import generate as continue_prompts

    opened, tokenizer, block_size = open_model(folder)
    texts = continue_prompts(opened.to(choose_device("auto")), tokenizer, settings, block_size)
    print(*texts, sep="\n\n")
    samples = [{"prompt": each, "text": text} for each, text in zip(settings.prompts, texts, strict=True)]
    print_json({"model": model, "samples": samples})


def _read_prompts(path: Path) -> list[str]:
    try:
        return path.expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--prompts-file {path}: {error}") from None


def evaluate(
    model: Annotated[
        str, Parameter(help="A version, a folder that transformers opens, a run's folder or name, a checkpoint.")
    ],
    /,
    *,
    corpus: Annotated[
        list[str] | None,
        Parameter(help="New text: files, folders, globs; each is a source.", consume_multiple=True, negative=()),
    ] = None,
    dataset: Annotated[
        str, Parameter(help="Old text: the validation documents of a dataset of any tokenizer, by its id.")
    ] = "",
    champion: Annotated[
        str, Parameter(help="Else: the validation text of the champion of this model (default: MODEL's).")
    ] = "",
    block_size: Annotated[int, Parameter(help="Tokens in a window (0: the model's context).")] = 0,
    out: Annotated[OutputFile | None, Parameter(help="Write the score of every document to this Arrow file.")] = None,
    store: Store = STORE,
) -> None:
    """Say how well a model predicts text, in bits per byte."""
    from lmcore.registry.find import find

    folder = find(store, model, "folder", "run", "version")

    from lmcore.retraining.evaluation_texts import evaluation_texts
    from lmcore.retraining.scoring import score_texts

    texts = evaluation_texts(store, corpus or [], dataset, champion or model.partition("/")[0])
    scores = score_texts(folder, texts, block_size=block_size)
    if out:
        scores.save(out)
    figures = scores.figures()
    _log.info("%s", columns(scores.rows()))
    print_json({"model": model, **figures})


def plot(
    runs: Annotated[tuple[str, ...], Parameter(help="Folders or names of runs.")],
    /,
    *,
    out: Annotated[OutputFile, Parameter(help="The picture, a PNG.")] = Path("losses.png"),
    store: Store = STORE,
) -> None:
    """Draw the losses of runs into one picture."""
    from lmcore.registry.find import find
    from lmcore.report.plots import plot as draw

    if not runs:
        raise ConfigError("plot: name one run or several, by folder or by name")
    picture = draw([find(store, name, "folder", "run", "version") for name in runs], out)
    print_json({"picture": str(picture), "runs": list(runs)})
