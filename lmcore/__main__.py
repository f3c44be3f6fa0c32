"""python -m lmcore: every action that needs no Prefect."""

from lmcore.cli.app import PREPARE, PRETRAIN, add_pipeline, new_app, run_app
from lmcore.cli.pipeline import pretrain, tokenize


def main() -> None:
    """Run what the command line asks for."""
    app = new_app("python -m lmcore", "Text to a language model of your own, without Prefect.")
    add_pipeline(app, PREPARE, tokenize)
    add_pipeline(app, PRETRAIN, pretrain)
    run_app(app)


if __name__ == "__main__":
    main()
