"""The Prefect UI as people see it: a real browser, on a served pipeline."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmcore.markdown import code, escape, fenced, table
from tests.conftest import write_corpus

pytest.importorskip("playwright", reason="playwright is missing: pip install -e '.[dev]' brings it")

from playwright.sync_api import Browser, expect

from tests.e2e.conftest import PASSWORD
from tests.e2e.ui import V1, V2, WHOLE_PAGES, Ui
from tests.serving import FLOW, TRAINING, Serving

pytestmark = pytest.mark.e2e

DEPLOYMENTS = {
    "tiny": ["prepare_data", "pretrain", "retrain"],
    "small": ["prepare_data", "pretrain", "retrain"],
    "base": ["prepare_data", "pretrain", "retrain"],
    "model": ["diff", "evaluate", "promote", "prune", "push", "rollback", "verify", "versions"],
    "store": ["forget", "gc"],
    "weekly": ["gc"],
}
SMALL = """[tokenizer]
vocab_size = 400
[dataset]
block_size = 16
[model]
layers = 1
width = 16
heads = 2
[train]
log_every = 2
device = "cpu"
[sample]
tokens = 20
"""
PAGES = [f"{name}-tiny" for name in ("data", "evaluation", "losses", "report", "run", "samples", "tokenizer")]


@pytest.fixture(scope="module")
def logged_in(browser: Browser, serving: Serving) -> Ui:
    ui = Ui(browser.new_page(viewport=WHOLE_PAGES), serving.api)
    ui.open("/deployments")
    assert ui.log_in(PASSWORD) == 200
    expect(ui.page.get_by_role("button", name="Switch to V2 UI")).to_be_visible()
    return ui


@pytest.fixture
def ui(logged_in: Ui) -> Iterator[Ui]:
    """Of somebody who has given the password. What a test does not expect to go wrong in the page fails it."""
    logged_in.errors.clear()
    yield logged_in
    assert not logged_in.errors
    assert not logged_in.asked_elsewhere


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("texts") / "さくら")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("browser") / "store"


@pytest.fixture(scope="module")
def run(logged_in: Ui, text: Path, store: Path) -> str:
    """The id of a run that was started from the fields of the form, and has ended."""
    logged_in.open_form("pretrain", "tiny")
    logged_in.add("text", text)
    logged_in.text("length").fill("6 steps")
    logged_in.text("store").fill(str(store))
    logged_in.text("advanced").fill(SMALL)
    run = logged_in.start()
    logged_in.shows(re.compile("^(Completed|Failed|Crashed)$"))
    return run


def test_the_password_opens_the_ui(browser: Browser, serving: Serving) -> None:
    with browser.new_context() as context:
        stranger = Ui(context.new_page(), serving.api)
        stranger.open("/deployments")
        expect(stranger.page.get_by_role("heading", name="Login")).to_be_visible()
        assert stranger.log_in("somebody:else") == 401
        expect(stranger.page).to_have_url(re.compile("/login"))
        assert stranger.log_in(PASSWORD) == 200
        expect(stranger.page).to_have_url(re.compile("/deployments$"))
        stranger.shows(f"{sum(map(len, DEPLOYMENTS.values()))} Deployments")


def test_every_deployment_is_there_and_ready(ui: Ui) -> None:
    ui.open("/deployments")
    for name, flows in DEPLOYMENTS.items():
        rows = ui.find_deployments(name)
        expect(rows).to_have_count(len(flows))
        for flow in flows:
            expect(ui.rows(name, flow)).to_contain_text("Ready")


def test_the_front_page_is_that_of_the_second_ui(ui: Ui) -> None:
    ui.open("/")
    expect(ui.page).to_have_url(re.compile(f"{V2}/"))
    expect(ui.page.get_by_role("button", name="Switch to V1 UI", exact=True)).to_be_visible()


def test_the_form_explains_each_field(ui: Ui) -> None:
    ui.open_form("retrain", "tiny")
    for explanation in ("Files, folders", "Bytes of new text", "Minutes of training", "All other settings, as TOML"):
        ui.shows(re.compile(f"^{explanation}"))
    expect(ui.number("min_new_bytes")).to_have_value("100000")
    expect(ui.text("advanced")).to_have_value(re.compile("settle_seconds = 60"))
    assert len(ui.page.get_by_text(re.compile(r" \(Optional\)$")).all()) < 15


def test_the_form_refuses_what_is_out_of_bounds(ui: Ui, serving: Serving) -> None:
    runs = len(serving.api.call("/flow_runs/filter", {}))
    ui.open_form("retrain", "tiny")
    ui.number("max_minutes").fill("1.5")
    ui.submit()
    ui.shows("1.5 is not of type 'integer'")
    ui.number("max_minutes").fill("-1")
    ui.submit()
    ui.shows("max_minutes'. Failure reason: -1 is less than the minimum of 0")
    assert len(serving.api.call("/flow_runs/filter", {})) == runs
    assert "409 (Conflict)" in ui.errors.pop(0)  # the refusal, as the browser tells of it
    ui.errors.clear()


def test_a_run_started_from_the_form_explains_itself(ui: Ui, run: str) -> None:
    ui.open(f"/runs/flow-run/{run}")
    ui.shows(re.compile(r"^\W*pretrain llama 1x16 on さくら \d{4}-\d\d-\d\d \d\d:\d\d UTC$"))
    for tag in ("corpus さくら", re.compile("^dataset [0-9a-f]{16}$"), "llama", "lm", "tiny"):
        expect(ui.page.get_by_text(tag, exact=True).first).to_be_visible()
    expect(ui.page.get_by_text("Completed", exact=True).first).to_be_visible()
    logs = ui.page.get_by_role("tabpanel", name="Logs")
    expect(logs).to_contain_text(re.compile("at step 6: [0-9.]+ nats per token, [0-9.]+ bits per byte"))
    for stage in ("tokenizer", "tokenization", "dataset", "training", "evaluation", "export", "report"):
        expect(logs).to_contain_text(f"{stage}: ran because nothing of its kind is in this store yet")
    expect(logs).to_contain_text("0 unaccounted")
    expect(logs).not_to_contain_text(re.compile("Traceback|Warning|Finished in state"))


def test_the_pages_of_a_run_are_its_artifacts_and_have_a_history(ui: Ui, run: str) -> None:
    ui.open_artifacts(run)
    for page in PAGES:
        expect(ui.artifact(page)).to_be_visible()
    ui.artifact("report-tiny").click()
    ui.page.get_by_role("link", name="report-tiny", exact=True).first.click()
    expect(ui.page.get_by_role("link", name=re.compile("^pretrain llama 1x16 on さくら")).first).to_be_visible()
    ui.page.get_by_role("banner").get_by_role("link", name="Artifacts").click()
    for page in PAGES:
        expect(ui.page.get_by_role("link").filter(has_text=re.compile(f"(markdown|table) ?{page}"))).to_be_visible()


_NO_MARKUP = [
    "![x](http://a.test/i.png)",
    "<img src=http://a.test/h.png>",
    "[a](http://a.test/l)",
    "http://a.test/x.txt",
]
_NO_MARKUP.extend(
    ["www.a.test/w.txt", "me@a.test", "![x][r]\n\n[r]: http://a.test/r.png", "```\n![x](http://a.test/f.png)"]
)


@pytest.mark.parametrize("version", [V1, V2])
def test_nothing_that_a_page_shows_as_text_is_fetched_or_a_link(ui: Ui, version: str) -> None:
    shown = [show(text) for text in _NO_MARKUP for show in (escape, code, fenced)]
    page = "\n\n".join([*shown, table(("text",), [(text,) for text in _NO_MARKUP]), "the end"])
    rows = json.dumps([{"text": escape(text), "end": "the end"} for text in _NO_MARKUP])
    for kind, data in (("markdown", page), ("table", rows)):
        about = " ".join(map(escape, _NO_MARKUP))
        body = {"key": f"texts-{kind}", "type": kind, "data": data, "description": about}
        ui.open(f"{version}/artifacts/artifact/{ui.api.call('/artifacts/', body)['id']}")
        ui.shows("the end")
        expect(ui.page.locator("a[href*='a.test'], img[src*='a.test']")).to_have_count(0)
    assert not ui.asked_elsewhere
    ui.page.goto("about:blank")
    ui.errors.clear()  # the second UI asks for the run and the task of an artifact, and these have none


def test_the_report_shows_its_picture_and_its_figures(ui: Ui, run: str) -> None:
    ui.open_artifacts(run)
    ui.artifact("report-tiny").click()
    picture = ui.page.get_by_role("img", name="loss")
    expect(picture).to_be_visible()
    assert picture.evaluate("picture => picture.decode().then(() => picture.naturalWidth)") > 400
    row = ui.page.get_by_role("row", name=re.compile("^validation loss"))
    expect(row).to_contain_text(re.compile("[0-9.]+ nats per token"))


def test_a_run_is_cancelled_from_its_page(ui: Ui, run: str, serving: Serving, text: Path, store: Path) -> None:
    entered = {"text": [str(text)], "size": "tiny", "length": "1000000 steps", "store": str(store), "advanced": SMALL}
    ui.open_form("pretrain", "tiny")
    ui.page.get_by_role("heading", name="Parameters").locator("xpath=..").get_by_role("button").click()
    ui.page.get_by_role("button", name="Use JSON input").click()
    ui.page.get_by_role("textbox").last.fill(json.dumps(entered))
    started = ui.start()
    # The page draws only the lines that can be seen, and the last ones are those.
    serving.api.wait(lambda: "step 0 of 1000000" in serving.api.logs(started))
    said = "tokenization: cached because its inputs are unchanged and its output is whole"
    assert said in serving.api.logs(started)
    ui.page.get_by_role("button", name="Cancel", exact=True).click()
    ui.page.get_by_role("dialog").get_by_role("button", name="Confirm").click()
    expect(ui.page.get_by_role("banner").get_by_text("Cancelled", exact=True)).to_be_visible()
    expect(ui.page.get_by_role("tabpanel", name="Logs")).to_contain_text(
        "was stopped on request: it can continue from its last"
    )
    expect(ui.page.get_by_role("tabpanel", name="Logs")).not_to_contain_text(re.compile("Crash|Finished in state"))
    assert not serving.processes(TRAINING)
    assert not serving.processes(FLOW)
