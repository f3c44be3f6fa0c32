"""Errors that can be found before anything starts: missing paths, a schedule that does not fit."""

from pathlib import Path

from lmcore.errors import ConfigError
from lmcore.settings.config import RunConfig
from lmcore.settings.urls import is_url


def check(config: RunConfig) -> None:
    """Raise the error that a run with these settings would end with, where names and folders alone show it."""
    from lmcore.corpus.listing import check_paths
    from lmcore.store.layout import check_store

    check_paths(config)
    for setting, name in (("tokenizer.source", config.tokenizer.source), ("train.init_from", config.train.init_from)):
        _check_path(setting, name)
    check_store(config.store.expanduser())
    _check_schedule(config)


def _check_path(setting: str, name: str) -> None:
    from lmcore.store.hub import is_local_path

    if is_local_path(name) and not is_url(name) and not Path(name).expanduser().exists():
        raise ConfigError(f"{setting}: {name} does not exist (looked in {Path.cwd()})")


def _check_schedule(config: RunConfig) -> None:
    """Only where the steps of the run follow from the settings: with max_steps, and without sizes in epochs."""
    from lmcore.training.schedule import Schedule

    train = config.train
    if train.max_steps and "epochs" not in train.warmup + train.decay:
        Schedule.from_config(train, train.max_steps, blocks=1, block_size=config.dataset.block_size)
