"""The Prefect UI as people see it: a page of a real browser, what a person does to it, and what went wrong in it."""

import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Literal
from urllib.parse import urlsplit

from playwright.sync_api import ConsoleMessage, Error, Locator, Page, Request, ViewportSize, expect

from tests.serving import Api

SECONDS = 300
"""For what a user waits for: pages, and runs on a busy machine."""
WHOLE_PAGES: ViewportSize = {"width": 1280, "height": 3000}
"""Lists are drawn only where they can be seen."""
V1, V2 = "", "/v2"
"""The two UIs, by the beginning of their addresses. The second is what / shows."""
_OWN_PICTURES = re.compile(r"\.(ico|svg)$")
"""The UI asks its server for icons that Prefect does not ship."""
_GRAPH_ERROR = "Cannot read properties of null (reading 'position')"
"""On a busy machine Prefect's picture of a run is still drawn when its page has been left already."""
_ANALYTICS = "sr-client-cfg.amplitude.com"
"""The second UI asks it for its configuration whenever it opens, and no setting of Prefect ends that (SECURITY.md)."""


class Ui:
    """A page of the browser."""

    def __init__(self, page: Page, api: Api) -> None:
        self.page, self.api, self.url = page, api, f"http://127.0.0.1:{api.port}"
        self.errors: list[str] = []
        self.asked_elsewhere: list[str] = []
        page.set_default_timeout(SECONDS * 1000)
        page.on("pageerror", self._fail)
        page.on("console", self._hear)
        page.on("request", self._see)
        page.context.route(f"**/{_ANALYTICS}/**", lambda route: route.abort())

    def _fail(self, error: Error) -> None:
        if _GRAPH_ERROR not in str(error):
            self.errors.append(str(error))

    def _hear(self, message: ConsoleMessage) -> None:
        address = message.location["url"]
        if message.type == "error" and not _OWN_PICTURES.search(address) and urlsplit(address).netloc != _ANALYTICS:
            self.errors.append(f"{message.text} ({address})")

    def _see(self, request: Request) -> None:
        is_configuration = urlsplit(request.url).netloc == _ANALYTICS and request.method == "GET"
        if not request.url.startswith((self.url, "data:", "blob:")) and not is_configuration:
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

    def deployment(self, flow: str, name: str) -> str:
        """The address of its page, less the beginning that chooses the UI."""
        return f"/deployments/deployment/{self.api.call(f'/deployments/name/{flow}/{name}')['id']}"

    def open_form(self, flow: str, name: str) -> None:
        """As a person comes to it."""
        self.open("/deployments")
        self.find_deployments(name)
        self.rows(name, flow).get_by_role("link", name=name, exact=True).click()
        self.page.get_by_role("button", name="Run", exact=True).click()
        self.page.get_by_role("button", name="Custom run").click()
        expect(self.text("store")).to_be_visible()

    def input(self, name: str, kind: Literal["textarea", "input", "button"] = "textarea") -> Locator:
        """The first input of a kind behind the name of a field, in either UI."""
        said = f"normalize-space(text())='{name}' or normalize-space(text())='{name} (Optional)'"
        return self.page.locator(f"xpath=//*[self::label or self::span][{said}]/following::{kind}").first

    def text(self, name: str) -> Locator:
        return self.input(name)

    def number(self, name: str) -> Locator:
        return self.input(name, "input")

    def add(self, name: str, value: object) -> None:
        """An item to an empty list."""
        empty = self.page.get_by_text("No items in this list")
        expect(empty.first).to_be_visible()
        lists = empty.count()
        self.page.get_by_role("button", name="Add item").first.click()
        expect(empty).to_have_count(lists - 1)  # until then the first input is that of another field
        self.text(name).fill(str(value))

    def submit(self) -> None:
        self.page.get_by_role("button", name="Submit").click()

    def start(self) -> str:
        """Submit the form, and go to the page of the run; the run's id."""
        with self.page.expect_response("**/create_flow_run") as answer:
            self.submit()
        if answer.value.status == HTTPStatus.SERVICE_UNAVAILABLE:
            return self.start()  # another writer was in SQLite's way and nothing was done; people press again too
        assert answer.value.ok, answer.value.text()
        run = str(answer.value.json()["id"])
        self.open(f"/runs/flow-run/{run}")
        return run

    def press_save(self, path: str) -> int:
        """The status with which the server answers to what is sent to ``path``."""
        with self.page.expect_response(
            lambda answer: answer.url.endswith(path) and answer.request.method != "GET"
        ) as answer:
            self.page.get_by_role("button", name="Save").click()
        return answer.value.status

    def edit(self, page: str, fill: Callable[[], object]) -> int:
        """Open the form that edits a deployment, fill it and save it; the status that the server answers with.

        All again where another writer was in SQLite's way: the form may then show what is stored.
        """
        status = HTTPStatus.SERVICE_UNAVAILABLE
        while status == HTTPStatus.SERVICE_UNAVAILABLE:
            self.open(f"{page}/edit")
            fill()
            status = HTTPStatus(self.press_save(page.rpartition("/")[2]))
        return status

    def open_artifacts(self, run: str) -> None:
        self.open(f"/runs/flow-run/{run}")
        self.page.get_by_role("tablist").get_by_text("Artifacts").click()

    def artifact(self, key: str) -> Locator:
        """The card of a run's page."""
        return self.page.get_by_role("link", name=re.compile(f"^(markdown|table) {key} Created"))

    def shows(self, text: str | re.Pattern[str]) -> None:
        expect(self.page.get_by_text(text).filter(visible=True).first).to_be_visible()
