"""What a file is, by its first bytes."""

import codecs
import gzip
import io
import json
import os
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd

from lmcore.corpus.detection import HEAD_BYTES, detect_format
from lmcore.corpus.formats import advice
from lmcore.corpus.ledger import Ledger, Skip
from lmcore.corpus.listing import Corpus, open_corpus
from lmcore.corpus.readers import read_documents
from lmcore.corpus.scan import scan
from lmcore.dataset.audit import ledger_by_file
from lmcore.dataset.manifest import Dataset
from lmcore.dataset.tokenization import tokenize
from lmcore.errors import CorpusError
from lmcore.settings.config import CorpusConfig, RunConfig, TokenizerConfig
from lmcore.tokenizer.make import make_tokenizer

JAPANESE = "".join(f"これは試験のための短い文です。番号は{n}番、カタカナも漢字もあります。\n" for n in range(60))
ROWS = "".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(50))


def written(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def skips(path: Path, **settings: object) -> list[Skip]:
    return scan(CorpusConfig.model_validate({"paths": [str(path)], "include": ["*"], **settings})).skipped


def texts(path: Path, **settings: object) -> list[str]:
    config = CorpusConfig.model_validate({"paths": [str(path)], **settings})
    return [d.text for file in scan(config).files for d in read_documents(file, config, Ledger())]


def prepared(store: Path, *paths: Path, vocab_size: int = 400, **settings: object) -> Dataset:
    corpus = CorpusConfig.model_validate({"paths": [str(path) for path in paths], **settings})
    config = RunConfig(corpus=corpus, tokenizer=TokenizerConfig(vocab_size=vocab_size), store=store)
    found, folder = open_corpus(config)
    return tokenize(corpus, found, make_tokenizer(config.tokenizer, corpus, found, folder), folder)


def zipped(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name in names:
            file.writestr(name, "text")
    return content.getvalue()


def tarred() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        file.addfile(tarfile.TarInfo("a.txt"))
    return content.getvalue()


FOREIGN = [
    ("a.zip", zipped("a.txt"), "zip", "unzip"),
    ("a.txt", zipped("[Content_Types].xml", "word/document.xml"), "docx", "pandoc"),
    ("a.pdf", b"%PDF-1.7 ...", "pdf", "pdftotext"),
    ("a.tar", tarred(), "tar", "tar xf"),
    ("a.txt.gz", gzip.compress(tarred()), "tar", "tar xf"),
    ("a.html", b"\n<!DOCTYPE html><html><body>x</body></html>", "html", "pandoc"),
    ("a.warc", b"WARC/1.0\r\nWARC-Type: warcinfo\r\n", "warc", "trafilatura"),
    ("a.csv", b'id,text\n1,"a, b"\n', "csv", "csv.DictReader"),
    ("a.tsv", b"id\ttext\n1\ta\n", "tsv", "delimiter"),
    ("a.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git_lfs_pointer", "git lfs pull"),
    ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid 0\nsize 5\n", "git_lfs_pointer", "git lfs pull"),
    ("a.jsonl.gz", b"/annex/objects/SHA256E-s5--0.jsonl.gz\n", "git_annex_pointer", "git annex get"),
    ("a.txt", gzip.compress(b"text"), "gzip", "rename"),
    ("a.parquet", b"", "empty_file", "copy it again"),
    ("a.jsonl", b'[\n  {"text": "a"},\n  {"text": "b"}\n]\n', "json_array", "jq -c '.[]'"),
    ("a.json", b'{\n  "text": "a"\n}\n', "pretty_json", "jq -c ."),
    ("a.jsonl", b'{\n  "text": "a",\n  "id": 3\n}\n{\n  "text": "b"\n}\n', "pretty_json", "jq -c ."),
    ("a.json", b'"text"\n', "no_json_lines", "one JSON object a line"),
    ("a.txt", b"\x1b[31mred\x1b[0m text of a terminal\n" * 9, "escape_sequences", "sed"),
    ("a.txt", b"text\0text\0of a database\n" * 30, "nul_bytes", "tr -d '\\000' < "),
    ("a.txt.gz", gzip.compress("日本語の文。\0\0\0\n".encode() * 90), "nul_bytes", "| tr -d '\\000' > "),
    ("a.txt", os.urandom(5000) + b"\0\1\2" * 200, "no_text", "corpus.exclude"),
]


@pytest.mark.parametrize(("name", "content", "reason", "help"), FOREIGN, ids=[f"{row[2]}-{row[0]}" for row in FOREIGN])
def test_what_is_no_text_is_named_with_how_to_convert_it(
    tmp_path: Path, name: str, content: bytes, reason: str, help: str
) -> None:
    path = written(tmp_path / name, content)
    [skip] = skips(path)
    assert (skip.reason, skip.stored) == (reason, len(content))
    assert help in advice(reason, str(path), skip.detail)
    with pytest.raises(CorpusError, match=f"{path} is "):
        skips(path, on_bad_input="fail")


def test_a_file_of_another_format_given_by_name_says_how_to_convert_it(tmp_path: Path) -> None:
    path = written(tmp_path / "book.pdf", b"%PDF-1.7")
    with pytest.raises(CorpusError, match=r"book\.pdf is a PDF: convert it with `pdftotext"):
        scan(CorpusConfig(paths=[str(path)]))
    with pytest.raises(CorpusError, match=r"1 other file there: 1 \.pdf.*book.pdf is a PDF"):
        scan(CorpusConfig(paths=[str(tmp_path)]))


ENCODINGS = [
    ("cp932", JAPANESE + "株式会社①㈱髙橋\n", "CP932"),
    ("cp932", JAPANESE[:100], "CP932"),
    ("euc_jp", JAPANESE, "EUC-JP"),
    ("iso2022_jp", JAPANESE, "ISO-2022-JP"),
    ("utf-16", JAPANESE, "UTF-16"),
    ("utf-16-le", JAPANESE, "UTF-16LE"),
    ("utf-16-be", JAPANESE, "UTF-16BE"),
    ("utf-16", "plain English text in sixteen bits\n" * 5, "UTF-16"),
    ("utf-7", JAPANESE, "UTF-7"),
]


@pytest.mark.parametrize(("codec", "text", "name"), ENCODINGS)
@pytest.mark.parametrize("ending", [".txt", ".txt.gz"])
def test_other_encodings_are_named_and_the_command_converts_them(
    tmp_path: Path, codec: str, text: str, name: str, ending: str
) -> None:
    content = text.encode(codec)
    path = written(tmp_path / f"日本 語{ending}", gzip.compress(content) if ending.endswith("gz") else content)
    [skip] = skips(path)
    assert (skip.reason, skip.detail.upper()) == ("other_encoding", name)
    command = advice(skip.reason, str(path), skip.detail).split("`")[1]
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert (tmp_path / "日本 語.utf8.txt").read_bytes().removeprefix(codecs.BOM_UTF8).decode() == text
    assert skips(tmp_path / "日本 語.utf8.txt") == []


@pytest.mark.parametrize(
    "content",
    [
        JAPANESE.encode(),
        b"\xef\xbb\xbf" + JAPANESE.encode(),
        b"c++ and a+b- and +819012345678- and base64 +AAAA+BBBB=\n" * 20,
        b"one line with a stray \x1b escape\n" + b"plain\n" * 50,
        b"one bad byte \xff here\n" + b"good\n" * 50,
        "日本語。\n".encode() * 50 + "日本語。\n".encode("cp932"),
        ("a" * (HEAD_BYTES - 1) + "日本語").encode(),  # a character is cut where the head ends
        b"nul \0 once\n" * 1 + b"text\n" * 50,
        b"\xff\xfe" * 3,
        b"",
    ],
)
def test_utf8_with_few_bad_lines_is_text(content: bytes) -> None:
    is_whole = len(content) <= HEAD_BYTES
    if content.startswith(b"\xff\xfe"):
        assert detect_format(content, True, "txt", "txt").problem  # a mark of UTF-16 is evidence however short
    else:
        assert detect_format(content[:HEAD_BYTES], is_whole, "txt", "txt").problem == ""


@pytest.mark.parametrize("name", ["r.json.gz", "R.JSON", "r.ndjson", "r.jsonlines.zst", "r.JSONL"])
def test_json_lines_are_read_whatever_their_suffix(tmp_path: Path, name: str) -> None:
    content = ROWS.encode()
    if name.endswith("gz"):
        content = gzip.compress(content)
    if name.endswith("zst"):
        content = zstd.compress(content)
    assert texts(written(tmp_path / name, content).parent) == [f"row {n}" for n in range(50)]


def test_one_good_line_in_the_beginning_keeps_json_lines(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", '{"text": broken\n{"text": "good"}\n')
    assert texts(path) == ["good"]


def test_a_window_beyond_the_usual_limit_is_read(tmp_path: Path) -> None:
    parameter = zstd.CompressionParameter
    options: dict[int, int] = {parameter.window_log: 28, parameter.content_size_flag: 0}
    compressor = zstd.ZstdCompressor(options=options)
    content = compressor.compress(ROWS.encode()) + compressor.flush()
    assert texts(written(tmp_path / "a.jsonl.zst", content)) == [f"row {n}" for n in range(50)]


def test_capitals_in_a_suffix_count_for_nothing(tmp_path: Path) -> None:
    assert texts(written(tmp_path / "UPPER.TXT", "one\ntwo\n").parent) == ["one", "two"]


def test_a_refused_file_beside_a_corpus_changes_its_listing_and_not_its_id(tmp_path: Path) -> None:
    written(tmp_path / "a.txt", "text\n")
    config = CorpusConfig(paths=[str(tmp_path)])
    before = Corpus.from_scan(scan(config), config)
    written(tmp_path / "package.json", '{\n  "name": "x"\n}\n')
    after = Corpus.from_scan(scan(config), config)
    assert before.id == after.id
    assert before.listing != after.listing


# --- what is said ---


def test_a_missing_key_names_those_that_are_there_with_either_tokenizer(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"content": f"row {n}", "url": "x"}) + "\n" for n in range(300))
    path = written(tmp_path / "c.jsonl", rows)
    expected = "300 lines have no key `text` in .*c.jsonl; they have `content`, `url`: set corpus.text_field"
    with pytest.raises(CorpusError, match=expected):
        prepared(tmp_path / "store", path)
    good = prepared(tmp_path / "store", written(tmp_path / "good.txt", JAPANESE))
    corpus = CorpusConfig(paths=[str(path)])
    config = RunConfig(corpus=corpus, store=tmp_path / "store")
    source = str(tmp_path / "store/tokenizers" / good.tokenizer_id)
    loading = TokenizerConfig(source=source)
    found, store = open_corpus(config)
    with pytest.raises(CorpusError, match=expected):
        tokenize(corpus, found, make_tokenizer(loading, corpus, found, store), store)


def test_a_lost_half_is_named_in_stored_bytes_and_again_at_the_next_start(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    written(folder / "good.txt", JAPANESE)
    pq.write_table(
        pa.table({"body": [os.urandom(500).hex() for _ in range(50)], "url": ["x"] * 50}),
        folder / "column.parquet",
        use_dictionary=False,
    )
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), folder / "empty.parquet")
    written(folder / "broken.jsonl.gz", b"\x1f\x8b\x08" + bytes(7) + b"\xff" * 5000)
    written(folder / "cut.parquet", (folder / "column.parquet").read_bytes()[:9000])
    for _ in range(2):  # made, and found
        found = prepared(tmp_path / "store", folder)
        [first, *causes] = found.warnings
        stored = sum(path.stat().st_size for path in folder.iterdir())
        lost = stored - sum((folder / name).stat().st_size for name in ("good.txt", "empty.parquet"))
        assert f"could not be used: {lost:,} of {stored:,} bytes of files as stored (4 whole files)" in first
        assert f"`lm ledger {found.id}` lists every file" in first
        warning = "\n".join(causes)
        assert len(causes) == 4
        assert "column.parquet: no column `text`; they have `body`, `url`: set corpus.text_field" in warning
        for words in (
            "cut.parquet is a damaged table",
            "broken.jsonl.gz is damaged",
            "empty.parquet is a table without",
        ):
            assert words in warning


def test_each_set_of_keys_and_each_encoding_is_a_cause_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    written(folder / "good.txt", JAPANESE)
    written(folder / "nul.txt", JAPANESE.replace("\n", "\0\0\0\0\0\n"))
    pq.write_table(pa.table({"honbun": [JAPANESE]}), folder / "col.parquet")
    rows = [{"body": "b", "title": "t"}, {"title": "t", "body": "b"}, {"url": "u"}, {"body": "b", "title": "t"}]
    written(folder / "body.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for number in range(12):
        written(folder / f"{number:02}.txt", JAPANESE.encode("cp932"))
    written(folder / "euc.txt", JAPANESE.encode("euc_jp"))
    found = prepared(tmp_path / "store", folder)
    causes = [warning.replace(f"{folder}/", "") for warning in found.warnings[1:]]
    assert causes[0] == (
        "12 files: 00.txt is CP932 text, not UTF-8: convert it with `iconv -f CP932 -t UTF-8 00.txt > 00.utf8.txt`; "
        f"likewise {', '.join(f'{number:02}.txt' for number in range(1, 11))} and 1 more file "
        f"(`lm ledger {found.id}` lists them)"
    )
    assert set(causes[1:]) == {
        "1 file: euc.txt is EUC-JP text, not UTF-8: convert it with `iconv -f EUC-JP -t UTF-8 euc.txt > euc.utf8.txt`",
        "1 file: nul.txt is text that contains NUL bytes: remove them with `tr -d '\\000' < nul.txt > nul.clean.txt`",
        "col.parquet: no column `text`; they have `honbun`: set corpus.text_field",
        "3 lines have no key `text` in body.jsonl; they have `body`, `title`: set corpus.text_field",
        "1 line has no key `text` in body.jsonl; they have `url`: set corpus.text_field",
    }
    listed = {Path(row["path"]).name: row for row in ledger_by_file(found.folder)}
    assert listed.keys() == {path.name for path in folder.iterdir()}
    for path in folder.iterdir():
        lost = 0 if path.name in ("good.txt", "body.jsonl") else path.stat().st_size
        figures = (listed[path.name]["stored_bytes"], listed[path.name]["undecodable_stored_bytes"])
        assert figures == (path.stat().st_size, lost)


def test_files_beside_the_patterns_are_counted_by_suffix(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    written(folder / "a.txt", JAPANESE)
    for number in range(3):
        written(folder / f"{number}.docx", b"x" * 10_000)
    found = prepared(tmp_path / "store", folder)
    manifest = json.loads((found.folder / "manifest.json").read_bytes())
    assert manifest["ledger"]["beside"] == {"docx": [3, 30_000]}
    assert any("30.0 kB lie beside the" in warning and "3 .docx" in warning for warning in found.warnings)


@pytest.mark.parametrize("ends", [b"\r", b"\r\n", b"\n", b"\r\r\n"])
def test_lines_end_as_they_do(tmp_path: Path, ends: bytes) -> None:
    lines = [f"line {n}\u2028one" for n in range(200)]
    path = written(tmp_path / "cr.txt", b"".join(line.encode() + ends for line in lines))
    assert texts(path) == lines
    mixed = written(tmp_path / "mixed.txt", b"a\rb\nc\r\nd\r\re\r\r\nf")
    assert texts(mixed, document="line") == list("abcdef")
    assert texts(mixed, document="paragraph") == ["a\rb\nc\r\nd", "e\r\r\nf"]
