"""Small real inputs for every test: no network, no files outside the test's own folder."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# Before torch is loaded, here and in every process that tests start: its threads only wait for each other on models
# this small, and on a busy machine for minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A test that asks its own server must not ask a proxy.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"

# Some CI systems, nohup and jobs in the background ignore signals, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
for _number in (signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.SIG_DFL)

# The same examples every time, so that who changed nothing breaks nothing; --hypothesis-profile default draws others.
# No deadline: how long an example takes says how busy the machine is.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

from lmcore.corpus.listing import Corpus
from lmcore.corpus.scan import scan
from lmcore.dataset.manifest import Dataset
from lmcore.dataset.mixture import Blocks, count_blocks
from lmcore.dataset.shards import shard_path, write_shard
from lmcore.dataset.tokenization import tokenize
from lmcore.model.evaluate import evaluate
from lmcore.model.export import export
from lmcore.registry.registry import add_version
from lmcore.runs.metrics import read_metrics
from lmcore.runs.prepare import prepare_run
from lmcore.runs.run import Run, TrainingResult
from lmcore.runs.scores import Evaluation
from lmcore.settings.config import CorpusConfig, DatasetConfig, ModelConfig, RunConfig, TokenizerConfig, TrainConfig
from lmcore.settings.retraining import RetrainConfig, RetrainingConfig
from lmcore.store.artifacts import manifest_bytes, read_manifest
from lmcore.store.layout import prepare_store
from lmcore.tokenizer.make import make_tokenizer
from lmcore.tokenizer.tokenizer import TokenizerInfo
from lmcore.training.train import train
from tests import leftovers

REPOSITORY = Path(__file__).parents[1]
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"

_WORDS = ["学習", "言語", "モデル", "東京", "さくら", "は", "が", "を", "に", "です", "ます", "、", "。"]
_WORDS += ["model", "data", "train", "loss", "123", "ＡＢＣ", "é", "😀"]


def write_corpus(folder: Path, documents: int = 300, seed: int = 0) -> Path:
    """A folder with one .txt file of Japanese-looking lines, the same for the same seed."""
    draw = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["".join(draw.choices(_WORDS, k=draw.randint(5, 40))) for _ in range(documents)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def tiny_config(corpus: Path, store: Path, **train: object) -> RunConfig:
    """A run that trains a very small model in about a second."""
    settings: dict[str, object] = {"max_steps": 6, "batch_size": 4, "warmup": "30 %", "log_every": 2}
    return RunConfig(
        store=store,
        corpus=CorpusConfig(paths=[str(corpus)]),
        tokenizer=TokenizerConfig(vocab_size=400),
        dataset=DatasetConfig(block_size=16),
        model=ModelConfig(layers=1, width=16, heads=2, dropout=0.1),
        train=TrainConfig.model_validate({**settings, **train}),
    )


def tiny_retraining(corpus: Path, store: Path, name: str) -> RetrainConfig:
    """The retraining of the model ``name`` as ``tiny_config`` trains, which any new text begins."""
    retraining = RetrainingConfig(model_name=name, min_new_bytes=1)
    return RetrainConfig(**dict(tiny_config(corpus, store)), retraining=retraining)


@pytest.fixture(scope="session", autouse=True)
def no_leftovers() -> Iterator[None]:
    """What tests leave running ends with this process, even if it is killed."""
    watcher = leftovers.watch()
    yield
    leftovers.end(os.getpid())
    watcher.kill()
    watcher.wait()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of long tests come first: the short ones at the end let both processes of ``make test`` end together."""
    items.sort(key=lambda item: "lmcore" in item.path.relative_to(REPOSITORY).parts)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite-golden", action="store_true", help="write golden files instead of comparing with them")


@pytest.fixture
def check_golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with golden/<name> beside the test's file, or write it with --rewrite-golden."""

    def check(name: str, text: str) -> None:
        path = request.path.parent / "golden" / name
        if request.config.getoption("--rewrite-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8"), f"{path} differs: is it meant? then --rewrite-golden"

    return check


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of text that tests only read."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def config(corpus: Path, tmp_path: Path) -> RunConfig:
    """Settings of a tiny run over ``corpus`` in a store of the test's own."""
    return tiny_config(corpus, tmp_path / "store")


@pytest.fixture
def shared_data() -> Path:
    """The folder of real text; tests that need it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real text is not here: {SHARED_DATA} is missing")
    return SHARED_DATA


@pytest.fixture
def transformers_folder(tmp_path: Path, corpus: Path) -> Callable[..., Path]:
    """A byte-level tokenizer as other people make them."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    def save(**special: object) -> Path:
        bpe = ByteLevelBPETokenizer()
        bpe.train([str(corpus / "text.txt")], vocab_size=300, special_tokens=["<|end|>"], show_progress=False)
        folder = tmp_path / "theirs"
        PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, **special).save_pretrained(folder)
        return folder

    return save


_run_numbers = count()


@dataclass(frozen=True)
class Prepared:
    """A store with a tokenizer and a dataset, and the settings that made them."""

    config: RunConfig
    dataset: Dataset
    tokenizer: TokenizerInfo
    store: Path

    def changed(self, *, model: object = None, dataset: object = None, **train: object) -> RunConfig:
        """The settings with some of the model's, the dataset's and the training's replaced."""
        content = self.config.model_dump()
        for section, changes in (("model", model), ("dataset", dataset), ("train", train)):
            content[section] |= changes or {}
        return RunConfig.model_validate(content)

    def run(self, *, model: object = None, dataset: object = None, when_locked: str = "wait", **train: object) -> Run:
        """A new run with a name of its own."""
        config = self.changed(model=model, dataset=dataset, **train)
        config = config.model_copy(update={"run": f"run-{next(_run_numbers)}", "when_locked": when_locked})
        return prepare_run(config, self.dataset, self.tokenizer, self.store)


def prepare(config: RunConfig) -> Prepared:
    """Tokenize the corpus of ``config`` into its store."""
    corpus, store = Corpus.from_scan(scan(config.corpus), config.corpus), prepare_store(config.store)
    tokenizer = make_tokenizer(config.tokenizer, config.corpus, corpus, store)
    return Prepared(config, tokenize(config.corpus, corpus, tokenizer, store), tokenizer, store)


@pytest.fixture(scope="session")
def many_chunks(corpus: Path, prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A dataset of many small chunks, in a store of its own."""
    config = CorpusConfig(paths=[str(corpus)], chunk_bytes=2000)
    store = prepare_store(tmp_path_factory.mktemp("many_chunks"))
    return tokenize(config, Corpus.from_scan(scan(config), config), prepared.tokenizer, store)


EOS = 3
WriteDataset = Callable[[list[tuple[str, list[list[int]]]]], Path]


@pytest.fixture(scope="session")
def write_dataset(tmp_path_factory: pytest.TempPathFactory) -> WriteDataset:
    """Makes a dataset's folder of chunks given as (source, ids of documents without EOS); a text has a byte an id."""
    store, numbers = tmp_path_factory.mktemp("written"), count()

    def write(chunks: list[tuple[str, list[list[int]]]]) -> Path:
        folder = store / "datasets" / str(next(numbers))
        folder.mkdir(parents=True)
        entries = []
        for number, (source, documents) in enumerate(chunks):
            key = f"{folder.name}-{number}"
            (store / "shards" / key).mkdir(parents=True)
            for split, kept in (("train", documents), ("validation", [])):
                tokens = np.array([i for document in kept for i in [*document, EOS]], np.uint16)
                lengths = np.array([len(document) + 1 for document in kept], np.int64)
                rows = np.arange(len(kept))
                path = shard_path(store / "shards" / key, split)
                hashes = rows.astype(np.uint64)
                write_shard(path, tokens, lengths, lengths - 1, rows, hashes, tokenizer_id="numbers", eos_id=EOS)
            counts = {"train": {"documents": len(documents), "dropped": []}}
            counts["validation"] = {"documents": 0, "dropped": []}
            entries.append({"key": key, "source": source, **counts})
        manifest = {"kind": "dataset", "id": folder.name, "tokenizer_id": "numbers", "chunks": entries}
        (folder / "manifest.json").write_bytes(manifest_bytes(manifest))
        return folder

    return write


@pytest.fixture(scope="session")
def prepared(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A prepared store; tests add runs of their own to it and change nothing else."""
    return prepare(tiny_config(corpus, tmp_path_factory.mktemp("prepared") / "store"))


@pytest.fixture(scope="session")
def mixed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A prepared store whose chunks are of the sources web and wiki."""
    config = tiny_config(corpus, tmp_path_factory.mktemp("mixed") / "store")
    small = config.corpus.model_copy(update={"chunk_bytes": 2000})
    prepared = prepare(config.model_copy(update={"corpus": small}))
    manifest = read_manifest(prepared.dataset.folder)
    for number, chunk in enumerate(manifest["chunks"]):
        chunk["source"] = "web" if number % 3 else "wiki"
    (prepared.dataset.folder / "manifest.json").write_bytes(manifest_bytes(manifest))
    return prepared


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    run: Run
    training: TrainingResult
    evaluation: Evaluation
    blocks: Blocks


def train_and_evaluate(prepared: Prepared, run: Run) -> Trained:
    training = train(run)
    blocks = count_blocks(prepared.dataset, run.config.dataset)
    return Trained(run, training, evaluate(run, training.checkpoint), blocks)


def finished(prepared: Prepared, **train_settings: object) -> Run:
    """A run that is trained, evaluated and exported."""
    run = prepared.run(**train_settings)
    training = train(run)
    export(training, evaluate(run, training.checkpoint))
    return run


def two_versions(folder: Path) -> Path:
    """A store with lm/v0001, which the gate promoted, and lm/v0002, which it refused, beside its corpus."""
    prepared = prepare(tiny_config(write_corpus(folder / "corpus"), folder / "store"))
    refused = {"promoted": False, "reasons": ["old text +0.014 bits per byte"], "rules": []}
    for seed, decision in enumerate(({"promoted": True, "reasons": [], "rules": []}, refused)):
        add_version(prepared.store, "lm", finished(prepared, seed=seed, max_steps=2), decision)
    return prepared.store


@pytest.fixture(scope="session")
def trained(prepared: Prepared) -> Trained:
    """A finished run that tests only read."""
    return train_and_evaluate(prepared, prepared.run(max_steps=20, learning_rate=1e-2))


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Return as soon as ``condition`` holds; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.005)


def wait_for_step(run: Run, step: int, child: "subprocess.Popen[str]") -> None:
    """Return when the training ``child`` has written a row of ``step`` or later."""

    def is_there() -> bool:
        assert child.poll() is None, child.communicate()
        return any(row["step"] >= step for row in read_metrics(run.metrics))

    wait_until(is_there, f"step {step}")


def start(*arguments: object, **options: object) -> "subprocess.Popen[str]":
    """``python ARGUMENTS`` in the repository; its output is read as text."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )
