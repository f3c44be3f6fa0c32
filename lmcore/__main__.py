"""python -m lmcore VERB: the pipeline without Prefect.

    prepare_data [flags]     corpus -> tokenizer -> shards
    pretrain [flags]         the same, then train, evaluate, export and report
    train RUN_FOLDER         start or continue the training of one run (what the pipeline calls for every training)

The last line on standard output is one JSON object.
"""

import argparse
import json
import logging
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from lmcore import cli
from lmcore.config import RunConfig
from lmcore.errors import StoppedError

_log = logging.getLogger("lmcore")


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    verbs = {"prepare_data": _prepare_data, "pretrain": _pretrain, "train": _train}
    verb, arguments = (sys.argv[1] if len(sys.argv) > 1 else ""), sys.argv[2:]
    if verb not in verbs:
        print(__doc__, file=sys.stdout if verb in ("-h", "--help") else sys.stderr)
        sys.exit(0 if verb in ("-h", "--help") else 2)
    cli.main(lambda: verbs[verb](arguments))


def _prepare_data(arguments: list[str]) -> None:
    config = cli.parse(arguments, "python -m lmcore prepare_data", "Corpus to shards.")
    dataset, tokenizer, _ = _prepare(config)
    print(json.dumps({"dataset_id": dataset.id, "tokenizer_id": tokenizer.id}))


def _pretrain(arguments: list[str]) -> None:
    config = cli.parse(arguments, "python -m lmcore pretrain", "Corpus to a trained model.")

    from lmcore.dataset import build_dataset
    from lmcore.evaluate import evaluate
    from lmcore.export import export
    from lmcore.report import report
    from lmcore.run import prepare_run
    from lmcore.train import train

    dataset, tokenizer, store = _prepare(config)
    blocks = build_dataset(dataset, config.dataset)
    run = prepare_run(config, dataset, tokenizer, store, config.fresh)
    training = train(run)
    evaluation = evaluate(run, training.checkpoint)
    model_dir = export(training, evaluation).model_dir
    page = report(training, evaluation, blocks, config.sample)
    print(
        json.dumps(
            {
                "run_dir": str(run.folder),
                "dataset_id": dataset.id,
                "model_dir": str(model_dir),
                "report": str(page.path),
                "step": training.step,
                "valid_loss": evaluation.nats_per_token,
                "valid_bits_per_byte": evaluation.bits_per_byte,
                "tokens_per_second": training.tokens_per_second,
            }
        )
    )


def _prepare(config: RunConfig) -> Any:
    from lmcore.corpus import describe, scan
    from lmcore.progress import shown
    from lmcore.store import prepare_store
    from lmcore.tokenization import tokenize
    from lmcore.tokenizer import make_tokenizer

    corpus = describe(scan(config.corpus), config.corpus)
    store = prepare_store(config.store)
    tokenizer = make_tokenizer(config.tokenizer, config.corpus, corpus, store)
    with shown("tokenizing", "bytes", Console(stderr=True), _log) as update:
        dataset = tokenize(config.corpus, corpus, tokenizer, store, lambda done, total: update(done, total, ""))
    return dataset, tokenizer, store


def _train(arguments: list[str]) -> None:
    """Signals ask the loop to stop, which saves a checkpoint; the exit status then is STOPPED_STATUS."""
    parser = argparse.ArgumentParser(prog="python -m lmcore train")
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--parent", type=int, help="process whose death asks for the end")
    options = parser.parse_args(arguments)
    stop_requested = False

    def request_stop(number: int, frame: FrameType | None) -> None:
        nonlocal stop_requested
        stop_requested = True

    signal.signal(signal.SIGTERM, request_stop)
    signal.signal(signal.SIGINT, request_stop)

    from lmcore.launch import STOPPED_STATUS, end_with_parent
    from lmcore.run import Run
    from lmcore.train import train

    if options.parent is not None:
        end_with_parent(options.parent)
    try:
        result = train(Run.open(options.run_folder), should_stop=lambda: stop_requested)
    except StoppedError as error:
        print(error)
        sys.exit(STOPPED_STATUS)
    if options.parent is None:
        print(result.model_dump_json())


if __name__ == "__main__":
    main()
