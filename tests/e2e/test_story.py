"""The story of a new person in the browser: a folder is retrained every week, whatever is restarted or upgraded."""

import shutil
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import tiny_config, write_corpus

pytest.importorskip("playwright", reason="playwright is missing: pip install -e '.[dev]' brings it")

from playwright.sync_api import Browser, Locator

from lmcore.settings.read import toml_text
from tests.e2e.test_lasting import PREFECT_3_8_8, prefect, settings
from tests.e2e.ui import WHOLE_PAGES, Ui
from tests.serving import Serving

pytestmark = pytest.mark.e2e

CLICKS = 12
"""Most clicks that the story may need."""
SUNDAYS = "toggle At 01:00 AM, only on Sunday"


class Person:
    """Who clicks and types, and counts the clicks."""

    def __init__(self, ui: Ui) -> None:
        self.ui, self.clicks = ui, 0

    def click(self, what: Locator) -> None:
        what.click()
        self.clicks += 1

    def press(self, button: str) -> None:
        self.click(self.ui.page.get_by_role("button", name=button, exact=True).first)


def quick(serving: Serving, tmp_path: Path) -> None:
    """Let the smallest model be trained, so that the story takes minutes. The person does not touch ``advanced``."""
    config = tiny_config(tmp_path, tmp_path).model_dump(mode="json", exclude={"store", "corpus"}, exclude_defaults=True)
    deployment = serving.api.call("/deployments/name/retrain/tiny")
    parameters = deployment["parameters"] | {"size": "custom", "advanced": toml_text(config), "min_new_bytes": 1}
    serving.api.call(f"/deployments/{deployment['id']}", {"parameters": parameters}, method="PATCH")


def set_up_the_weekly_retraining(person: Person, text: Path) -> str:
    """What the person does; the id of the run that is started at the end."""
    ui = person.ui
    ui.open("/")
    person.click(ui.page.get_by_role("link", name="Deployments").first)
    person.click(ui.page.get_by_placeholder("Search deployments"))
    ui.page.keyboard.type("retrain")
    person.click(ui.rows("retrain").get_by_role("link", name="tiny", exact=True))
    person.press("Open menu")
    person.click(ui.page.get_by_role("menuitem", name="Edit"))
    person.clicks += 1  # "Add item"
    ui.add("text", text)
    person.press("Save")
    person.click(ui.page.get_by_role("switch", name=SUNDAYS))
    person.press("Run")
    with ui.page.expect_response("**/create_flow_run") as answer:
        person.click(ui.page.get_by_role("menuitem", name="Quick run"))
    person.click(ui.page.get_by_role("button", name="View run"))
    return str(answer.value.json()["id"])


def sundays(serving: Serving) -> list[dict[str, Any]]:
    """The runs that the schedule has planned, the next one first."""
    deployment = serving.api.call("/deployments/name/retrain/tiny")["id"]
    planned = {"deployment_id": {"any_": [deployment]}, "state": {"type": {"any_": ["SCHEDULED"]}}}
    runs = serving.api.call("/flow_runs/filter", {"flow_runs": planned, "sort": "EXPECTED_START_TIME_ASC"})
    return [run for run in runs if run["auto_scheduled"]]


def let_sunday_come(serving: Serving) -> str:
    """Bring the next planned run forward to now; its id."""
    run = serving.api.wait(lambda: sundays(serving))[0]
    local = datetime.fromisoformat(run["expected_start_time"]).astimezone(UTC) + timedelta(hours=9)
    assert (local.isoweekday(), local.hour, local.minute) == (7, 1, 0)
    now = {"scheduled_time": datetime.now(UTC).isoformat()}
    state = {"type": "SCHEDULED", "name": "Scheduled", "state_details": now}
    serving.api.call(f"/flow_runs/{run['id']}/set_state", {"state": state, "force": True})
    return str(run["id"])


def sees(ui: Ui, run: str) -> None:
    """The person looks at the page of a run that has ended well."""
    assert ui.api.ended(run)["type"] == "COMPLETED"
    ui.open(f"/v2/runs/flow-run/{run}")
    ui.shows(ui.api.run(run)["name"])
    ui.shows(ui.api.run(run)["state"]["name"])


def test_a_new_person_schedules_the_weekly_retraining_of_a_folder(browser: Browser, tmp_path: Path) -> None:
    text, home = write_corpus(tmp_path / "news"), tmp_path / "home"
    home.mkdir()
    serving = Serving(home, LM_STORE=str(tmp_path / "store"), PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS="2")
    ui = Ui(browser.new_page(viewport=WHOLE_PAGES), serving.api)
    try:
        serving.wait()
        quick(serving, tmp_path)
        person = Person(ui)
        first = set_up_the_weekly_retraining(person, text)
        sees(ui, first)
        print("clicks:", person.clicks)
        assert person.clicks <= CLICKS
        before = settings(serving)

        serving.process.send_signal(signal.SIGTERM)  # a restart
        serving.process.wait(60)
        prefect(serving, "server", "database", "downgrade", "-y", "-r", PREFECT_3_8_8)
        serving.start_again()  # an upgrade, and a redeploy
        assert settings(serving) == before
        write_corpus(text / "second", seed=1)
        sees(ui, let_sunday_come(serving))

        serving.kill()  # the machine loses its power
        serving.process.wait(60)
        serving.start_again()
        assert settings(serving) == before
        write_corpus(text / "third", seed=2)
        sees(ui, let_sunday_come(serving))
        assert len(list((tmp_path / "store" / "models" / "lm").glob("v*"))) == 3
    finally:
        ui.page.close()
        serving.stop()
        print(serving.log.read_text())
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
