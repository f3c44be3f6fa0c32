"""LM_DATA_ROOTS: whatever leads out of the roots is refused, by every way in, before anything is written."""

import inspect
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmcore.cli.app import ACTIONS
from lmcore.cli.outcome import Outcome
from lmcore.corpus.listing import open_corpus
from lmcore.corpus.remote import hash_stored, open_stored
from lmcore.corpus.scan import scan
from lmcore.dataset.blocks import BlockDataset
from lmcore.errors import ConfigError
from lmcore.registry.versions import champion, find
from lmcore.runs.initial_model import InitialModel
from lmcore.settings.config import CorpusConfig, RunConfig, TokenizerConfig, TrainConfig
from lmcore.store.allowed_paths import VARIABLE, check_allowed
from lmcore.store.layout import prepare_store
from lmcore.tokenizer.make import identify
from tests.conftest import start

REFUSED = f"outside the places that this machine allows .{VARIABLE}="


def link(folder: Path) -> None:
    """Links of every kind between data, a root, and other, which is none."""
    (folder / "data/loop").symlink_to(folder / "data")
    (folder / "data/out").symlink_to(folder / "other")
    (folder / "data/up").symlink_to("../other/deep")
    (folder / "data/secret.txt").symlink_to(folder / "other/deep/text.txt")
    (folder / "other/home").symlink_to(folder / "data/inner")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """data, a root, beside what is none; links of every kind between them."""
    for folder in ("data/inner", "data-evil", "other/deep"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "text.txt").write_text("one\ntwo\n")
    link(tmp_path)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "data"))
    return tmp_path


_NAMES = st.sampled_from(["data", "data-evil", "other", "deep", "inner", "loop", "out", "up", "home", "..", "."])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # the tree is only read
@given(st.data())
def test_a_path_is_refused_exactly_when_it_leads_out(tree: Path, data: st.DataObject) -> None:
    path = tree / "data" if data.draw(st.booleans()) else tree
    for name in data.draw(st.lists(_NAMES, max_size=6)):
        path = path / name if os.path.isdir(path / name) else path
    descriptor = os.open(path, os.O_RDONLY)
    try:
        really = os.readlink(f"/proc/self/fd/{descriptor}")  # what the kernel says, not what we worked out
    finally:
        os.close(descriptor)
    is_inside = f"{really}/".startswith(f"{tree.resolve()}/data/")
    if is_inside:
        check_allowed(path, "corpus.paths")
    else:
        with pytest.raises(ConfigError, match=f"^corpus.paths: .*{REFUSED}{os.environ[VARIABLE]}"):
            check_allowed(path, "corpus.paths")


@pytest.mark.parametrize(
    "path",
    ["data-evil", "other", "data/../other", "data/out", "data/up", "data/*", "data/../*/deep", "data/secret.txt", "."],
)
def test_a_corpus_elsewhere_is_refused_before_anything_is_written(tree: Path, path: str) -> None:
    for content in (
        {"paths": [str(tree / path)]},
        {"sources": {"web": [str(tree / path)]}},
        {"paths": [str(tree / "data/inner")], "validation_paths": [str(tree / path)]},
    ):
        config = RunConfig(corpus=CorpusConfig.model_validate(content), store=tree / "data/store")
        with pytest.raises(ConfigError, match=REFUSED):
            open_corpus(config)
        assert not config.store.exists()


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc",
        "s3://texts-evil/x",
        "s3://texts/../evil",
        "s3://texts",
        "hf://datasets/a/b",
        "https://host/x",
        "s3://texts/web?endpoint_override=evil:1",
        "s3://texts/web/%2e%2e/x",
        "s3://texts/web/%252e%252e/x",
        "s3://texts/web/..%2fx",
        "s3://texts/web/..%00/x",
        "s3://texts/web/..;/x",
        "s3://texts/web/..?x",
        "s3://texts/web/\\..\\x",
        "s3://texts/web/a::file:///etc/passwd",
    ],
)
def test_a_url_needs_a_root_that_it_begins_with(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv(VARIABLE, "s3://texts/web")
    with pytest.raises(ConfigError, match=REFUSED):
        scan(CorpusConfig(paths=[url]))


@pytest.mark.parametrize(
    ("root", "url"),
    [
        ("s3://texts", "s3://texts/web/*.txt"),
        ("s3://texts/", "s3://texts"),
        ("https://host:8080/data", "https://host:8080/data/a?page=2"),
        ("https://Host:443/日本", "https://host/%E6%97%A5%E6%9C%AC/x"),
        ("s3://", "s3://any/x"),
        ("s3://texts?endpoint_override=host:9000", "s3://texts/a?endpoint_override=host:9000"),
    ],
)
def test_roots_may_be_urls_among_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, root: str, url: str) -> None:
    monkeypatch.setenv(VARIABLE, os.pathsep.join([str(tmp_path), root, "/srv/x"]))
    check_allowed(url, "corpus.paths")
    check_allowed(tmp_path / "file", "corpus.paths")
    check_allowed("/srv/x/y", "corpus.paths")
    with pytest.raises(ConfigError, match=REFUSED):
        check_allowed("/srv/xy", "corpus.paths")


@pytest.mark.parametrize("root", ["relative", "file:///data", "."])
def test_a_root_that_is_no_place_is_refused(monkeypatch: pytest.MonkeyPatch, root: str) -> None:
    monkeypatch.setenv(VARIABLE, root)
    with pytest.raises(ConfigError, match="neither an absolute folder nor"):
        check_allowed("/data", "corpus.paths")


def test_no_path_holds_nul() -> None:
    with pytest.raises(ConfigError, match=r"^corpus.paths: '/data/\\x00a' holds the character NUL"):
        check_allowed("/data/\0a", "corpus.paths")


def test_without_roots_everything_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    check_allowed("/etc/passwd", "corpus.paths")
    monkeypatch.setenv(VARIABLE, "")
    check_allowed("file:///etc/passwd", "corpus.paths")


def test_text_inside_is_read_links_within_too(tree: Path) -> None:
    for name in ("secret.txt", "out", "up"):
        (tree / "data" / name).unlink()
    (tree / "data/again.txt").symlink_to(tree / "data/inner/text.txt")
    files = [
        Path(file.path).name for file in scan(CorpusConfig(paths=[str(tree / "data"), str(tree / "other/home")])).files
    ]
    assert len(files) == 1  # by three ways


@pytest.fixture
def library(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Python's standard library, outside the roots, with something installed."""
    folder = tree / "lib"
    for name in ("this.py", "json/decoder.py", "site-packages/ours/secret.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("text\n")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(folder))
    return folder


def test_the_standard_library_is_read_as_text_and_never_written(library: Path) -> None:
    config = CorpusConfig(paths=["stdlib:"], include=["*.py"], exclude=["site-packages"])
    files = scan(config).files
    assert [Path(file.path).name for file in files] == ["decoder.py", "this.py"]
    with pytest.raises(ConfigError, match=REFUSED):
        prepare_store(library / "store")
    with pytest.raises(ConfigError, match=REFUSED):
        check_allowed(library / "json", "tokenizer.source")


def test_what_is_installed_or_linked_into_the_standard_library_is_refused(library: Path) -> None:
    with pytest.raises(ConfigError, match=f"site-packages.* {REFUSED}"):
        scan(CorpusConfig(paths=["stdlib:"], include=["*.py"]))
    (library / "local.py").symlink_to(library.parent / "other/deep/text.txt")
    with pytest.raises(ConfigError, match=f"local.py leads to .*{REFUSED}"):
        scan(CorpusConfig(paths=["stdlib:"], include=["*.py"], exclude=["site-packages"]))


@pytest.mark.parametrize("link", ["secret.txt", "out", "up"])
def test_a_link_that_leads_out_of_a_scanned_folder_is_refused(tree: Path, link: str) -> None:
    for name in {"secret.txt", "out", "up"} - {link}:
        (tree / "data" / name).unlink()
    with pytest.raises(ConfigError, match=REFUSED):
        scan(CorpusConfig(paths=[str(tree / "data")]))


@pytest.mark.parametrize("read", [hash_stored, open_stored])
def test_a_file_that_became_a_link_out_is_not_opened(tree: Path, read: Callable[[str], object]) -> None:
    path = tree / "data/inner/text.txt"
    path.unlink()
    path.symlink_to(tree / "other/deep/text.txt")
    with pytest.raises(ConfigError, match=REFUSED):
        read(str(path))


def test_stores_tokenizers_and_weights_elsewhere_are_refused(tree: Path) -> None:
    elsewhere = tree / "other/deep"
    model = tree / "data/model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").symlink_to(elsewhere / "text.txt")
    corpus = CorpusConfig(paths=[str(tree / "data/inner")])
    with pytest.raises(ConfigError, match=f"store: .*{REFUSED}"):
        prepare_store(elsewhere / "store")
    assert not (elsewhere / "store").exists()
    for name in (str(elsewhere), str(tree / "data/out/deep"), str(model)):
        with pytest.raises(ConfigError, match=f"train.init_from: .*{REFUSED}"):
            InitialModel.find(name)
        with pytest.raises(ConfigError, match=f"tokenizer.source: .*{REFUSED}"):
            identify(TokenizerConfig(source=name), None)  # type: ignore[arg-type]  # of no corpus
    for changes in ({"tokenizer": TokenizerConfig(source="/etc/x.model")}, {"train": TrainConfig(init_from="../x")}):
        config = RunConfig(corpus=corpus, store=tree / "data/store").model_copy(update=changes)
        with pytest.raises(ConfigError, match=REFUSED):
            open_corpus(config)


def test_the_loader_of_texts_keeps_to_the_roots(tree: Path) -> None:
    with pytest.raises(ConfigError, match=REFUSED):
        BlockDataset.from_file(None, tree / "other/deep/text.txt", 8)


def test_the_command_line_keeps_to_the_roots(tree: Path) -> None:
    arguments = ["-m", "lmcore", "prepare", "--corpus.paths", tree / "data/out", "--store", tree / "data/store"]
    child = start(*arguments, env=dict(os.environ))
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 1
    assert errors.startswith("error: corpus.paths: ")
    assert f"({VARIABLE}={tree / 'data'})" in errors
    assert not (tree / "data/store").exists()


def test_nobody_asks_about_a_store_elsewhere(tree: Path) -> None:
    for ask in (
        lambda store: champion(store, "lm"),
        lambda store: find(store, "deep", "run"),
        lambda store: prepare_store(store, creates=False),
    ):
        (tree / "other/runs/deep").mkdir(parents=True, exist_ok=True)
        with pytest.raises(ConfigError, match=REFUSED):
            ask(tree / "other")


@pytest.mark.parametrize("action", [action for actions in ACTIONS.values() for action in actions])
def test_no_action_looks_into_a_store_elsewhere(tree: Path, action: Callable[..., Outcome]) -> None:
    signature = inspect.signature(action)
    positional = {"runs": ("lm",)}
    needed = {
        name: positional.get(name, "lm" if parameter.kind is parameter.POSITIONAL_ONLY else 1)
        for name, parameter in signature.parameters.items()
        if parameter.default is parameter.empty
    }
    bound = signature.bind_partial()
    bound.arguments |= needed | {"store": str(tree / "other")}
    with pytest.raises(ConfigError, match=f"^store: .*{REFUSED}"):
        action(*bound.args, **bound.kwargs)
