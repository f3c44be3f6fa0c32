"""python -m lmcore: every action that needs no Prefect."""

from lmcore.cli.app import add_pipeline, add_prepare, new_app, run_app
from lmcore.cli.pipeline import pretrain, tokenize
from lmcore.settings.config import RunConfig


def main() -> None:
    """Run the command line of ``python -m lmcore``."""
    app = new_app("python -m lmcore", "Text to a language model of your own, without Prefect.")
    add_prepare(app, tokenize)
    add_pipeline(app, "pretrain", RunConfig, "Train a model on a corpus, from text to report.", pretrain)
    run_app(app)


if __name__ == "__main__":
    main()
