"""New text -> a challenger -> both models scored on the same text -> promoted or refused."""

from pathlib import Path
from typing import Literal, NamedTuple, get_args

from prefect import get_run_logger
from pydantic import BaseModel, ConfigDict

from flows.command import run_command
from flows.form import (
    Advanced,
    Bytes,
    Document,
    Minutes,
    Repository,
    Size,
    TextFiles,
    chosen,
    form,
)
from flows.prepare_data import Stages, prepare
from flows.pretrain import trained_model
from lmcore.cli.app import RETRAIN
from lmcore.cli.options import ModelField, Store
from lmcore.dataset.manifest import Dataset
from lmcore.errors import ConfigError, MissingTextError, StoppedError, StoreError
from lmcore.registry.push import pushed
from lmcore.registry.versions import Version, model_folder
from lmcore.report.retraining_report import retraining_page
from lmcore.retraining.challenge import challenger_settings, earlier_refusal, skip_reason, unused
from lmcore.retraining.gate import Decision
from lmcore.retraining.new_documents import NewDocuments
from lmcore.runs.prepare import run_key
from lmcore.settings.config import RunConfig
from lmcore.settings.retraining import RetrainConfig, Start
from lmcore.store.locks import locked
from lmcore.tokenizer.tokenizer import TokenizerInfo
from tasks.pages import name_run, tag_run
from tasks.policies import ended, failed, stopped
from tasks.retraining import (
    gate,
    look_at_champion,
    look_for_new_text,
    promotion,
    push_to_hub,
    retraining_report,
    show_history,
)

Verdict = Literal["first model", "nothing new", "refused before", "promoted", "refused"]
_TEXT_MISSING = "Text missing"
ENDS = [*map(str.capitalize, get_args(Verdict)), _TEXT_MISSING]
"""The names of the states in which a retraining ends, beside those of every run."""


class Retrained(BaseModel):
    """What the flow returns, and the last line of the command."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    decision: Verdict
    reasons: list[str]
    model_name: str
    champion: str | None
    """The version in use now."""
    version: str | None
    """The challenger's; None where nothing was trained."""
    dataset_id: str
    new_documents: int
    new_bytes: int
    run_dir: Path | None
    model_dir: Path | None
    """The folder of the version in use."""
    hub: str
    """Whether the version in use is in retraining.hub_repository, and where or why not. Empty where none is named."""
    cached: dict[str, bool]

    def summary(self) -> str:
        """Lines for a person."""
        return (
            f"decision    {self.decision}: {'; '.join(self.reasons)}\n"
            f"new text    {self.new_documents:,} documents, {self.new_bytes:,} bytes\n"
            f"champion    {self.model_name}/{self.champion}\n"
            f"model       {self.model_dir}" + (f"\nhub         {self.hub}" if self.hub else "")
        )


@form(RETRAIN)
def retrain(
    text: TextFiles = (),
    document: Document = "auto",
    size: Size = "tiny",
    model_name: ModelField = "lm",
    min_new_bytes: Bytes = 100_000,
    start: Start = "export",
    max_minutes: Minutes = 0,
    hub_repository: Repository = "",
    store: Store = "",
    advanced: Advanced = "",
) -> Retrained:
    """Train a model again if its text has grown, and use it if it is proved better.

    Args:
        text: Files, folders (read recursively), globs and URLs (s3://, gs://, hf://, https://): all of the
            text, the new and the old. Empty: the text of the chosen size, if it has one.
        size: The first model and its training: tiny, small or base. custom: only what advanced says.
        min_new_bytes: Bytes of new text below which nothing is trained.
        start: What a new version begins with. export: the weights in use. trunk: the checkpoint before their decay,
            with the optimizer's state. scratch: nothing; it is trained on all of the text.
        max_minutes: Minutes of training at most, at the speed of the version in use. 0: no such limit.
        hub_repository: Repository on the Hugging Face hub that the version in use is put into, such as user/name. The
            token is HF_TOKEN's on the machine that runs this. Empty: none.
        advanced: All other settings, as TOML: a line [gate] and below it total_margin = 0.02. They win over the
            size and over the fields above.
    """
    fields = {
        "corpus": {"paths": list(text), "document": document},
        "retraining": {
            "model_name": model_name,
            "min_new_bytes": min_new_bytes,
            "start": start,
            "budget_minutes": max_minutes,
            "hub_repository": hub_repository,
        },
        "store": store,
    }
    config = chosen(RetrainConfig, size, advanced, fields)
    name = config.retraining.model_name
    name_run(f"retrain {name}", config, name)
    return _locked(config)


def _locked(config: RetrainConfig) -> Retrained:
    """One retraining of a model at a time. The run's state says what came of it."""
    store, name = config.store.expanduser().absolute(), config.retraining.model_name
    lock = model_folder(store, name) / "retraining.lock"
    try:
        with locked(lock, config.when_locked, what=f"the retraining of {name}", tell=get_run_logger().info):
            result = _retrained(config, store, Stages())
        tag_run(f"model {name}", result.decision)
        state: Retrained = ended(result.decision.capitalize(), "; ".join(result.reasons), result)
    except StoppedError as stop:
        state = stopped(stop)
    except MissingTextError as error:
        tag_run(f"model {name}", _TEXT_MISSING.lower())
        state = failed(_TEXT_MISSING, error)
    return state


class _Found(NamedTuple):
    """What a retraining looks at: the champion, the dataset (split by age where that is known), and what is new."""

    champion: Version | None
    dataset: Dataset
    news: NewDocuments | None


def _retrained(config: RetrainConfig, store: Path, stages: Stages) -> Retrained:
    champion = stages.run(look_at_champion, store, config.retraining.model_name)
    known = TokenizerInfo.open(champion.tokenizer) if champion and not config.fresh_tokenizer else None
    dataset, tokenizer, _ = prepare(config.run_config(), stages, known)
    if champion is None:
        return _challenged(config, stages, _Found(None, dataset, None), config.run_config(), tokenizer)
    by_age, news = stages.run(look_for_new_text, dataset, champion)
    if why := skip_reason(config, news):
        return _concluded(config, stages, _Found(champion, dataset, news), "nothing new", [why])
    challenger, found = challenger_settings(config, champion, by_age.folder, news), _Found(champion, by_age, news)
    if event := earlier_refusal(store, config.retraining.model_name, challenger, by_age, config.gate):
        why = f"the same text and settings were {event['event']} at {event['time']}: {event['reason']}"
        return _concluded(config, stages, found, "refused before", [why])
    for setting in unused(config, champion.receipt()["record"]["config"]):
        get_run_logger().warning("not used, since %s is trained again: %s", champion, setting)
    return _challenged(config, stages, found, challenger, tokenizer)


def _challenged(
    config: RetrainConfig, stages: Stages, found: _Found, challenger: RunConfig, tokenizer: TokenizerInfo
) -> Retrained:
    """Train the challenger, let the gate decide, and keep what it decided."""
    champion, dataset, _ = found
    run = trained_model(challenger, stages, dataset, tokenizer, dataset.store).run_dir
    decision = stages.run(gate, config, champion, run)
    version = stages.run(promotion, config, champion, run, decision, run_key(challenger, dataset), dataset.store)
    verdict: Verdict = "refused" if not decision.promoted else "promoted" if champion else "first model"
    return _concluded(config, stages, found, verdict, decision.reasons, decision, version)


def _concluded(
    config: RetrainConfig,
    stages: Stages,
    found: _Found,
    verdict: Verdict,
    reasons: list[str],
    decision: Decision | None = None,
    version: Version | None = None,
) -> Retrained:
    """Show the pages, put the version in use where the settings want it, and say what came of it all."""
    champion, dataset, news = found
    run = decision.folder if decision else None
    line = decision.verdict if decision else f"{verdict}: {reasons[0]}"
    stages.run(retraining_report, retraining_page(config, line, champion, dataset, news, decision, run))
    in_use = version if decision and decision.promoted else champion
    if known := version or champion:
        stages.run(show_history, known.store, known.model)
    return Retrained(
        decision=verdict,
        reasons=reasons,
        model_name=config.retraining.model_name,
        champion=in_use.id if in_use else None,
        version=version.id if version else None,
        dataset_id=dataset.id,
        new_documents=news.new_documents if news else dataset.documents,
        new_bytes=news.new_bytes if news else dataset.text_bytes,
        run_dir=run,
        model_dir=in_use.folder if in_use else None,
        hub=_on_hub(config.retraining.hub_repository, stages, in_use) if in_use else "",
        cached=stages.cached,
    )


def _on_hub(repository: str, stages: Stages, version: Version) -> str:
    """Whether the version is in the repository, if one is named; it is put there, as far as that can be done now."""
    if not repository or pushed(version, repository):
        return f"{version} is in {repository}" if repository else ""
    try:
        return f"{version} is in {repository}: {stages.run(push_to_hub, version, repository)}"
    except (ConfigError, StoreError, ConnectionError) as error:
        return f"{version} is not in {repository}, the next retraining tries again: {error}"


if __name__ == "__main__":
    run_command(retrain, RETRAIN)
