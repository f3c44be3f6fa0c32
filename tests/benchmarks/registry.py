"""How long a rollback and the verification of a version take, by the size of the corpus. Prints a table.

    python tests/benchmarks/registry.py [--megabytes 100]

The corpus is random Japanese-looking text; the model is tiny, since nothing here depends on it. Seconds are those of
the verbs as a person starts them, Python's start included.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

from bench import sized  # noqa: E402

from lmcore.model.evaluate import evaluate  # noqa: E402
from lmcore.model.export import export  # noqa: E402
from lmcore.registry.registry import add_version, promote  # noqa: E402
from lmcore.training.train import train  # noqa: E402
from tests.conftest import prepare, tiny_config, write_corpus  # noqa: E402


def build(folder: Path, megabytes: int) -> Path:
    """A store with two versions that were champions one after the other, of a corpus of so many megabytes."""
    corpus = write_corpus(folder / "corpus", documents=20_000)
    text = (corpus / "text.txt").read_bytes()
    copies = -(-megabytes * 1_000_000 // len(text))
    with open(corpus / "text.txt", "wb") as file:
        for number in range(copies):
            file.write(text.replace("東京".encode(), f"東京{number}".encode()))
    config = tiny_config(corpus, folder / "store", max_steps=2)
    tokenizer = config.tokenizer.model_copy(update={"max_train_bytes": 1_000_000})
    fraction = config.corpus.model_copy(update={"validation_fraction": 0.0001})
    prepared = prepare(config.model_copy(update={"tokenizer": tokenizer, "corpus": fraction}))
    for number in (1, 2):
        run = prepared.run(seed=number)
        training = train(run)
        export(training, evaluate(run, training.checkpoint))
        add_version(prepared.store, "lm", run, {"promoted": True})
        promote(prepared.store, "lm", f"v000{number}", expected="v0001" if number == 2 else None, reason="")
    return prepared.store


def seconds(*arguments: object) -> float:
    began = time.perf_counter()
    command = [sys.executable, "-m", "lmcore", *map(str, arguments)]
    subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=sized(100, 1))
    megabytes = parser.parse_args().megabytes
    with tempfile.TemporaryDirectory() as folder:
        store = build(Path(folder), megabytes)
        print("| command | corpus | seconds |\n|---|---|---|")
        for verb in (("verify", "lm"), ("rollback", "lm"), ("gc", "--dry-run")):
            print(f"| {' '.join(verb)} | {megabytes} MB | {seconds(*verb, '--store', store):.2f} |")


if __name__ == "__main__":
    main()
