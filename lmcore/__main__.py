"""python -m lmcore VERB: the pipeline without Prefect.

    tokenize [flags]         corpus -> tokenizer -> shards
    pretrain [flags]         the same, then train, evaluate, export and report
    train RUN_FOLDER         start or continue the training of one run (what the pipeline calls for every training)
    generate MODEL [flags]   what a model writes; MODEL is an exported folder, a run or a checkpoint
    evaluate MODEL [flags]   how well any model that transformers opens predicts text, in bits per byte
    plot RUN [RUN ...]       the losses of runs in one picture
    ledger DATASET           where every byte of its corpus went, and the pieces that were left out
    verify DATASET           read every byte of it again; exit status 1 if anything is wrong
    verify MODEL             the same of a version, its receipt and everything it names, down to the corpus
    repair DATASET           encode its damaged chunks again
    seen-by DOCUMENT         the datasets, runs and versions that hold a document (16 hexadecimal digits, or a file)
    models NAME              the versions of a model, its champion and its history
    promote MODEL [flags]    make a version the champion; rollback NAME [--to v0001] takes that back
    diff MODEL MODEL         in what two versions differ
    replay MODEL             train a version again and compare losses and weights
    prune NAME --keep N      remove old versions, never the champion
    push MODEL USER/NAME     put a version into a repository of the Hugging Face hub (token: HF_TOKEN)
    forget DOCUMENT          purge a document from the store, and say what was trained on it
    gc [flags]               remove what no version and no newer run needs

DATASET is an id, RUN a name or a folder, MODEL is NAME/v0001 or NAME for its champion; --store says where (default:
LM_STORE, else ./store).

The last line on standard output is one JSON object. A command that was stopped (SIGTERM, train.max_minutes) ends with
status 75, and the same command continues.
"""

import argparse
import json
import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from lmcore import cli, registry_cli, store_cli
from lmcore.config import RunConfig, SampleConfig, default_store
from lmcore.errors import StoppedError
from lmcore.markdown import columns

_log = logging.getLogger("lmcore")


def main() -> None:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    _log.setLevel(logging.INFO)  # of libraries, warnings only
    verbs = {
        "tokenize": _tokenize,
        "pretrain": _pretrain,
        "train": _train,
        "generate": _generate,
        "evaluate": _evaluate,
        "plot": _plot,
        "ledger": _ledger,
        "verify": _verify,
        "repair": _repair,
        "seen-by": _seen_by,
        "models": registry_cli.models,
        "promote": registry_cli.promote_version,
        "rollback": registry_cli.roll_back,
        "diff": registry_cli.diff_versions,
        "replay": registry_cli.replay_version,
        "prune": registry_cli.prune_versions,
        "push": registry_cli.push_version,
        "forget": store_cli.forget_document,
        "gc": store_cli.collect_garbage,
    }
    verb, arguments = (sys.argv[1] if len(sys.argv) > 1 else ""), sys.argv[2:]
    if verb not in verbs:
        print(__doc__, file=sys.stdout if verb in ("-h", "--help") else sys.stderr)
        sys.exit(0 if verb in ("-h", "--help") else 2)
    cli.main(lambda: verbs[verb](arguments))


def _tokenize(arguments: list[str]) -> None:
    config: RunConfig = cli.parse(arguments, "python -m lmcore tokenize", "Corpus to shards.")
    dataset, tokenizer, _ = _prepare(config)
    figures = {"skipped_bytes": dataset.skipped_bytes, "unaccounted_bytes": dataset.unaccounted_bytes}
    print(json.dumps({"dataset_id": dataset.id, "tokenizer_id": tokenizer.id, **figures}))


def _pretrain(arguments: list[str]) -> None:
    config: RunConfig = cli.parse(arguments, "python -m lmcore pretrain", "Corpus to a trained model.")

    from lmcore.evaluate import evaluate
    from lmcore.export import export
    from lmcore.launch import train_in_child
    from lmcore.mixture import build_dataset
    from lmcore.report import report
    from lmcore.run import prepare_run

    dataset, tokenizer, store = _prepare(config)
    blocks = build_dataset(dataset, config.dataset)
    run = prepare_run(config, dataset, tokenizer, store, config.fresh)
    training = train_in_child(run.folder, _log.info)
    evaluation = evaluate(run, training.checkpoint)
    model_dir = export(training, evaluation).model_dir
    page = report(training, evaluation, blocks, config.sample)
    for warning in page.warnings:
        _log.warning("%s", warning)
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
                "warnings": dataset.warnings,
            }
        )
    )


def _prepare(config: RunConfig) -> Any:
    from lmcore.corpus import open_corpus
    from lmcore.progress import shown
    from lmcore.tokenization import tokenize
    from lmcore.tokenizer import make_tokenizer

    corpus, store = open_corpus(config)
    tokenizer = make_tokenizer(config.tokenizer, config.corpus, corpus, store)
    with shown("tokenizing", "bytes", Console(stderr=True), _log) as update:
        dataset = tokenize(config.corpus, corpus, tokenizer, store, lambda done, total: update(done, total, ""))
    _log.info(dataset.account())
    for warning in dataset.warnings:
        _log.warning(warning)
    return dataset, tokenizer, store


def _named(verb: str, thing: str, arguments: list[str]) -> tuple[str, Path]:
    options = vars(cli.verb_parser(verb, **{thing: ""}).parse_args(arguments))
    return options[thing], options["store"]


def _ledger(arguments: list[str]) -> None:
    name, store = _named("ledger", "dataset", arguments)
    from lmcore.audit import find_dataset, ledger_by_file, skipped_pieces
    from lmcore.store import read_manifest

    dataset = find_dataset(store, name)
    names = ("documents", "in documents", "between", "filtered", "skipped", "bytes", "stored", "undecodable")
    print(*(f"{name:>12}" for name in names), "file")
    for row in ledger_by_file(dataset):
        print(*(f"{value:>12,}" for value in row.values() if isinstance(value, int)), _in_a_line(row["path"]))
    for path, offset, length, reason, piece in skipped_pieces(dataset):
        print(f"{reason}: {length:,} bytes at {offset:,} of {_in_a_line(path)}: {piece[:60]!r}")
    account = read_manifest(dataset)["ledger"]
    print(json.dumps({name: value for name, value in account.items() if name != "skips"}, ensure_ascii=False))


def _in_a_line(path: str) -> str:
    return path if path.isprintable() else repr(path)


def _verify(arguments: list[str]) -> None:
    name, store = _named("verify", "dataset_or_version", arguments)
    from lmcore.audit import find_dataset, problems

    if not any((folder / "manifest.json").is_file() for folder in (store / "datasets" / name, Path(name))):
        registry_cli.verify_version(store, name)

    dataset = find_dataset(store, name)
    found = list(problems(dataset))
    for chunk, problem in found:
        print(f"{chunk or 'manifest'}: {problem}")
    print(json.dumps({"dataset_id": dataset.name, "problems": len(found)}))
    sys.exit(1 if found else 0)


def _repair(arguments: list[str]) -> None:
    name, store = _named("repair", "dataset", arguments)
    from lmcore.audit import find_dataset, repair

    dataset = find_dataset(store, name)
    print(json.dumps({"dataset_id": dataset.name, "repaired": repair(dataset)}))


def _generate(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m lmcore generate", argument_default=argparse.SUPPRESS)
    parser.add_argument("model", help="an exported folder, a run's folder or name, or a checkpoint")
    parser.add_argument("--prompt", action="append", default=[], help="text to continue; may be given again")
    parser.add_argument("--prompts-file", type=Path, help="more prompts, one a line")
    for name in ("tokens", "temperature", "top_k", "top_p", "seed"):
        parser.add_argument(f"--{name}", help=SampleConfig.model_fields[name].description)
    parser.add_argument("--store", type=Path, default=default_store())
    options = vars(parser.parse_args(arguments))
    prompts = options.pop("prompt")
    if "prompts_file" in options:
        prompts += cli.read_prompts(options.pop("prompts_file"))
    name, store = options.pop("model"), options.pop("store").expanduser()
    settings = cli.sample_settings(options | {"prompts": prompts or [""]})

    from lmcore.device import choose_device
    from lmcore.export import open_model
    from lmcore.generate import generate
    from lmcore.run import find_folder

    model, tokenizer, block_size = open_model(find_folder(store, name))
    texts = generate(model.to(choose_device("auto")), tokenizer, settings, block_size)
    print(*texts, sep="\n\n")
    samples = [{"prompt": prompt, "text": text} for prompt, text in zip(settings.prompts, texts, strict=True)]
    print(json.dumps({"model": name, "samples": samples}, ensure_ascii=False))


def _evaluate(arguments: list[str]) -> None:
    about = "a version, an exported or other transformers folder, a run's folder or name, a checkpoint"
    parser = cli.verb_parser("evaluate", model=about)
    parser.add_argument("--corpus", nargs="+", default=[], help="new text: files, folders, globs; each is a source")
    parser.add_argument(
        "--dataset", default="", help="old text: the validation documents of a dataset of any tokenizer, by its id"
    )
    parser.add_argument("--champion", help="else: the validation text of the champion of this model (default: MODEL's)")
    parser.add_argument("--block-size", type=int, default=0, help="tokens in a window (default: the model's context)")
    parser.add_argument("--out", type=Path, help="write the score of every document to this Arrow file")
    options = parser.parse_args(arguments)

    from lmcore.run import find_folder

    folder = find_folder(options.store, options.model)

    from lmcore.scoring import evaluation_texts, score_texts

    champion = options.champion or options.model.partition("/")[0]
    texts = evaluation_texts(options.store, options.corpus, options.dataset, champion)
    scores = score_texts(folder, texts, block_size=options.block_size)
    if options.out:
        scores.save(options.out.expanduser())
    figures = scores.figures()
    _log.info("%s", columns(scores.rows()))
    print(json.dumps({"model": options.model, **figures}, ensure_ascii=False))


def _plot(arguments: list[str]) -> None:
    parser = cli.verb_parser("plot")
    parser.add_argument("runs", nargs="+", help="a run's folder or name")
    parser.add_argument("--out", type=Path, default=Path("losses.png"), help="the picture, a PNG (default: losses.png)")
    options = parser.parse_args(arguments)
    from lmcore.plot import plot
    from lmcore.run import find_folder

    folders = [find_folder(options.store, name) for name in options.runs]
    picture = plot(folders, options.out.expanduser())
    print(json.dumps({"picture": str(picture), "runs": options.runs}, ensure_ascii=False))


def _seen_by(arguments: list[str]) -> None:
    name, store = _named("seen-by", "document", arguments)
    from lmcore.audit import document_hashes, seen_by

    hashes = document_hashes(name)
    found = list(seen_by(store, hashes))
    for kind, holder, split in found:
        print(f"{kind} {holder} ({split})")
    kinds = {"dataset": "datasets", "run": "runs", "version": "versions", "unreadable": "unreadable"}
    names = {plural: [holder for other, holder, _ in found if other == kind] for kind, plural in kinds.items()}
    print(json.dumps({"document": f"{hashes[''][0]:016x}", **names}))


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

    from lmcore.distributed import Ranks
    from lmcore.errors import LMError
    from lmcore.launch import end_with_parent, is_worker, run_workers
    from lmcore.run import Run, TrainingResult
    from lmcore.train import train

    is_first = Ranks.of_environment().is_first
    if not is_first:
        _log.setLevel(logging.ERROR)
    parent = os.getppid() if is_worker() else options.parent
    if parent is not None:
        end_with_parent(parent)
    run = Run.open(options.run_folder)
    try:
        if run.config.train.nproc > 1 and not is_worker():
            if status := run_workers(run):
                sys.exit(status)
        else:
            train(run, should_stop=lambda: stop_requested)
    except StoppedError as error:
        if is_first:
            print(error)
        sys.exit(cli.STOPPED_STATUS)
    except LMError:
        if is_first:
            raise
        sys.exit(1)  # the first rank says why
    result = TrainingResult.load(run.folder)
    if options.parent is None and not is_worker() and result is not None:
        print(result.model_dump_json())


if __name__ == "__main__":
    main()
