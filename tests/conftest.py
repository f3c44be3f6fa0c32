"""Small real inputs for every test: no network, no files outside the test's own folder."""

import random
from pathlib import Path

import pytest

from lmcore.config import CorpusConfig, DatasetConfig, ModelConfig, RunConfig, TokenizerConfig, TrainConfig

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
    settings: dict[str, object] = {"max_steps": 6, "batch_size": 4, "warmup_steps": 2, "log_every": 2}
    return RunConfig(
        store=store,
        corpus=CorpusConfig(paths=[str(corpus)]),
        tokenizer=TokenizerConfig(vocab_size=400),
        dataset=DatasetConfig(block_size=16),
        model=ModelConfig(layers=1, width=16, heads=2, dropout=0.1),
        train=TrainConfig.model_validate({**settings, **train}),
    )


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
