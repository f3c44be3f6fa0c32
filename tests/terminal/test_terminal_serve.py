"""make serve on a terminal: it asks nothing, comes up, and Ctrl-C ends it."""

from pathlib import Path

import pytest

from tests.serving import free_port
from tests.terminal.conftest import CTRL_C, LINE, Start, assert_interrupted

pytestmark = pytest.mark.terminal


def test_serve_comes_up_and_ctrl_c_ends_it(start: Start) -> None:
    port = free_port()
    terminal = start("-m", "deployments", "serve", PREFECT_SERVER_API_PORT=str(port))
    terminal.wait_for(f"http://127.0.0.1:{port}")
    terminal.wait_for("polling for scheduled runs")
    ended = terminal.end(CTRL_C, CTRL_C)
    assert_interrupted(ended, line="stopped")
    assert LINE not in ended.screen


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"PREFECT_API_URL": "http://127.0.0.1:9/api"},
            "error: PREFECT_API_URL: the Prefect server http://127.0.0.1:9",
        ),
        ({"PREFECT_HOME": "/proc/home"}, "error: PREFECT_HOME: /proc/home cannot be written"),
    ],
)
def test_a_server_or_home_that_cannot_be_is_one_line(
    start: Start, corpus: Path, tmp_path: Path, settings: dict[str, str], said: str
) -> None:
    words = ("-m", "flows.prepare_data", "--corpus.paths", corpus, "--store", tmp_path / "store")
    ended = start(*words, **settings).end()
    assert ended.status == 1
    [line] = ended.screen.strip().splitlines()
    assert line.startswith(said)


def test_a_profile_of_a_dead_server_and_a_dead_proxy_are_survived(start: Start, corpus: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    profile = 'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "http://127.0.0.1:9/api"\n'
    (home / "profiles.toml").write_text(profile)
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy"), "http://127.0.0.1:9")
    words = ("--corpus.paths", corpus, "--store", tmp_path / "store", "--tokenizer.vocab_size", 400)
    words += ("--dataset.block_size", 16)
    ended = start("-m", "flows.prepare_data", *words, PREFECT_HOME=str(home), **proxies).end()
    assert ended.status == 0, ended.screen
    assert ended.screen.count("of the profile 'mine' does not answer: this run uses a temporary server") == 1
