"""Corpora behind URLs, read from servers on this machine: S3 as moto has it, and HTTP."""

import gzip
import io
import json
import logging
import os
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd
from blake3 import blake3
from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from pyarrow.feather import write_feather
from werkzeug.serving import make_server
from werkzeug.wrappers import Response

from lmcore.corpus.hash_index import HashIndex
from lmcore.corpus.listing import Corpus, open_corpus
from lmcore.corpus.remote import hash_stored, open_stored, remote_files, size_and_version
from lmcore.corpus.scan import scan
from lmcore.dataset.manifest import Dataset
from lmcore.dataset.stream import TokenStream
from lmcore.dataset.tokenization import tokenize
from lmcore.errors import ConfigError, CorpusError, FileChangedError, is_transient
from lmcore.settings.config import CorpusConfig, RunConfig
from lmcore.settings.urls import file_name
from lmcore.store.artifacts import read_manifest
from lmcore.store.files import DIGEST_BYTES, hash_file
from lmcore.tokenizer.tokenizer import TokenizerInfo
from tests.conftest import Prepared, start

LINES = "".join(f"{number} 学習と言語\n" for number in range(400)).encode()


def digest_of(content: bytes) -> str:
    return blake3(content).hexdigest(DIGEST_BYTES)


@pytest.fixture
def tokenizer(prepared: Prepared) -> TokenizerInfo:
    return prepared.tokenizer


def build(tokenizer: TokenizerInfo, store: Path, *paths: object, **settings: object) -> Dataset:
    corpus = CorpusConfig.model_validate({"paths": [str(path) for path in paths], "chunk_bytes": 2000, **settings})
    described, folder = open_corpus(RunConfig(store=store, corpus=corpus))
    return tokenize(corpus, described, tokenizer, folder)


def names(url: str, **settings: object) -> list[str]:
    config = CorpusConfig.model_validate({"paths": [url], **settings})
    return sorted(file_name(file.path) for file in scan(config).files)


def parquet(**columns: list[str]) -> bytes:
    written = io.BytesIO()
    pq.write_table(pa.table(columns), written)
    return written.getvalue()


def feather(**columns: list[str]) -> bytes:
    written = io.BytesIO()
    write_feather(pa.table(columns), written, compression="zstd")
    return written.getvalue()


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy between a test and its servers, and no settings of the person who runs it."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)


# --- S3 ---


@dataclass
class S3:
    """A server for S3 that notes every request, and what a test does before it is answered."""

    app: Any = field(default_factory=lambda: DomainDispatcherApplication(create_backend_app))
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and Range."""
    before: Callable[[str, str], None] = lambda method, path: None
    is_closed_to: Callable[[str], bool] = lambda path: False

    def __call__(self, environ: Any, start_response: Any) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path, environ.get("HTTP_RANGE", "")))
        self.before(method, path)
        return (Response(status=403) if self.is_closed_to(path) else self.app)(environ, start_response)


@dataclass
class Bucket:
    """A bucket of a test's own."""

    name: str
    client: Any
    server: S3
    port: int

    def put(self, key: str, content: bytes) -> str:
        self.client.put_object(Bucket=self.name, Key=key, Body=content)
        return self.url(key)

    def url(self, key: str = "", port: int | None = None) -> str:
        return f"s3://{self.name}/{key}?endpoint_override=127.0.0.1:{port or self.port}&scheme=http"

    def reads(self) -> list[str]:
        """The objects that were fetched since the last call, once for each request."""
        folder = f"/{self.name}/"
        found = [path[len(folder) :] for method, path, _ in self.server.requests if method == "GET"]
        self.server.requests.clear()
        return sorted(filter(None, found))


@pytest.fixture(scope="module")
def s3() -> Iterator[tuple[S3, int]]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = S3()
    listening = make_server("127.0.0.1", 0, server, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
    thread.start()
    yield server, listening.port
    listening.shutdown()
    thread.join()
    listening.server_close()


_numbers = count()


@pytest.fixture
def bucket(s3: tuple[S3, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    server, port = s3
    for name, value in (("ACCESS_KEY_ID", "someone"), ("SECRET_ACCESS_KEY", "hush"), ("EC2_METADATA_DISABLED", "true")):
        monkeypatch.setenv(f"AWS_{name}", value)
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1")
    made = Bucket(f"texts-{next(_numbers)}", client, server, port)
    client.create_bucket(Bucket=made.name)
    yield made
    server.before, server.is_closed_to = S3.before, S3.is_closed_to
    client.close()


def test_a_bucket_gives_the_dataset_that_the_same_files_give_here(
    bucket: Bucket, tokenizer: TokenizerInfo, tmp_path: Path
) -> None:
    contents = {
        "a.txt": LINES,
        "b/c.jsonl.gz": gzip.compress(b'{"text": "one"}\n{"text": "two"}\n' * 40),
        "b/日本 語 ?#%20.txt.zst": zstd.compress(LINES[:2000]),
        "d.parquet": parquet(text=["table"] * 300, other=["never"] * 300),
        "e.feather": feather(text=["arrow"] * 300),
    }
    for name, content in contents.items():
        path = tmp_path / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        bucket.put(f"texts/{name}", content)
    here = build(tokenizer, tmp_path / "here", tmp_path / "texts")
    there = build(tokenizer, tmp_path / "there", bucket.url("texts"))
    assert there.id == here.id
    assert (there.documents, there.tokens, there.source_bytes) == (here.documents, here.tokens, here.source_bytes)
    assert there.skipped == here.skipped == {}
    assert there.unaccounted_bytes == 0
    ids = [[ids.tolist() for ids, *_ in TokenStream(dataset.folder, "train").documents()] for dataset in (here, there)]
    assert ids[0] == ids[1]
    paths = {span["path"] for chunk in read_manifest(there.folder)["chunks"] for span in chunk["spans"]}
    assert paths == {bucket.url(f"texts/{name}") for name in contents}
    assert "hush" not in (there.folder / "manifest.json").read_text()


def test_a_listing_leaves_out_what_a_folder_leaves_out(bucket: Bucket) -> None:
    for key in ("a.txt", "b/c.md", "b/d.bin", ".hidden.txt", ".git/e.txt", "b/test_x/f.txt", "b/g.txt", "folder/"):
        bucket.put(f"texts/{key}", b"" if key == "folder/" else b"x")
    assert names(bucket.url("texts")) == names(bucket.url("texts/")) == ["a.txt", "c.md", "f.txt", "g.txt"]
    assert names(bucket.url()) == ["a.txt", "c.md", "f.txt", "g.txt"]
    assert names(bucket.url("texts"), exclude=["test*"]) == ["a.txt", "c.md", "g.txt"]
    assert names(bucket.url("texts/*.txt")) == ["a.txt"]
    assert names(bucket.url("texts/b/?.txt")) == ["g.txt"]
    assert names(bucket.url("texts/**/*.txt")) == ["a.txt", "f.txt", "g.txt"]
    assert names(bucket.url("texts/.git/*.txt")) == ["e.txt"]
    assert names(bucket.url("texts/.hidden.txt")) == [".hidden.txt"]
    config = CorpusConfig(paths=[bucket.url("texts")])
    assert scan(config).unread.files == 3


def test_a_table_gives_the_column_that_is_asked_for(bucket: Bucket, tokenizer: TokenizerInfo, tmp_path: Path) -> None:
    url = bucket.put("x.parquet", parquet(text=["no"] * 200, body=[f"これは{n:03}" for n in range(200)]))
    dataset = build(tokenizer, tmp_path / "store", url, text_field="body", validation_fraction=0.5, chunk_bytes=1000)
    assert dataset.text_bytes + dataset.validation_text_bytes == 200 * len("これは000".encode())
    other = build(tokenizer, tmp_path / "store", url, bucket.put("y.txt", LINES), text_field="absent")
    assert other.skipped == {"no_text_field": 1}


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("none/x.txt", r"corpus.paths: s3://texts-\d+/none/x.txt\S* does not exist: check the address"),
        ("data.bin", r"corpus.paths: data.bin matches none of corpus.include .* add --corpus.include '\*.bin'"),
        ("*.md", r"corpus.paths: no file is at s3://texts-\d+/\*.md\S+, and none below it"),
        ("**.md", r"s3://texts-\d+/\*\*.md\S+: Invalid pattern.*: check the address"),
    ],
)
def test_what_is_not_there_is_named(bucket: Bucket, key: str, message: str) -> None:
    bucket.put("data.bin", b"x")
    with pytest.raises(CorpusError, match=message):
        names(bucket.url(key))


def test_a_bucket_that_is_not_there_is_named(bucket: Bucket) -> None:
    url = bucket.url("x.txt").replace(bucket.name, "elsewhere")
    with pytest.raises(CorpusError, match=r"elsewhere/x.txt\S+ does not exist \(there is no bucket elsewhere\)"):
        names(url)


def test_an_unknown_option_or_scheme_is_named(bucket: Bucket) -> None:
    with pytest.raises(CorpusError, match=r"s3://texts/x\?speed=high: nothing .*Unexpected query parameter .*speed"):
        names("s3://texts/x?speed=high")
    with pytest.raises(CorpusError, match=r"nowhere://x: nothing installed here opens it"):
        names("nowhere://x")


def test_a_server_that_does_not_answer_is_worth_a_retry(bucket: Bucket) -> None:
    with pytest.raises(
        ConnectionError, match=r"s3://.*127.0.0.1:1\S* cannot be read: .*connect.*Check the net"
    ) as error:
        names(bucket.url("x.txt", port=1))
    assert is_transient(error.value)


def test_what_may_not_be_read_is_named_and_left_out(bucket: Bucket, tokenizer: TokenizerInfo, tmp_path: Path) -> None:
    for name in "ab":
        bucket.put(f"{name}.txt", LINES)
    bucket.server.is_closed_to = lambda path: path.endswith("b.txt")
    assert build(tokenizer, tmp_path / "store", bucket.url()).skipped == {"unreadable": 1}
    with pytest.raises(CorpusError, match=r"b.txt\S+: access is denied \(.*\): give credentials in the environment"):
        names(bucket.url("b.txt"))


SECRETS = [
    "s3://someone:hush@texts/x.txt",
    "s3://someone:hu/hush@texts/x.txt",
    "s3://texts/x.txt?scheme=http&secret_key=hush",
    "https://someone:hush@host.invalid/x.txt",
    "https://someone:hu/hush@host.invalid/x.txt",
    "https://host.invalid/x.txt?X-Amz-Credential=me&X-Amz-Signature=hush",
    "https://host.invalid/x.txt?sig=hush",
    "https://host.invalid/x.txt?access_token=hush",
    "sftp://someone:hush@host.invalid/x.txt",
]


@pytest.mark.parametrize("url", SECRETS)
def test_a_url_with_credentials_is_refused(url: str, tmp_path: Path) -> None:
    config = RunConfig(store=tmp_path / "store", corpus=CorpusConfig(paths=[url]))
    with pytest.raises(CorpusError, match=r"corpus.paths: a URL .* holds .*credentials in the environment") as error:
        open_corpus(config)
    assert "hush" not in str(error.value)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("change", "reason"), [("as_long", "changed_while_read"), ("shorter", "changed_while_read"), ("gone", "unreadable")]
)
@pytest.mark.parametrize("kind", ["txt", "parquet"])
def test_an_object_that_changes_while_it_is_read_costs_only_itself(
    bucket: Bucket, tokenizer: TokenizerInfo, tmp_path: Path, change: str, reason: str, kind: str
) -> None:
    bucket.put("a.txt", LINES)
    content = LINES.upper() if kind == "txt" else parquet(text=["一"] * 500)
    url = bucket.put(f"b.{kind}", content)
    times = count()

    def change_it(method: str, path: str) -> None:
        if method == "GET" and path.endswith(f"b.{kind}") and (time := next(times)):  # each time after it was hashed
            if change == "gone":
                bucket.client.delete_object(Bucket=bucket.name, Key=f"b.{kind}")
            else:
                length = len(content) if change == "as_long" else 1999 + time
                bucket.put(f"b.{kind}", content[:length][:: -1 if time % 2 else 1])

    bucket.server.before = change_it
    dataset = build(tokenizer, tmp_path / "store", bucket.url())
    assert next(times) >= 2
    assert dataset.skipped == {reason: 1}
    assert dataset.unaccounted_bytes == 0
    assert dataset.documents + dataset.validation_documents == 400
    assert [skip["path"] for skip in read_manifest(dataset.folder)["ledger"]["skips"]] == [url]


def test_an_unchanged_bucket_is_not_downloaded_again(bucket: Bucket, tokenizer: TokenizerInfo, tmp_path: Path) -> None:
    bucket.put("a.txt", LINES)
    bucket.put("b.parquet", parquet(text=["一"] * 500))
    bucket.reads()
    first = build(tokenizer, tmp_path / "store", bucket.url())
    assert bucket.reads() == ["a.txt", "a.txt", "b.parquet", "b.parquet"]  # to name it, and to encode it
    again = build(tokenizer, tmp_path / "store", bucket.url())
    assert bucket.reads() == []
    assert again == first.model_copy(update={"chunks_made": 0})
    bucket.put("a.txt", LINES.replace("学習".encode(), "練習".encode()))  # as long, and in the same second
    bucket.reads()
    build(tokenizer, tmp_path / "store", bucket.url())
    assert set(bucket.reads()) == {"a.txt"}


def test_an_object_is_read_in_parts_of_bounded_size(bucket: Bucket) -> None:
    content = LINES * 3000
    url = bucket.put("x.txt", content)
    bucket.server.requests.clear()
    assert size_and_version(url)[0] == len(content) > 2.5 * 2**23
    assert {method for method, *_ in bucket.server.requests} == {"HEAD"}
    assert hash_stored(url) == digest_of(content)
    ranges = [part.removeprefix("bytes=").split("-") for method, _, part in bucket.server.requests if method == "GET"]
    assert [int(stop) - int(start) + 1 for start, stop in ranges[:-1]] == [2**23] * (len(content) // 2**23)
    assert int(ranges[-1][1]) == len(content) - 1


# --- HTTP ---


@dataclass
class Page:
    content: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    sent_bytes: int | None = None
    """The connection ends after so many."""


@dataclass
class Web:
    """A server on this machine."""

    url: str
    pages: dict[str, Page]
    requests: list[tuple[str, str, str]]
    """Method, path with query, Range."""
    sent: list[int]
    authorizations: list[str]


@pytest.fixture
def web() -> Iterator[Web]:
    pages: dict[str, Page] = {}
    requests: list[tuple[str, str, str]] = []
    sent: list[int] = []
    authorizations: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            requests.append((self.command, self.path, self.headers.get("Range", "")))
            authorizations.append(self.headers.get("Authorization", ""))
            page = pages.get(self.path, Page(status=404))
            self.send_response(page.status)
            for name, value in {"Content-Length": str(len(page.content)), **page.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            content = page.content[: page.sent_bytes]
            self.close_connection = page.sent_bytes is not None
            try:
                for start in range(0, len(content), 2**16):
                    sent.append(self.wfile.write(content[start : start + 2**16]))
            except ConnectionError:
                self.close_connection = True

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield Web(f"http://127.0.0.1:{server.server_port}", pages, requests, sent, authorizations)
        server.shutdown()
        thread.join()


def test_files_of_a_web_server_are_read_by_one_request_each(web: Web, tokenizer: TokenizerInfo, tmp_path: Path) -> None:
    contents = {
        "/a.txt": LINES,
        "/b.jsonl.gz": gzip.compress(b'{"text": "one"}\n' * 300),
        "/c.parquet": parquet(text=["table"] * 300),
        "/d.txt.zst?download=1": zstd.compress(LINES[:2000]),
    }
    for path, content in contents.items():
        web.pages[path] = Page(content, headers={"ETag": f'"{path}"'})
        (tmp_path / path[1:].partition("?")[0]).write_bytes(content)
    there = build(tokenizer, tmp_path / "store", *(f"{web.url}{path}" for path in contents))
    assert there.id == build(tokenizer, tmp_path / "here", *sorted(tmp_path.glob("?.*"))).id
    assert (there.skipped, there.unaccounted_bytes) == ({}, 0)
    gets = [path for method, path, part in web.requests if method == "GET" and not part]
    assert sorted(gets) == sorted([*contents, *contents])  # to name it, and to encode it
    web.requests.clear()
    build(tokenizer, tmp_path / "store", *(f"{web.url}{path}" for path in contents))
    assert {method for method, *_ in web.requests} == {"HEAD"}


def test_an_archive_that_is_called_a_packed_text_stays_an_archive(web: Web) -> None:
    content = gzip.compress(LINES)
    web.pages["/x.txt.gz"] = Page(content, headers={"Content-Encoding": "gzip", "ETag": "1"})
    [file] = scan(CorpusConfig(paths=[f"{web.url}/x.txt.gz"])).files
    assert (file.compression, file.digest) == ("gz", digest_of(content))
    assert file.stored_bytes == len(content)  # counted: what Content-Length means here is not sure


def test_a_web_servers_password_comes_from_netrc(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password hush")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    web.pages["/x.txt"] = Page(LINES)
    assert hash_stored(f"{web.url}/x.txt") == digest_of(LINES)
    assert set(web.authorizations) == {f"Basic {b64encode(b'someone:hush').decode()}"}


@pytest.mark.parametrize("refuses_ranges", [True, False])
def test_whether_a_web_server_knows_ranges_does_not_matter(web: Web, refuses_ranges: bool) -> None:
    web.pages["/x.txt"] = Page(LINES, headers={"Accept-Ranges": "none" if refuses_ranges else "bytes"})
    with open_stored(f"{web.url}/x.txt") as stream:
        assert stream.read() == LINES
    assert [(method, part) for method, _, part in web.requests] == [("HEAD", ""), ("GET", "")]


def test_the_index_page_of_a_web_server_is_a_listing(web: Web) -> None:
    links = ["a.txt", "b.md", "c.bin", ".d.txt", "../up.txt", "?C=N;O=D", "sub/", "%E8%AA%9E.txt"]
    web.pages["/texts/"] = Page("".join(f'<a href="{link}">x</a>' for link in links).encode())
    web.pages["/texts/"].headers["Content-Type"] = "text/html"
    web.pages["/texts/sub/"] = Page(b'<a href="e.txt">x</a>', headers={"Content-Type": "text/html"})
    for name in ("a.txt", "b.md", "sub/e.txt", "%E8%AA%9E.txt"):
        web.pages[f"/texts/{name}"] = Page(b"x")
    assert names(f"{web.url}/texts/") == ["a.txt", "b.md", "e.txt", "語.txt"]
    assert names(f"{web.url}/texts/*.txt") == ["a.txt", "語.txt"]


def test_neither_a_redirect_nor_a_link_leads_out_of_the_roots(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    web.pages["/texts/there.txt"] = Page(status=302, headers={"Location": "/texts/a.txt"})
    web.pages["/texts/away.txt"] = Page(status=302, headers={"Location": "/secret/a.txt"})
    web.pages["/texts/steps.txt"] = Page(status=302, headers={"Location": "there/../../secret/a.txt"})
    web.pages["/texts/up/"] = Page(b'<a href="../../secret/">x</a>', headers={"Content-Type": "text/html"})
    web.pages["/texts/a.txt"] = web.pages["/secret/a.txt"] = Page(LINES)
    monkeypatch.setenv("LM_DATA_ROOTS", f"{web.url}/texts")
    assert hash_stored(f"{web.url}/texts/there.txt") == digest_of(LINES)
    for name in ("away.txt", "steps.txt", "up/"):
        with pytest.raises(ConfigError, match=f"^corpus: {web.url}/secret/.* is outside the places"):
            names(f"{web.url}/texts/{name}")
    assert not [path for _, path, _ in web.requests if path.startswith("/secret")]


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (404, CorpusError, r"corpus.paths: http://\S+/x.txt does not exist: check the address"),
        (403, CorpusError, r"x.txt: access is denied \(403, .*\): give credentials in the environment"),
        (503, ConnectionError, r"x.txt cannot be read: 503, .*Check the network and the address"),
    ],
)
@pytest.mark.parametrize("path", ["/x.txt", "/x.txt/"])
def test_a_web_servers_no_is_final_and_its_trouble_is_not(
    web: Web, status: int, kind: type[Exception], message: str, path: str
) -> None:
    web.pages[path] = Page(status=status)
    with pytest.raises(kind, match=message.replace("x.txt", path[1:])) as error:
        names(f"{web.url}{path}")
    assert is_transient(error.value) == (status == 503)


def test_a_signed_address_that_a_server_leads_to_is_not_told(web: Web) -> None:
    web.pages["/x.txt"] = Page(status=302, headers={"Location": "/elsewhere/x.txt?X-Amz-Signature=hush"})
    web.pages["/elsewhere/x.txt?X-Amz-Signature=hush"] = Page(status=403)
    with pytest.raises(CorpusError, match="access is denied") as error:
        names(f"{web.url}/x.txt")
    assert "elsewhere" in str(error.value)
    assert "hush" not in str(error.value)


def test_a_web_server_that_is_not_there_is_worth_a_retry() -> None:
    for path in ("x.txt", "folder/", "*.txt"):
        with pytest.raises(ConnectionError, match=r"http://127.0.0.1:1/\S+ cannot be read: .*Check the net") as error:
            names(f"http://127.0.0.1:1/{path}")
        assert is_transient(error.value)


@pytest.mark.parametrize("kind", ["txt", "txt.gz", "parquet"])
def test_a_connection_that_breaks_is_worth_a_retry_and_no_damage(
    web: Web, tokenizer: TokenizerInfo, tmp_path: Path, kind: str
) -> None:
    content = {"txt": LINES, "txt.gz": gzip.compress(LINES), "parquet": parquet(text=LINES.decode().split())}[kind]
    web.pages[f"/x.{kind}"] = page = Page(content, headers={"ETag": "1"})
    url = f"{web.url}/x.{kind}"
    config = CorpusConfig(paths=[url])
    page.sent_bytes = len(content) // 2
    with pytest.raises(ConnectionError, match=rf"x.{kind} cannot be read: .*run the same command again"):
        scan(config)
    page.sent_bytes = None
    corpus, store = open_corpus(RunConfig(store=tmp_path / "store", corpus=config))
    page.sent_bytes = len(content) // 2
    with pytest.raises(ConnectionError, match=rf"x.{kind} cannot be read: .*run the same command again") as error:
        tokenize(config, corpus, tokenizer, store)
    assert is_transient(error.value)
    page.sent_bytes = None
    assert tokenize(config, corpus, tokenizer, store).skipped == {}


def test_a_page_that_is_replaced_while_its_connection_breaks_has_changed(web: Web) -> None:
    web.pages["/x.txt"] = Page(LINES, headers={"ETag": "1"}, sent_bytes=100)
    with open_stored(f"{web.url}/x.txt") as stream:
        web.pages["/x.txt"] = Page(LINES, headers={"ETag": "2"})
        with pytest.raises(FileChangedError, match="changed while read"):
            stream.read()
    web.pages["/x.txt"] = Page(LINES, sent_bytes=100)  # nothing to compare with
    with open_stored(f"{web.url}/x.txt") as stream:
        web.pages["/x.txt"] = Page(LINES, headers={"ETag": "2"})
        with pytest.raises(ConnectionError, match="cannot be read"):
            stream.read()


def test_a_page_is_read_no_faster_than_it_is_used(web: Web) -> None:
    web.pages["/x.txt"] = Page(bytes(2**26))
    with open_stored(f"{web.url}/x.txt") as stream:
        stream.read(1)
        threading.Event().wait(0.3)
        assert sum(web.sent) < 2**25


def test_versions_of_a_page_are_told_apart_or_not_trusted(web: Web, tmp_path: Path) -> None:
    url = f"{web.url}/x.txt"

    def look(content: bytes, **headers: str) -> str:
        web.pages["/x.txt"] = Page(content, headers={name.replace("_", "-"): value for name, value in headers.items()})
        return size_and_version(url)[1]

    assert look(b"one", ETag='"1"') != look(b"two", ETag='"2"')
    old = [look(b"one", Last_Modified=formatdate(seconds, usegmt=True)) for seconds in (10, 20)]
    assert len({*old, ""}) == 3
    assert look(b"one", Last_Modified=formatdate(usegmt=True)) == look(b"one") == ""
    assert look(b"one", Last_Modified="yesterday") == ""
    for content in (b"one", b"two"):
        look(content)
        with HashIndex(tmp_path) as index:
            assert index.hash_of(url) == digest_of(content)


HUB_SCRIPT = """
import json, sys
from lmcore.settings.config import CorpusConfig
from lmcore.corpus.scan import scan
from lmcore.corpus.remote import size_and_version
files = scan(CorpusConfig(paths=sys.argv[1:])).files
print(json.dumps([[file.path, file.stored_bytes, file.digest, size_and_version(file.path)[1]] for file in files]))
"""


def hub_files(endpoint: str, *urls: str) -> Any:
    """What a process whose hub is at ``endpoint`` finds; its complaint if there is one."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_TOKEN": "hush", "HF_HUB_DISABLE_TELEMETRY": "1"}
    process = start("-c", HUB_SCRIPT, *urls, env=environment)
    output, errors = process.communicate(timeout=60)
    return json.loads(output) if process.returncode == 0 else errors.splitlines()[-1]


def test_files_of_a_hub_are_listed_named_and_read(web: Web) -> None:
    rows = {
        "": [{"type": "directory", "oid": "d", "path": "data", "size": 0}],
        "/data": [
            {"type": "file", "oid": "b" * 40, "path": "data/x.txt", "size": len(LINES)},
            {"type": "file", "oid": "c" * 40, "path": "data/y.bin", "size": 1},
        ],
    }
    web.pages["/api/datasets/me/texts"] = Page(b'{"id": "me/texts", "sha": "5", "siblings": []}')
    for folder, entries in rows.items():
        path = f"/api/datasets/me/texts/tree/main{folder}?recursive=false&expand=false"
        web.pages[path] = Page(json.dumps(entries).encode())
    web.pages["/datasets/me/texts/resolve/main/data/x.txt"] = Page(LINES)
    url = "hf://datasets/me/texts/data/x.txt"
    expected = [[url, len(LINES), digest_of(LINES), f"{len(LINES)} {'b' * 40}"]]
    for given in ("hf://datasets/me/texts", "hf://datasets/me/texts/data/*.txt", url):
        assert hub_files(web.url, given) == expected
    assert [path for _, path, _ in web.requests if "resolve" in path] == [
        "/datasets/me/texts/resolve/main/data/x.txt"
    ] * 3
    missing = hub_files(web.url, "hf://datasets/me/texts/data/none.txt")
    assert missing.endswith("corpus.paths: hf://datasets/me/texts/data/none.txt does not exist: check the address")
    assert "ConnectionError: hf://datasets/me/texts cannot be read:" in hub_files(
        "http://127.0.0.1:1", "hf://datasets/me/texts"
    )


def test_a_url_of_a_file_here_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(LINES)
    assert list(remote_files(f"file://{tmp_path}", "corpus.paths").values()) == ["x.txt"]
    assert hash_stored(f"file://{tmp_path}/x.txt") == hash_file(tmp_path / "x.txt")
    config = CorpusConfig(paths=[f"file://{tmp_path}/x.txt"])
    local = CorpusConfig(paths=[str(tmp_path / "x.txt")])
    assert Corpus.from_scan(scan(config), config).id == Corpus.from_scan(scan(local), local).id
