"""Forms of deployments in the browser, in both of Prefect's UIs: edited, saved, run and put on a schedule."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.conftest import write_corpus

pytest.importorskip("playwright", reason="playwright is missing: pip install -e '.[dev]' brings it")

from playwright.sync_api import Browser, expect

from tests.e2e.conftest import PASSWORD
from tests.e2e.ui import V1, V2, WHOLE_PAGES, Ui
from tests.serving import Serving

pytestmark = pytest.mark.e2e

SMALL = "[tokenizer]\nvocab_size = 400\n\n[dataset]\nblock_size = 16\n"
EVERY_MINUTE = "* * * * *"
every_ui = pytest.mark.parametrize("version", [V2, V1], ids=["V2", "V1"])


@pytest.fixture(scope="module")
def logged_in(browser: Browser, serving: Serving) -> Ui:
    ui = Ui(browser.new_page(viewport=WHOLE_PAGES), serving.api)
    ui.open("/")
    assert ui.log_in(PASSWORD) == 200
    expect(ui.page.get_by_role("button", name="Switch to V1 UI", exact=True)).to_be_visible()
    return ui


@pytest.fixture
def ui(logged_in: Ui) -> Iterator[Ui]:
    """What a test does not expect to go wrong in the page fails it."""
    logged_in.errors.clear()
    yield logged_in
    assert not unexpected(logged_in.errors)
    assert not logged_in.asked_elsewhere


def unexpected(errors: list[str]) -> list[str]:
    """Without the answers of a busy database, and what V2 makes of one; `Ui.save` presses again then."""
    busy = [error for error in errors if "503" in error]
    said = ("Unknown error while updating deployment", "Unknown error while creating flow run") if busy else "503"
    return [error for error in errors if error not in busy and not error.startswith(said)]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "さくら", documents=50)


def deployments(ui: Ui) -> dict[str, dict[str, Any]]:
    """By the names of flow and deployment."""
    flows = {flow["id"]: flow["name"] for flow in ui.api.call("/flows/filter", {})}
    found = ui.api.call("/deployments/filter", {})
    return {f"{flows[each['flow_id']]}/{each['name']}": each for each in found}


@contextmanager
def to_be_restored(ui: Ui, name: str) -> Iterator[dict[str, Any]]:
    """The deployment, whose parameters and schedules are afterwards what they were."""
    deployment = deployments(ui)[name]
    path, known = f"/deployments/{deployment['id']}", {schedule["id"] for schedule in deployment["schedules"]}
    try:
        yield deployment
    finally:
        for schedule in ui.api.call(f"{path}/schedules"):
            if schedule["id"] not in known:
                ui.api.call(f"{path}/schedules/{schedule['id']}", method="DELETE")
        ui.api.call(path, {"parameters": deployment["parameters"]}, method="PATCH")


def fields(deployment: dict[str, Any]) -> dict[str, Any]:
    """What the form of a deployment shows: what is stored, else the defaults."""
    properties = deployment["parameter_openapi_schema"]["properties"]
    defaults = {name: field["default"] for name, field in properties.items() if "default" in field}
    return defaults | deployment["parameters"]


@every_ui
def test_every_deployment_is_edited_and_saved(ui: Ui, version: str) -> None:
    found = deployments(ui)
    assert len(found) == 20
    for name in found:
        with to_be_restored(ui, name) as deployment:
            page = f"{version}/deployments/deployment/{deployment['id']}"
            store = f"/tmp/{name} {version}"
            assert ui.edit(page, lambda: ui.text("store").fill(store)) == 204, name  # noqa: B023
            after = ui.api.call(f"/deployments/{deployment['id']}")
            assert fields(after) == fields(deployment) | {"store": store}, name


@every_ui
def test_a_text_of_several_lines_is_saved_as_it_was_typed(ui: Ui, version: str) -> None:
    advanced = '# größer 学習\n[train]\n\nwarmup = "3 %"\nlearning_rate = 3e-4\n'
    with to_be_restored(ui, "pretrain/tiny") as deployment:
        page = f"{version}/deployments/deployment/{deployment['id']}"
        assert ui.edit(page, lambda: ui.text("advanced").fill(advanced)) == 204
        assert ui.api.call(f"/deployments/{deployment['id']}")["parameters"]["advanced"] == advanced


@every_ui
def test_a_link_opens_the_form_filled_in(ui: Ui, version: str) -> None:
    parameters = quote(json.dumps({"text": ["/texts/学習"], "length": "20 steps", "advanced": SMALL}))
    ui.open(f"{version}{ui.deployment('pretrain', 'tiny')}/run?parameters={parameters}")
    for name, value in (("text", "/texts/学習"), ("length", "20 steps"), ("advanced", SMALL)):
        expect(ui.text(name)).to_have_value(value)


def test_the_page_of_a_training_leads_to_its_form_with_twice_the_steps(ui: Ui, text: Path, tmp_path: Path) -> None:
    deployment = ui.api.call("/deployments/name/pretrain/tiny")["id"]
    tiny = SMALL + "[model]\nlayers = 1\nwidth = 16\nheads = 2\n"
    parameters = {"text": [str(text)], "length": "3 steps", "store": str(tmp_path / "store"), "advanced": tiny}
    run = ui.api.call(f"/deployments/{deployment}/create_flow_run", {"parameters": parameters})["id"]
    assert ui.api.ended(run)["type"] == "COMPLETED"
    ui.open_artifacts(run)
    ui.artifact("again-tiny").click()
    address = ui.page.get_by_role("link", name="Train this again with twice the steps").get_attribute("href")
    assert address is not None
    ui.open(address)  # a click opens a tab of its own
    for name, value in (("text", str(text)), ("length", "6 steps"), ("advanced", tiny)):
        expect(ui.text(name)).to_have_value(value)


@every_ui
def test_a_schedule_overrides_one_field_and_its_run_takes_the_others_from_the_deployment(
    ui: Ui, version: str, text: Path, tmp_path: Path
) -> None:
    with to_be_restored(ui, "prepare_data/tiny") as deployment:
        path = f"{version}/deployments/deployment/{deployment['id']}"

        def fill() -> None:
            ui.add("text", text)
            ui.text("advanced").fill(SMALL)

        assert ui.edit(path, fill) == 204
        put_on_schedule(ui, path, store=str(tmp_path / "store"))
        [schedule] = ui.api.call(f"/deployments/{deployment['id']}/schedules")
        assert schedule["parameters"] == {"store": str(tmp_path / "store")}
        run = ui.api.wait(lambda: completed(ui, deployment["id"], tmp_path / "store"))
        assert run["parameters"] | {"document": "auto"} == {
            "text": [str(text)], "document": "auto", "size": "tiny", "read_again": False,
            "store": str(tmp_path / "store"), "advanced": SMALL,
        }  # fmt: skip
        assert list((tmp_path / "store" / "datasets").iterdir())


def put_on_schedule(ui: Ui, path: str, store: str) -> None:
    """Every minute, in a store of its own."""
    ui.open(path)
    ui.page.get_by_role("button", name="Schedule", exact=True).first.click()
    dialog = ui.page.get_by_role("dialog")
    dialog.get_by_text("Cron", exact=True).click()
    if not path.startswith(V2):
        dialog.get_by_role("button", name="Select parameters to override for this schedule").press("ArrowDown")
        ui.page.get_by_role("option", name="store").click()
        ui.page.keyboard.press("Escape")
    ui.input("Value", "input").fill(EVERY_MINUTE)
    ui.text("store").fill(store)
    status = ui.press_save("/schedules")
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        put_on_schedule(ui, path, store)  # nothing was done, and V2 has closed the dialog
    else:
        assert status == HTTPStatus.CREATED


def completed(ui: Ui, deployment: str, store: Path) -> Any:
    """A run of the schedule that has ended well; a failed one fails the test."""
    query = {"flow_runs": {"deployment_id": {"any_": [deployment]}}}
    runs = [run for run in ui.api.call("/flow_runs/filter", query) if run["parameters"].get("store") == str(store)]
    assert not [run for run in runs if run["state_type"] in ("FAILED", "CRASHED")]
    return next((run for run in runs if run["state_type"] == "COMPLETED"), None)


@every_ui
def test_a_run_started_from_the_form_does_what_the_fields_say(ui: Ui, version: str, text: Path, tmp_path: Path) -> None:
    ui.open(f"{version}{ui.deployment('prepare_data', 'tiny')}/run")
    ui.add("text", text)
    ui.text("store").fill(str(tmp_path / "store"))
    ui.text("advanced").fill(SMALL + "[model]\nlayers = 2\n")
    run = ui.start()
    assert ui.api.ended(run)["type"] == "COMPLETED"
    logs = ui.api.logs(run)
    assert "size tiny; all settings that are not the defaults:" in logs
    assert "vocab_size = 400" in logs
    assert "without effect: model.layers" in logs


def test_an_error_in_the_advanced_text_is_on_the_page_of_the_run(ui: Ui) -> None:
    ui.open(f"{V2}{ui.deployment('pretrain', 'tiny')}/run")
    ui.text("advanced").fill("[train]\nmax_step = 5")
    state = ui.api.ended(ui.start())
    assert state["type"] == "FAILED"
    assert "advanced, line 2: train.max_step: there is no such setting" in state["message"]
