"""Tokenizing and feeding, each against its bound in the same run: python tests/benchmarks/data.py CORPUS

Tokenizing: corpus files to finished shards, against sentencepiece encoding the same texts in memory.
Feeding: the training loader (blocks of 1,024, batches of 16, int64), against converting flat ids alone.
Prints the median of several rounds and the ratio.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sentencepiece

from lmcore.config import CorpusConfig, DatasetConfig, TokenizerConfig
from lmcore.corpus import describe, scan
from lmcore.documents import read_documents
from lmcore.ledger import Ledger
from lmcore.loader import loader
from lmcore.mixture import Mixture, open_blocks
from lmcore.sentencepiece_model import MODEL_FILE
from lmcore.store import prepare_store, remove
from lmcore.tokenization import tokenize
from lmcore.tokenizer import make_tokenizer

ROUNDS = 5
BLOCK, BATCH = 1024, 16


def median_seconds(work: Callable[[], object]) -> float:
    """Of ``ROUNDS`` calls, after one to warm up."""
    work()
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main(path: str) -> None:
    config = CorpusConfig(paths=[path])
    with tempfile.TemporaryDirectory() as folder:
        store = prepare_store(Path(folder))
        found = scan(config)
        corpus = describe(found, config)
        texts = [d.text for file in found.files for d in read_documents(file, config, Ledger())]
        size = sum(len(text.encode()) for text in texts) / 1e6
        print(f"{len(texts):,} documents, {size:.1f} MB, medians of {ROUNDS}\n")
        for model_type in ("bpe", "unigram"):
            info = make_tokenizer(TokenizerConfig(model_type=model_type, vocab_size=8000), config, corpus, store)
            bare = sentencepiece.SentencePieceProcessor(model_file=str(info.folder / MODEL_FILE))

            def to_shards(info: object = info) -> None:
                remove(store / "shards")
                tokenize(config, corpus, info, store)  # type: ignore[arg-type]

            peer = median_seconds(lambda bare=bare: bare.encode(texts, return_type="numpy", num_threads=-1))  # type: ignore[misc]
            ours = median_seconds(to_shards)
            print(
                f"tokenize {model_type:8} sentencepiece in memory {size / peer:7.1f} MB/s   files to shards "
                f"{size / ours:7.1f} MB/s   ratio {peer / ours:.2f}"
            )
        dataset = tokenize(config, corpus, info, store)
        for packing in ("stream", "best_fit"):
            print(packing)
            feed(open_blocks(dataset.folder, DatasetConfig(block_size=BLOCK, packing=packing)))


def feed(source: Mixture) -> None:
    blocks = 3_000 * BATCH

    def all_batches() -> None:
        batches = loader(source, BATCH, first_block=0, last_block=blocks, seed=0)
        for batch in batches:
            assert batch["input_ids"].dtype.is_signed

    flat = np.zeros(BATCH * (BLOCK + 1), dtype=np.uint16)
    tokens = blocks * BLOCK / 1e6
    peer = median_seconds(lambda: [flat.astype(np.int64) for _ in range(blocks // BATCH)])
    ours = median_seconds(all_batches)
    print(
        f"feed              conversion alone {tokens / peer:9.0f} M tokens/s   loader {tokens / ours:7.0f} M tokens/s  "
        f"ratio {peer / ours:.2f}"
    )


if __name__ == "__main__":
    main(sys.argv[1])
