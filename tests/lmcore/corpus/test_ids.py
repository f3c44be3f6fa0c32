"""A store made by an earlier version is found again: the names of corpora and chunks never change."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmcore.corpus.chunks import ChunkIndex, chunk_key, group_files, read_chunks
from lmcore.corpus.listing import Corpus
from lmcore.corpus.scan import scan
from lmcore.settings.config import CorpusConfig
from lmcore.settings.section import fingerprint

TEXTS = [f"{number} {'文章と言葉。' * (number * 7919 % 23)} end{number}" for number in range(600)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("ids")
    (found / "lines.txt").write_text("\n".join(TEXTS))
    (found / "returns.txt").write_bytes("\r".join(TEXTS[:200]).encode() + b"\r\nlast\r\r\n")
    (found / "paragraphs.txt").write_text("\n\n".join(f"{text}\n{text[::-1]}" for text in TEXTS[:300]))
    (found / "whole.md").write_text("".join(TEXTS[:50]))
    rows = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS)
    (found / "rows.jsonl.gz").write_bytes(gzip.compress(rows.encode(), mtime=0))
    (found / "cut.txt.gz").write_bytes(gzip.compress("\n".join(TEXTS).encode(), mtime=0)[:-200])
    # The bytes of a written table depend on the version of pyarrow, so tables are not part of this corpus.
    return found


@pytest.mark.parametrize(
    ("settings", "corpus_id", "names"),
    [
        ({}, "77212c06063c0a38", "bfa50be93cd6799e"),
        ({"document": "paragraph", "chunk_bytes": 3000}, "6f577bace1616177", "49705f0251d99bdf"),
        ({"document": "line", "chunk_bytes": 2000, "max_document_bytes": 200}, "fcaafea0df8450c3", "40cbeee48e251b72"),
        ({"normalize": "NFC", "chunk_bytes": 5000, "validation_fraction": 0.1}, "3d6f697876eb17cb", "66f485b6285f6d2a"),
    ],
)
def test_names_of_corpora_and_chunks(folder: Path, settings: dict[str, object], corpus_id: str, names: str) -> None:
    config = CorpusConfig.model_validate({"paths": [str(folder)], "chunk_bytes": 4000, **settings})
    found = scan(config)
    keys = []
    for group in group_files(found, config):
        index = ChunkIndex()
        list(read_chunks(group, config, index))
        index_key = group.index_key(config).removeprefix("outline ")
        keys += [[index_key, chunk_key(chunk.digest, group.split, "0" * 16, config)] for chunk in index.chunks]
    assert (Corpus.from_scan(found, config).id, fingerprint(len(keys), keys)) == (corpus_id, names)


def test_names_of_the_chunks_of_a_table(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "x.parquet", row_group_size=100)
    config = CorpusConfig(paths=[str(tmp_path)], chunk_bytes=4000)
    [group] = group_files(scan(config), config)
    index = ChunkIndex()
    list(read_chunks(group, config, index))
    keys = [chunk_key(chunk.digest, "train", "0" * 16, config) for chunk in index.chunks]
    assert fingerprint(len(keys), keys) == "148503584cde5336"
