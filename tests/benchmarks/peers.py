"""What others make of the same text and the same ids; run by data.py in an environment of its own.

python peers.py PEER ARGUMENTS...    prints one JSON object: seconds, and what was measured
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

CORES = 2
BLOCK, BATCH, ROUNDS = 1024, 16, 3
FEED_BATCHES = 1000


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# --- tokenizing: text in JSON lines to ids on disk ---


def hf_datasets(corpus: str, tokenizer: str) -> dict[str, Any]:
    """As run_clm.py does it: map(tokenize), map(group_texts); saved by the cache of map."""
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    encode = AutoTokenizer.from_pretrained(tokenizer)

    def tokenize(rows: dict[str, list[Any]]) -> Any:
        return encode(rows["text"])

    def group(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        joined = {name: [item for row in column for item in row] for name, column in rows.items()}
        stop = len(joined["input_ids"]) // BLOCK * BLOCK
        blocks = {name: [flat[i : i + BLOCK] for i in range(0, stop, BLOCK)] for name, flat in joined.items()}
        return {**blocks, "labels": blocks["input_ids"].copy()}

    with tempfile.TemporaryDirectory() as cache:

        def work() -> None:
            rows = datasets.load_dataset("json", data_files=corpus, split="train", cache_dir=cache)
            ids = rows.map(tokenize, batched=True, num_proc=CORES, remove_columns=rows.column_names)
            ids.map(group, batched=True, num_proc=CORES)

        return {"seconds": timed(work)}


def datatrove(corpus: str, tokenizer: str) -> dict[str, Any]:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    with tempfile.TemporaryDirectory() as folder:
        lines = Path(corpus).read_bytes().splitlines(keepends=True)
        Path(folder, "in").mkdir()
        for part in range(CORES):  # it divides a corpus by files
            Path(folder, "in", f"{part}.jsonl").write_bytes(b"".join(lines[part::CORES]))
        executor = LocalPipelineExecutor(
            [
                JsonlReader(f"{folder}/in"),
                DocumentTokenizer(f"{folder}/out", tokenizer_name_or_path=_in_tokenizers(tokenizer, folder)),
            ],
            tasks=CORES,
            workers=CORES,
            logging_dir=f"{folder}/logs",
        )
        return {"seconds": timed(executor.run)}


def _in_tokenizers(tokenizer: str, folder: str) -> str:
    """The SentencePiece unigram model as a tokenizer.json: the same pieces, and on ties other ids."""
    import sentencepiece
    from tokenizers import Tokenizer, models, normalizers

    model = sentencepiece.SentencePieceProcessor(model_file=f"{tokenizer}/tokenizer.model")
    pieces = [(model.id_to_piece(i), model.get_score(i)) for i in range(len(model))]
    made = Tokenizer(models.Unigram(pieces, model.unk_id(), byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", "\u2581")
    made.save(f"{folder}/tokenizer.json")
    return f"{folder}/tokenizer.json"


class _LitEncode:
    """Ids of every text in a part of the corpus, for litdata.optimize."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._processor: Any = None

    def __call__(self, part: tuple[str, int, int]) -> Iterator[Any]:
        import numpy as np
        import sentencepiece
        import torch

        if self._processor is None:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=self._model)
        path, start, stop = part
        with open(path, "rb") as file:
            file.seek(start)
            while file.tell() < stop:
                ids = self._processor.encode(json.loads(file.readline())["text"], return_type="numpy")
                yield torch.from_numpy(np.append(ids, 3).astype(np.int32))


def _parts(corpus: str, count: int) -> list[tuple[str, int, int]]:
    """Byte ranges that begin at lines."""
    size = Path(corpus).stat().st_size
    starts = [0]
    with open(corpus, "rb") as file:
        for part in range(1, count):
            file.seek(size * part // count)
            file.readline()
            starts.append(file.tell())
    return [(corpus, *pair) for pair in zip(starts, [*starts[1:], size], strict=True)]


def litdata(corpus: str, tokenizer: str) -> dict[str, Any]:
    import litdata as ld

    with tempfile.TemporaryDirectory() as folder:

        def work() -> None:
            ld.optimize(
                _LitEncode(f"{tokenizer}/tokenizer.model"),
                _parts(corpus, 8 * CORES),
                output_dir=folder,
                num_workers=CORES,
                chunk_bytes="64MB",
                item_loader=ld.TokensLoader(),
                verbose=False,
            )

        return {"seconds": timed(work)}


def encode_batch_fast(corpus: str, tokenizer: str) -> dict[str, Any]:
    """tokenizers alone, ids in memory."""
    from tokenizers import Tokenizer

    texts = [json.loads(line)["text"] for line in Path(corpus).read_bytes().splitlines()]
    encoder = Tokenizer.from_file(f"{tokenizer}/tokenizer.json")
    encoder.encode_batch_fast(texts[:100])
    return {"seconds": statistics.median(timed(lambda: encoder.encode_batch_fast(texts)) for _ in range(ROUNDS))}


# --- feeding: flat ids to shuffled batches of int64 ---


def _per_second(batches: Callable[[], Iterator[Any]]) -> float:
    """Tokens a second of the first batches, the median of several rounds after one to warm up."""

    def consume() -> None:
        feed = batches()
        for _ in range(FEED_BATCHES):
            assert next(feed).shape[-1] >= BLOCK

    consume()
    seconds = statistics.median(timed(consume) for _ in range(ROUNDS))
    return FEED_BATCHES * BATCH * BLOCK / seconds


def litdata_feed(ids: str) -> dict[str, Any]:
    import litdata as ld
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        ld.optimize(
            _Slices(ids),
            list(range(16)),
            output_dir=folder,
            num_workers=1,
            chunk_bytes="64MB",
            item_loader=ld.TokensLoader(),
            verbose=False,
        )
        rows = ld.StreamingDataset(folder, item_loader=ld.TokensLoader(block_size=BLOCK + 1), shuffle=True)
        loader = ld.StreamingDataLoader(rows, batch_size=BATCH, num_workers=0)
        count = len(np.load(ids, mmap_mode="r")) // (BLOCK + 1) // BATCH

        def batches() -> Iterator[Any]:
            while True:
                for number, batch in enumerate(loader):
                    if number < count:
                        yield batch.long()

        return {"litdata": _per_second(batches)}


class _Slices:
    def __init__(self, ids: str) -> None:
        self._ids = ids

    def __call__(self, part: int) -> Iterator[Any]:
        import numpy as np
        import torch

        yield torch.from_numpy(np.array_split(np.load(self._ids, mmap_mode="r"), 16)[part].astype(np.int32))


def nanogpt_feed(ids: str) -> dict[str, Any]:
    """get_batch of nanoGPT's train.py."""
    import numpy as np
    import torch

    def batches() -> Iterator[Any]:
        while True:
            data = np.load(ids, mmap_mode="r")
            starts = torch.randint(len(data) - BLOCK, (BATCH,))
            x = torch.stack([torch.from_numpy(data[i : i + BLOCK].astype(np.int64)) for i in starts])
            torch.stack([torch.from_numpy(data[i + 1 : i + 1 + BLOCK].astype(np.int64)) for i in starts])
            yield x

    return {"nanoGPT get_batch": _per_second(batches)}


def mosaicml_feed(ids: str) -> dict[str, Any]:
    # Its pictures need a torchvision built for this very torch; here are none.
    for name, item in (
        ("", ""),
        (".datasets", "VisionDataset"),
        (".transforms", ""),
        (".transforms.functional", "to_tensor"),
    ):
        module = ModuleType(f"torchvision{name}")
        module.__spec__ = ModuleSpec(module.__name__, None)
        setattr(module, item, object)
        sys.modules[module.__name__] = module

    import numpy as np
    from streaming import MDSWriter, StreamingDataset
    from torch.utils.data import DataLoader

    with tempfile.TemporaryDirectory() as folder:
        flat = np.load(ids, mmap_mode="r")
        with MDSWriter(out=folder, columns={"ids": f"ndarray:uint16:{BLOCK + 1}"}, size_limit="64mb") as out:
            for start in range(0, len(flat) - BLOCK - 1, BLOCK):
                out.write({"ids": flat[start : start + BLOCK + 1]})
        rows = StreamingDataset(local=folder, shuffle=True, batch_size=BATCH)
        loader = DataLoader(rows, batch_size=BATCH, num_workers=0)

        def batches() -> Iterator[Any]:
            while True:
                for batch in loader:
                    yield batch["ids"].long()

        return {"mosaicml-streaming": _per_second(batches)}


def bounds(ids: str) -> dict[str, Any]:
    """The bounds: copying int64 batches, and converting uint16 ones; one after another, no shuffle."""
    import numpy as np

    flat = np.load(ids)[: BATCH * (BLOCK + 1)]
    wide = flat.astype(np.int64)

    def copies() -> Iterator[Any]:
        while True:
            yield np.copy(wide).reshape(BATCH, -1)

    def conversions() -> Iterator[Any]:
        while True:
            yield flat.astype(np.int64).reshape(BATCH, -1)

    return {
        "copying int64": _per_second(copies),
        "uint16 to int64": _per_second(conversions),
    }


if __name__ == "__main__":
    peers = {
        peer.__name__: peer
        for peer in (
            hf_datasets,
            datatrove,
            litdata,
            encode_batch_fast,
            litdata_feed,
            nanogpt_feed,
            mosaicml_feed,
            bounds,
        )
    }
    print(json.dumps(peers[sys.argv[1]](*sys.argv[2:])))
