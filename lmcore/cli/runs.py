"""Actions that look at what a run or a model can do."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lmcore.cli.options import HIDDEN, InForm, ModelName, OutputFile, Store, Texts, store_folder
from lmcore.cli.outcome import Outcome
from lmcore.errors import ConfigError
from lmcore.registry.versions import find, find_version
from lmcore.settings.config import SampleConfig
from lmcore.settings.read import settings_of_flags
from lmcore.settings.section import Text

_PROMPT = (
    "Text to continue; may be given again. End it with a word, not with a space: tokenizers join a space to the word "
    "after it, so the model has hardly seen a space alone."
)
_CHAMPION = (
    "Name of a model: without other text, the text is scored that was held out when its champion was trained. Not "
    "given on a command line: that of MODEL."
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
    tokens: Annotated[str, _sample("tokens")] = "",
    temperature: Annotated[str, _sample("temperature")] = "",
    top_k: Annotated[str, _sample("top_k")] = "",
    top_p: Annotated[str, _sample("top_p")] = "",
    seed: Annotated[str, _sample("seed")] = "",
    store: Store = "",
) -> Outcome:
    """Let a model continue prompts."""
    given = {"tokens": tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    prompts = [*prompt, *(_read_prompts(prompts_file) if prompts_file else [])] or [""]
    changes = {name: value for name, value in given.items() if value}
    settings = settings_of_flags(SampleConfig, changes | {"prompts": prompts})
    folder = _find_model(store_folder(store), model)

    from lmcore.model.device import held_device
    from lmcore.model.export import open_model
    from lmcore.model.generate import generate as continue_prompts

    opened, tokenizer, block_size = open_model(folder)
    with held_device("auto") as device:
        texts = continue_prompts(opened.to(device), tokenizer, settings, block_size)
    samples = [{"prompt": each, "text": text} for each, text in zip(settings.prompts, texts, strict=True)]
    return Outcome({"model": model, "samples": samples}, text="\n\n".join(texts))


def _read_prompts(path: Path) -> list[str]:
    try:
        return path.expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--prompts-file {path}: {error}") from None


def evaluate(
    model: Annotated[Text, InForm("")],
    /,
    *,
    model_name: Annotated[ModelName, Parameter(name="--champion", help=_CHAMPION)] = "",
    text: Annotated[Texts, Parameter(name=("--corpus", "--text"), consume_multiple=True, negative=())] = (),
    dataset: Annotated[str, HIDDEN] = "",
    block_size: Annotated[int, HIDDEN] = 0,
    out: Annotated[OutputFile | None, HIDDEN] = None,
    store: Store = "",
) -> Outcome:
    """Say how well a model predicts text, in bits per byte, by source and by age.

    Args:
        model: A version such as lm/v0002, a run's name or folder, a checkpoint, or any folder that transformers opens.
            Empty: the champion of the named model.
        text: New text: files, folders, globs or URLs; each is a source of its own in the table.
        dataset: Old text: the validation documents of a dataset of any tokenizer, by its id.
        block_size: Tokens in a window. 0: the model's context.
        out: Write the score of every document to this Arrow file.
    """
    store_path = store_folder(store)
    name = model or str(find_version(store_path, model_name))
    folder, champion = _find_model(store_path, name), model_name or name.partition("/")[0]

    from lmcore.retraining.scoring import evaluation_texts, score_texts

    texts = evaluation_texts(store_path, list(text), dataset, champion)
    scores = score_texts(folder, texts, block_size=block_size)
    if out:
        scores.save(out)
    scored_on = ", ".join(filter(None, [*text, dataset])) or f"what was held out of {champion}"
    return Outcome({"model": name, **scores.figures()}, f"{name} on {scored_on}", {"scores": scores.rows()})


def plot(
    runs: Annotated[tuple[str, ...], Parameter(help="Folders or names of runs.")],
    /,
    *,
    out: Annotated[OutputFile, Parameter(help="The picture, a PNG.")] = Path("losses.png"),
    store: Store = "",
) -> Outcome:
    """Draw the losses of runs into one picture."""
    from lmcore.report.plots import plot as draw

    if not runs:
        raise ConfigError("plot: name one run or several, by folder or by name")
    folder = store_folder(store)
    picture = draw([_find_model(folder, name) for name in runs], out)
    return Outcome({"picture": str(picture), "runs": list(runs)})


def _find_model(store: Path, name: str) -> Path:
    return find(store, name, "folder", "run", "version")
