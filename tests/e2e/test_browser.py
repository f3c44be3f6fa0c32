"""The Prefect UI as people see it: a real browser, on the UI that they get by default, of a served pipeline."""

import json
import re
import shutil
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest

from tests.conftest import tiny_config, write_corpus
from tests.e2e.conftest import PASSWORD
from tests.serving import FLOW, TRAINING, Serving

pytest.importorskip("playwright", reason="playwright is missing: pip install -e '.[dev]' brings it")

from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request, ViewportSize, expect, sync_playwright

pytestmark = pytest.mark.e2e

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
_SECONDS = 120
"""For what a user waits for: pages, and runs on a busy machine."""
_WHOLE_PAGES: ViewportSize = {"width": 1280, "height": 1600}
"""Lists are drawn only where they can be seen."""
_OWN_PICTURES = re.compile(r"\.(ico|svg)$")
"""The UI asks its server for icons that Prefect does not ship."""
DEPLOYMENTS = {
    "tiny": ["prepare_data", "pretrain", "retrain"],
    "small": ["prepare_data", "pretrain", "retrain"],
    "base": ["prepare_data", "pretrain", "retrain"],
    "model": ["diff", "evaluate", "promote", "prune", "push", "rollback", "verify", "versions"],
    "store": ["forget", "gc"],
}
PAGES = ["data", "evaluation", "losses", "report", "run", "samples", "tokenizer"]


class Ui:
    """A page of the browser, what a user does to it, and what went wrong in it."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.errors: list[str] = []
        self.asked_elsewhere: list[str] = []
        page.set_default_timeout(_SECONDS * 1000)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._hear)
        page.on("request", self._see)

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not _OWN_PICTURES.search(message.location["url"]):
            self.errors.append(f"{message.text} ({message.location['url']})")

    def _see(self, request: Request) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.asked_elsewhere.append(request.url)

    def open(self, path: str) -> None:
        self.page.goto(self.url + path)

    def log_in(self, password: str) -> int:
        """The status of the server's answer."""
        self.page.get_by_placeholder("admin:pass").fill(password)
        with self.page.expect_response("**/api/admin/version") as answer:
            self.page.get_by_role("button", name="Login").click()
        return answer.value.status

    def find_deployments(self, name: str) -> Locator:
        """Rows of the page of deployments, by the name of a preset."""
        self.page.get_by_role("searchbox", name="Search deployments").fill(name)
        return self.rows(name)

    def rows(self, *links: str) -> Locator:
        """Of a table, those that hold all these links."""
        rows = self.page.get_by_role("row")
        for link in links:
            rows = rows.filter(has=self.page.get_by_role("link", name=link, exact=True))
        return rows

    def open_form(self, flow: str, name: str) -> None:
        self.open("/deployments")
        self.find_deployments(name)
        self.rows(name, flow).get_by_role("link", name=name, exact=True).click()
        self.page.get_by_role("button", name="Run", exact=True).click()
        self.page.get_by_role("button", name="Custom run").click()
        expect(self.page.get_by_text("Corpus (Optional)", exact=True)).to_be_visible()

    def field(self, *titles: str) -> Locator:
        """A setting of the form with its title, its explanation and its input, by its groups and its title."""
        within: Page | Locator = self.page
        for title in titles:
            within = within.get_by_text(f"{title} (Optional)", exact=True).locator("xpath=ancestor::label/../..")
        assert isinstance(within, Locator)
        return within

    def fill(self, *titles: str, value: object) -> None:
        field = self.field(*titles)
        field.get_by_role("spinbutton").or_(field.get_by_role("textbox")).fill(str(value))

    def choose(self, *titles: str, value: str) -> None:
        choice = self.field(*titles).get_by_role("group").get_by_role("button")
        choice.press("Space")
        self.page.get_by_role("option", name=value).click()
        expect(choice).to_have_text(value)

    def submit(self) -> None:
        self.page.get_by_role("button", name="Submit").click()

    def start(self) -> str:
        """Submit the form, and go to the page of the run; the run's id."""
        with self.page.expect_response("**/create_flow_run") as answer:
            self.submit()
        if answer.value.status == HTTPStatus.SERVICE_UNAVAILABLE:
            return self.start()  # another writer was in SQLite's way and nothing was done; people press again too
        assert answer.value.ok, answer.value.text()
        run = answer.value.json()["id"]
        self.shows("scheduled to start")
        self.open(f"/runs/flow-run/{run}")
        return str(run)

    def open_artifacts(self, run: str) -> None:
        self.open(f"/runs/flow-run/{run}")
        self.page.get_by_role("tablist").get_by_text("Artifacts").click()

    def artifact(self, key: str) -> Locator:
        """The card of a run's page."""
        return self.page.get_by_role("link", name=re.compile(f"^(markdown|table) {key} Created"))

    def shows(self, text: str | re.Pattern[str]) -> None:
        expect(self.page.get_by_text(text).first).to_be_visible()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser is here ({', '.join(_BROWSERS)}): apt-get install chromium")
    expect.set_options(timeout=_SECONDS * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=_QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def logged_in(browser: Browser, serving: Serving) -> Ui:
    ui = Ui(browser.new_page(viewport=_WHOLE_PAGES), f"http://127.0.0.1:{serving.api.port}")
    ui.open("/")
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
    for *titles, value in (
        ("Corpus", "Paths", text),
        ("Corpus", "Include", "*.txt"),
        ("Tokenizer", "Vocab size", 400),
        ("Dataset", "Block size", 16),
        ("Model", "Layers", 1),
        ("Model", "Width", 16),
        ("Model", "Heads", 2),
        ("Training", "Max steps", 6),
        ("Training", "Log every", 2),
        ("Sample", "Tokens", 20),
        ("Store", store),
    ):
        logged_in.fill(*titles, value=value)
    logged_in.choose("Training", "Device", value="cpu")
    run = logged_in.start()
    logged_in.shows(re.compile("^(Completed|Failed|Crashed)$"))
    return run


def test_the_password_opens_the_ui(browser: Browser, serving: Serving) -> None:
    with browser.new_context() as context:
        stranger = Ui(context.new_page(), f"http://127.0.0.1:{serving.api.port}")
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


def test_the_form_explains_each_setting(ui: Ui) -> None:
    ui.open_form("retrain", "tiny")
    for group, title, explanation, value in (
        ("Training", "Max steps", "Optimizer steps", "1400"),
        ("Corpus", "Settle seconds", "Seconds for which", "60"),
        ("Retraining", "Budget minutes", "Minutes of training", "0"),
        ("Gate", "Old margin bits per byte", "Bits per byte of old text", "0.005"),
    ):
        field = ui.field(group, title)
        expect(field).to_contain_text(explanation)
        expect(field.get_by_role("spinbutton")).to_have_value(value)
    titles = ui.page.get_by_text(re.compile(r" \(Optional\)$")).all_inner_texts()
    assert len(titles) > 80
    assert not [title for title in titles if not title[0].isupper() or "_" in title]


def test_the_form_refuses_what_is_out_of_bounds(ui: Ui, serving: Serving) -> None:
    runs = len(serving.api.call("/flow_runs/filter", {}))
    ui.open_form("retrain", "tiny")
    ui.fill("Model", "Layers", value=1.5)
    ui.submit()
    expect(ui.field("Model", "Layers")).to_contain_text("1.5 is not of type 'integer'")
    ui.fill("Model", "Layers", value=1)
    ui.fill("Training", "Max steps", value=-1)
    ui.submit()
    ui.shows("config.train.max_steps'. Failure reason: -1 is less than the minimum of 0")
    assert len(serving.api.call("/flow_runs/filter", {})) == runs
    assert "409 (Conflict)" in ui.errors.pop(0)  # the refusal, as the browser tells of it
    ui.errors.clear()


def test_a_run_started_from_the_form_explains_itself(ui: Ui, run: str) -> None:
    ui.open(f"/runs/flow-run/{run}")
    ui.shows(re.compile(r"^\W*pretrain gpt2 1x16 on さくら \d{4}-\d\d-\d\d \d\d:\d\d UTC$"))
    for tag in ("corpus さくら", re.compile("^dataset [0-9a-f]{16}$"), "gpt2", "lm", "tiny"):
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
    ui.artifact("report").click()
    ui.page.get_by_role("link", name="report", exact=True).first.click()
    expect(ui.page.get_by_role("link", name=re.compile("^pretrain gpt2 1x16 on さくら")).first).to_be_visible()
    ui.page.get_by_role("banner").get_by_role("link", name="Artifacts").click()
    for page in PAGES:
        expect(ui.page.get_by_role("link").filter(has_text=re.compile(f"(markdown|table) ?{page}"))).to_be_visible()


def test_the_report_shows_its_picture_and_its_figures(ui: Ui, run: str) -> None:
    ui.open_artifacts(run)
    ui.artifact("report").click()
    picture = ui.page.get_by_role("img", name="loss")
    expect(picture).to_be_visible()
    assert picture.evaluate("picture => picture.decode().then(() => picture.naturalWidth)") > 400
    row = ui.page.get_by_role("row").filter(has_text="validation loss")
    expect(row).to_contain_text(re.compile("[0-9.]+ nats per token"))


def test_a_run_is_cancelled_from_its_page(ui: Ui, run: str, serving: Serving, text: Path, store: Path) -> None:
    config = tiny_config(text, store, device="cpu", max_steps=10**6).model_dump(mode="json")
    ui.open_form("pretrain", "tiny")
    ui.page.get_by_role("heading", name="Parameters").locator("xpath=..").get_by_role("button").click()
    ui.page.get_by_role("button", name="Use JSON input").click()
    ui.page.get_by_role("textbox").last.fill(json.dumps({"config": config}))
    ui.start()
    ui.shows("tokenization: cached because its inputs are unchanged and its output is whole")
    ui.shows("step 0 of 1000000")
    ui.page.get_by_role("button", name="Cancel", exact=True).click()
    ui.page.get_by_role("dialog").get_by_role("button", name="Confirm").click()
    expect(ui.page.get_by_role("banner").get_by_text("Cancelled", exact=True)).to_be_visible()
    expect(ui.page.get_by_role("tabpanel", name="Logs")).to_contain_text("was told to end: it can go on from its last")
    expect(ui.page.get_by_role("tabpanel", name="Logs")).not_to_contain_text(re.compile("Crash|Finished in state"))
    assert not serving.processes(TRAINING)
    assert not serving.processes(FLOW)
