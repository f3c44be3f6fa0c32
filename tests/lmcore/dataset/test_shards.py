"""The shard format, read by this package and by plain pyarrow."""

from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmcore.dataset.shards import Shard, write_shard
from lmcore.errors import StoreError

IDS = [np.array(ids) for ids in ([7, 8, 9], [], [65_000])]


def write(path: Path, ids: list[np.ndarray] | None = None, dtype: object = np.uint16) -> Path:
    ids = [np.append(array, 3) for array in (IDS if ids is None else ids)]
    numbers = np.arange(len(ids))
    tokens = np.concatenate([*ids, np.empty(0)]).astype(dtype)
    lengths = np.array([len(array) for array in ids], np.int64)
    hashes = np.uint64(2**64 - 1) - numbers.astype(np.uint64)
    write_shard(path, tokens, lengths, numbers, numbers, hashes, tokenizer_id="tok", eos_id=3)
    return path


def test_rows_are_documents_that_end_with_eos(tmp_path: Path) -> None:
    table = pa.ipc.open_file(pa.memory_map(str(write(tmp_path / "x.arrow")))).read_all()
    assert table.column("input_ids").to_pylist() == [[7, 8, 9, 3], [3], [65_000, 3]]
    assert table.schema.field("input_ids").type == pa.large_list(pa.uint16())
    assert table.column("hash").to_pylist()[0] == 2**64 - 1
    assert table.column("input_ids").num_chunks == 1
    metadata = table.schema.metadata
    assert (metadata[b"documents"], metadata[b"tokens"], metadata[b"eos_id"]) == (b"3", b"7", b"3")


def test_tokens_and_boundaries_are_views_of_the_file(tmp_path: Path) -> None:
    shard = Shard(write(tmp_path / "x.arrow"), "tok")
    assert shard.tokens.tolist() == [7, 8, 9, 3, 3, 65_000, 3]
    assert shard.offsets.tolist() == [0, 4, 5, 7]
    assert len(shard) == 3
    assert not shard.tokens.flags.owndata
    assert not shard.tokens.flags.writeable


def test_large_vocabularies_get_uint32(tmp_path: Path) -> None:
    shard = Shard(write(tmp_path / "x.arrow", [np.array([70_000])], np.uint32))
    assert shard.tokens.tolist() == [70_000, 3]
    assert shard.tokens.dtype == np.uint32


def test_a_split_may_be_empty(tmp_path: Path) -> None:
    shard = Shard(write(tmp_path / "x.arrow", []))
    assert len(shard) == len(shard.tokens) == 0


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_shard_with_any_flipped_or_cut_byte_is_read_without_a_crash(tmp_path: Path, data: st.DataObject) -> None:
    whole = write(tmp_path / "x.arrow").read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    # A file of its own each time: cutting one that is still mapped would end the process.
    path = tmp_path / uuid4().hex
    path.write_bytes(data.draw(st.sampled_from([flipped, whole[:at]])))
    with suppress(StoreError):
        shard = Shard(path, "tok")
        assert len(shard.tokens.tolist()) >= len(shard.hashes)


def test_a_length_beyond_the_end_is_noticed_before_anybody_reads_so_far(tmp_path: Path) -> None:
    whole = write(tmp_path / "x.arrow").read_bytes()
    lengths = np.array([7, 0], np.int64).tobytes()  # the flat ids in the batch's header: length, nulls
    assert whole.count(lengths) == 1
    (tmp_path / "y.arrow").write_bytes(whole.replace(lengths, np.array([2**32, 0], np.int64).tobytes()))
    with pytest.raises(StoreError, match=r"is damaged: .*too small"):
        Shard(tmp_path / "y.arrow")


def test_what_is_no_shard_or_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.arrow")
    with pytest.raises(StoreError, match="made with tokenizer tok, wanted is other"):
        Shard(path, "other")
    with pytest.raises(StoreError, match="is missing"):
        Shard(tmp_path / "nowhere.arrow")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StoreError, match="is damaged"):
        Shard(path)
