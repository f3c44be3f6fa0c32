"""Small files share chunks, and cost the same each however many there are."""

from time import process_time

import numpy as np
import pytest

from lmcore.corpus import chunks
from lmcore.corpus.chunks import ChunkIndex, Group, read_chunks
from lmcore.corpus.formats import SourceFile
from lmcore.corpus.text_range import TextRange
from lmcore.settings.config import CorpusConfig


def test_many_small_files_cost_no_more_each_than_few(monkeypatch: pytest.MonkeyPatch) -> None:
    span = TextRange("", "txt", 0, 5, b"text\n", np.array([5]))
    monkeypatch.setattr(chunks, "read_ranges", lambda *_: iter([span]))
    group = Group("corpus", "train", [SourceFile("", 5, "")] * 20_000)
    before = process_time()
    [chunk] = read_chunks(group, CorpusConfig(paths=["x"]), ChunkIndex())
    assert len(chunk) == 20_000
    assert process_time() - before < 5  # 0.3 s; a sum over all spans at each took 11 s
    sizes = [len(chunk) for chunk in read_chunks(group, CorpusConfig(paths=["x"], chunk_bytes=5000), ChunkIndex())]
    assert sizes == [2000] * 10
