"""The data engine beside its peers: python tests/benchmarks/data.py CORPUS [SECTION ...]

CORPUS is JSON lines with a field "text", or gz of it. It is repeated under a counter, so that start-up counts for
little and no document comes twice. What is compared runs in turns, in one run; a figure is the median of the rounds.
Peers run in environments of their own, which the first run makes in tests/benchmarks/work (two minutes, 3 GB).
The sections, all of them by default:
"""

import gzip
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import sentencepiece
from bench import HERE, WORK, python_of, sized, table

from lmcore.corpus.listing import open_corpus
from lmcore.dataset.loader import loader
from lmcore.dataset.manifest import Dataset
from lmcore.dataset.mixture import Mixture, open_blocks
from lmcore.dataset.shards import SPLITS, shard_path
from lmcore.dataset.stream import TokenStream
from lmcore.dataset.tokenization import tokenize
from lmcore.settings.config import CorpusConfig, DatasetConfig, RunConfig, TokenizerConfig
from lmcore.store.artifacts import read_manifest
from lmcore.store.files import remove
from lmcore.tokenizer.make import make_tokenizer
from lmcore.tokenizer.sentencepiece_model import MODEL_FILE
from lmcore.tokenizer.tokenizer import TokenizerInfo

STORE = WORK / "store"
ROUNDS = sized(3, 1)
BLOCK, BATCH, BATCHES = sized(1024, 64), 16, sized(3_000, 3)
PIECES = sized(32_000, 400)
SHRINK = sized(1, 3_000)
"""What sizes in megabytes are divided by."""
SETTLED_SECONDS = sized(3.0, 0.0)
"""Until hashes of files that were just written are relied upon."""
CORES = os.cpu_count() or 1
PEERS = sized(("hf_datasets", "datatrove", "litdata"), ())
FEEDS = sized(
    {"litdata_feed": "peers", "nanogpt_feed": "peers", "mosaicml_feed": "mosaicml", "bounds": "peers"},
    {},
)


# --- what is measured with ---


def medians(works: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Seconds that each takes, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            seconds[name].append(seconds_of(work))
    return {name: statistics.median(found) for name, found in seconds.items()}


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peer(environment: str, name: str, *arguments: object) -> dict[str, float]:
    """What peers.py prints, run in the environment of that name."""
    command = [python_of(environment), HERE / "peers.py", name, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


class Text:
    """CORPUS, and files made of it."""

    def __init__(self, path: str) -> None:
        stored = Path(path).read_bytes()
        lines = (gzip.decompress(stored) if path.endswith(".gz") else stored).splitlines()
        self.once: list[str] = [json.loads(line)["text"] for line in lines]
        self.bytes_once = sum(len(text.encode()) for text in self.once)

    def times(self, copies: int) -> Iterator[str]:
        for copy in range(copies):
            for text in self.once:
                yield f"{copy} {text}"

    def copies(self, megabytes: float) -> int:
        return max(1, round(megabytes * 1e6 / SHRINK / self.bytes_once))

    def file(self, megabytes: float, suffix: str = "") -> Path:
        path = WORK / f"{megabytes:g}MB.jsonl{suffix}"
        if not path.exists():
            new = path.with_name(f"new-{path.name}")
            with gzip.open(new, "wb", compresslevel=6) if suffix else open(new, "wb") as file:
                file.writelines(map(_json_line, self.times(self.copies(megabytes))))
            new.rename(path)
        return path

    def folder(self, megabytes: float, files: int) -> Path:
        """The same documents in many files, one of a few sentences each when there are more than documents."""
        folder = WORK / f"{megabytes:g}MB-{files}"
        if not folder.exists():
            new = folder.with_name(f"new-{folder.name}")
            lines = list(map(_json_line, self.times(self.copies(megabytes))))
            for number, part in enumerate(np.array_split(np.arange(len(lines)), min(files, len(lines)))):
                path = new / f"{number // 1000:03d}" / f"{number % 1000:03d}.jsonl"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"".join(lines[i] for i in part))
            new.rename(folder)
        return folder


def _json_line(text: str) -> bytes:
    return json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n"


def config_of(path: Path, **settings: Any) -> RunConfig:
    return RunConfig(corpus=CorpusConfig(paths=[str(path)], **settings), store=STORE)


def to_shards(config: RunConfig, tokenizer: TokenizerInfo) -> Dataset:
    """What ``python -m lmcore tokenize`` does once it has started."""
    corpus, store = open_corpus(config)
    return tokenize(config.corpus, corpus, tokenizer, store)


def forget() -> None:
    """Everything but the tokenizers."""
    for name in ("shards", "datasets"):
        remove(STORE / name)
    (STORE / "index.sqlite").unlink(missing_ok=True)


def from_nothing(config: RunConfig, tokenizer: TokenizerInfo) -> Callable[[], Dataset]:
    def work() -> Dataset:
        forget()
        return to_shards(config, tokenizer)

    return work


def tokenizer_of(text: Text, model_type: str) -> TokenizerInfo:
    """32k pieces, trained on a third of a round of the corpus."""
    config = config_of(text.file(10))
    corpus, store = open_corpus(config)
    wanted = TokenizerConfig(model_type=model_type, vocab_size=PIECES, max_train_bytes=3_000_000)  # type: ignore[arg-type]
    return make_tokenizer(wanted, config.corpus, corpus, store)


def sentencepiece_of(tokenizer: TokenizerInfo) -> Any:
    return sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.folder / MODEL_FILE))


# --- the sections ---


def tokenizing(text: Text) -> None:
    """files to finished shards, plain and gzip, against SentencePiece alone with the texts in memory"""
    rows = []
    plain, packed = text.file(300), text.file(300, ".gz")
    texts = list(text.times(text.copies(300)))
    megabytes = sum(len(one.encode()) for one in texts) / 1e6
    for model_type in ("unigram", "bpe"):
        tokenizer = tokenizer_of(text, model_type)
        bare = sentencepiece_of(tokenizer)
        check_ids(to_shards(config_of(plain), tokenizer), bare, texts, tokenizer.eos_id)
        ours = from_nothing(config_of(plain), tokenizer)
        found = medians(
            {
                "one": lambda bare=bare: bare.encode(texts, return_type="numpy", num_threads=1),  # type: ignore[misc]
                "all": lambda bare=bare: bare.encode(texts, return_type="numpy", num_threads=CORES),  # type: ignore[misc]
                "ours": ours,
                "one worker": from_nothing(config_of(plain, workers=1), tokenizer),
                "gz": from_nothing(config_of(packed), tokenizer),
            }
        )
        for name, what, base in (
            ("one", "SentencePiece alone, 1 thread", "one"),
            ("all", f"SentencePiece alone, {CORES} threads", "all"),
            ("one worker", "files to shards, 1 worker", "one"),
            ("ours", f"files to shards, {CORES} workers", "all"),
            ("gz", f"gzip files to shards, {CORES} workers", "all"),
        ):
            speed, ratio = megabytes / found[name], found[base] / found[name]
            rows.append([model_type, what, f"{speed:.1f}", f"{ratio:.2f}", f"{found['one'] / found[name]:.2f}"])
    head = "model|what|MB/s of text|of SentencePiece on the same cores|of SentencePiece on one"
    table(f"Text to shards, {megabytes:.0f} MB, ids equal to SentencePiece's", head, rows)


def check_ids(dataset: Dataset, bare: Any, texts: list[str], eos_id: int) -> None:
    """Every id of every document, in the order of the file."""
    chunks = sorted(read_manifest(dataset.folder)["chunks"], key=lambda chunk: chunk["spans"][0]["start"])
    for chunk in chunks:
        found = {}
        for split in SPLITS:
            shard = pa.ipc.open_file(pa.memory_map(str(shard_path(STORE / "shards" / chunk["key"], split)))).read_all()
            ids = (scalar.values.to_numpy() for scalar in shard["input_ids"])
            found |= dict(zip(shard["position"].to_pylist(), ids, strict=True))
        now, texts = texts[: len(found)], texts[len(found) :]
        for number, ids in enumerate(bare.encode(now, return_type="numpy", num_threads=CORES)):
            if not np.array_equal(found[number], np.append(ids, eos_id)):
                sys.exit(f"the ids of document {number} of chunk {chunk['key']} are not SentencePiece's")
    if texts:
        sys.exit(f"{len(texts)} documents are in no shard")


def byte_bpe(text: Text) -> None:
    """files to shards with a tokenizer.json, against encode_batch_fast of tokenizers with the texts in memory"""
    corpus = text.file(100)
    tokenizer = tokenizer_of(text, "byte_bpe")
    ours = medians({"ours": from_nothing(config_of(corpus), tokenizer)})["ours"]
    alone = peer("peers", "encode_batch_fast", corpus, tokenizer.folder)["seconds"]
    rows = [["encode_batch_fast", f"{alone:.2f}", "1.00"], ["files to shards", f"{ours:.2f}", f"{alone / ours:.2f}"]]
    table("Byte-level BPE, 100 MB", "what|seconds|ratio", rows)


def peers(text: Text) -> None:
    """files to shards, against datasets.map + group_texts, datatrove and litdata, each writing its own files"""
    corpus = text.file(100)
    tokenizer = tokenizer_of(text, "unigram")
    ours = from_nothing(config_of(corpus), tokenizer)
    seconds: dict[str, list[float]] = {name: [] for name in (*PEERS, "ours")}
    for _ in range(ROUNDS):
        seconds["ours"].append(seconds_of(ours))
        for name in PEERS:
            seconds[name].append(peer("peers", name, corpus, tokenizer.folder)["seconds"])
    found = {name: statistics.median(times) for name, times in seconds.items()}
    rows = [
        [name, f"{found[name]:.1f}", f"{100 / found[name]:.1f}", f"{found[name] / found['ours']:.1f}"]
        for name in sorted(found, key=lambda name: -found[name])
    ]
    table("Text to files, 100 MB, 32k unigram", "what|seconds|MB/s|times ours", rows)


def sizes(text: Text) -> None:
    """the same text in 1 to 50,000 files, and corpora from 10 MB on"""
    tokenizer = tokenizer_of(text, "unigram")
    corpora = {f"100 MB in {count:,} files": text.folder(100, count) for count in sized((10, 1_000, 50_000), (2, 4, 8))}
    corpora |= {f"{megabytes:g} MB in one file": text.file(megabytes) for megabytes in (10, 100, 300)}
    rows = []
    for name, path in corpora.items():
        config = config_of(path)
        first = seconds_of(from_nothing(config, tokenizer))
        time.sleep(SETTLED_SECONDS)  # hashes of files that were written this moment are not relied upon
        to_shards(config, tokenizer)
        again = seconds_of(lambda config=config: to_shards(config, tokenizer))  # type: ignore[misc]
        rows.append([name, f"{float(name.split()[0]) / first:.1f}", f"{first:.2f}", f"{again:.2f}"])
    table("Corpora of many shapes, 32k unigram", "corpus|MB/s|seconds from nothing|seconds unchanged", rows)


def growth(text: Text) -> None:
    """1 % of new text in one place of 300 MB: in one of a hundred files, and in the middle of a single one"""
    tokenizer = tokenizer_of(text, "unigram")
    new = list(map(_json_line, (f"new {line}" for line in text.once)))[
        : max(1, len(text.once) * text.copies(300) // 100)
    ]
    rows = []
    for name, path in (("one of 100 files", text.folder(300, 100)), ("one file", text.file(300))):
        copy = WORK / "growing"
        remove(copy)
        shutil.copytree(path, copy) if path.is_dir() else shutil.copy(path, copy.mkdir() or copy)
        config = config_of(copy)
        full = seconds_of(from_nothing(config, tokenizer))
        time.sleep(SETTLED_SECONDS)
        to_shards(config, tokenizer)
        changed = sorted(copy.rglob("*.jsonl"))[0]
        lines = changed.read_bytes().splitlines(keepends=True)
        changed.write_bytes(b"".join([*lines[: len(lines) // 2], *new, *lines[len(lines) // 2 :]]))
        made: list[Dataset] = []
        seconds = seconds_of(lambda: made.append(to_shards(config, tokenizer)))  # noqa: B023
        dataset = made[0]
        bound = 0.015 * full + full / dataset.chunks
        from_scratch = from_nothing(config, tokenizer)()
        if from_scratch.id != dataset.id:
            sys.exit("the dataset made step by step is not the one made at once")
        figures = [f"{full:.2f}", f"{seconds:.2f}", f"{bound:.2f}", f"{dataset.chunks_made} of {dataset.chunks}"]
        rows.append([name, *figures])
        remove(copy)
    head = "1 % more in|seconds from nothing|seconds for the change|1.5 % and one chunk|chunks made"
    table("Growth, 300 MB, 32k unigram", head, rows)


def memory(text: Text) -> None:
    """peak memory of python -m lmcore tokenize: 2 GB of documents, and a single line of 1 GB"""
    tokenizer = tokenizer_of(text, "unigram")
    line = WORK / "line" / "one.txt"
    if not line.exists():
        line.parent.mkdir(exist_ok=True)
        (line.parent / "two.txt").write_bytes(b"".join(f"{one}\n".encode() for one in text.times(1)))
        piece = text.once[0].replace("\n", " ").encode()
        with open(line, "wb") as file:
            for _ in range(10**9 // SHRINK // len(piece)):
                file.write(piece)
    rows = []
    for name, path in (("2 GB of JSON lines", text.file(2000)), ("1 GB in one line", line.parent)):
        forget()
        command = [sys.executable, "-m", "lmcore", "prepare", "--corpus.paths", str(path), "--store", str(STORE)]
        command += ["--tokenizer.source", str(tokenizer.folder / MODEL_FILE)]
        start, peak = time.perf_counter(), 0
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
            while child.poll() is None:
                peak = max(peak, peak_kib(child.pid))
                time.sleep(0.02)
        if child.returncode:
            sys.exit(f"{' '.join(command)} failed")
        rows.append([name, f"{peak / 1024:.0f}", f"{time.perf_counter() - start:.1f}"])
    table(f"Peak memory, {CORES} workers in one process", "corpus|MiB|seconds", rows)


def peak_kib(pid: int) -> int:
    """Of a running process; what wait4 says of a child holds for its parent too."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def feeding(text: Text) -> None:
    """shuffled int64 batches of 16 blocks of 1,024, against litdata, nanoGPT, MosaicML streaming and a plain copy"""
    dataset = to_shards(config_of(text.file(100)), tokenizer_of(text, "unigram"))
    ids = WORK / "ids.npy"
    np.save(ids, np.concatenate(TokenStream(dataset.folder, "train").segments))
    sources = {
        f"ours, {packing}": open_blocks(dataset.folder, DatasetConfig(block_size=BLOCK, packing=packing))  # type: ignore[arg-type]
        for packing in ("stream", "best_fit")
    }
    found = {
        name: BATCHES * BATCH * BLOCK / seconds
        for name, seconds in medians(
            {name: lambda source=source: all_batches(source) for name, source in sources.items()}  # type: ignore[misc]
        ).items()
    }
    for name, environment in FEEDS.items():
        found |= peer(environment, name, ids)
    rows = [
        [name, f"{found[name] / 1e6:,.0f}", f"{found[name] / found.get('litdata', found[name]):.1f}"]
        for name in sorted(found, key=lambda name: found[name])
    ]
    table("Feeding", "what|M tokens/s|times litdata", rows)
    resumed = [seconds_of(lambda at=at: next(all_of(sources["ours, stream"], at))) for at in (1, 10**6, 10**9)]  # type: ignore[misc]
    print(f"\nFirst batch after a resume at block 1, 10^6 and 10^9: {', '.join(f'{1e3 * s:.1f}' for s in resumed)} ms")


def all_of(source: Mixture, first_block: int = 0) -> Iterator[Any]:
    return loader(source, BATCH, first_block=first_block, last_block=first_block + BATCHES * BATCH, seed=0)


def all_batches(source: Mixture) -> None:
    for batch in all_of(source):
        assert not batch["input_ids"].dtype.is_floating_point


SECTIONS: dict[str, Callable[[Text], None]] = {
    work.__name__: work for work in (tokenizing, byte_bpe, peers, sizes, growth, memory, feeding)
}


def main() -> None:
    chosen = sys.argv[2:] or list(SECTIONS)
    if len(sys.argv) < 2 or set(chosen) - set(SECTIONS):
        sections = "\n".join(f"    {name:12} {work.__doc__}" for name, work in SECTIONS.items())
        sys.exit(f"{__doc__}{sections}")
    WORK.mkdir(exist_ok=True)
    text = Text(sys.argv[1])
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("sentencepiece", "tokenizers", "pyarrow", "numpy", "torch")
    )
    print(f"{CORES} cores, {platform.machine()}, Python {platform.python_version()}, {packages}; {time.strftime('%F')}")
    for name in chosen:
        SECTIONS[name](text)


if __name__ == "__main__":
    main()
