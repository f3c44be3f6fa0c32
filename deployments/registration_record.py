"""Digests of the values that the code last wrote to a deployment. A person changed each value that differs."""

import json
import re
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import VariableCreate, VariableUpdate

from lmcore.settings.section import fingerprint

# Digests of what earlier versions wrote without a record (Prefect 3.8): presets and descriptions of flows.
_BEFORE = frozenset(
    [
        "0959465a03d15b30",
        "378354aaebb0ba8b",
        "3beeb0264ba185e7",
        "4e5881e4911c6719",
        "5144967c44333845",
        "53e8e539e0cfa9b7",
        "62d78cb61b8a356c",
        "663aef27761e8fcb",
        "70cab17dbaccd458",
        "7777ca3436d49806",
        "7f110050b6c173be",
        "827d6bd7e5a9df08",
        "8551189dcdebbf6c",
        "946483be80195ec4",
        "9b8d211cb3d8c54a",
        "a670a5ceae31c588",
        "bf0d7eeda8e4c4da",
        "bf1fef379483c672",
        "dc5aabd99f16364c",
    ]
)
_GONE = "gone"
"""In place of a digest: the value was deleted and must not be created again."""


class Written:
    """The digests of one deployment by the name of the setting, stored in a Prefect variable."""

    def __init__(self, client: SyncPrefectClient, deployment: str) -> None:
        self._client, self._variable = client, f"lm_written_{_plain(deployment)}"
        found = client.read_variable_by_name(self._variable)
        self.is_new = found is None
        self.digests: dict[str, str] = dict(found.value) if found and isinstance(found.value, dict) else {}
        self._saved = dict(self.digests)

    def is_untouched(self, name: str, value: object) -> bool:
        """Whether the server's ``value`` is the one last written, or was never set."""
        return self.digests[name] == _digest(value) if name in self.digests else value is None

    def is_ours(self, name: str) -> bool:
        """Whether ``note`` recorded the setting."""
        return name in self.digests

    def take_over(self, found: dict[str, Any], absent: set[str]) -> None:
        """Start the record of a deployment that has none. The settings in ``absent`` were deleted by a person."""
        self.digests = {name: _digest(value) for name, value in found.items() if _digest(value) in _BEFORE}
        self.digests |= dict.fromkeys(absent, _GONE)

    def note(self, settings: dict[str, Any]) -> None:
        """Record what is on the server now. None removes a setting from the record."""
        for name, value in settings.items():
            if value is None:
                self.digests.pop(name, None)
            else:
                self.digests[name] = _digest(value)

    def forget(self, prefix: str) -> None:
        """Remove the settings whose names begin with ``prefix`` from the record."""
        self.digests = {name: digest for name, digest in self.digests.items() if not name.startswith(prefix)}

    def save(self) -> None:
        if self.is_new:
            self._client.create_variable(VariableCreate(name=self._variable, value=self.digests, tags=["lm"]))
        elif self.digests != self._saved:
            self._client.update_variable(VariableUpdate(name=self._variable, value=self.digests))


def _plain(name: str) -> str:
    """A name in the characters of a variable. A digest distinguishes names with other characters."""
    plain = re.sub("[^a-z0-9]", "_", name.lower())
    return plain if re.fullmatch("[a-z0-9_]+/[a-z0-9]+", name) else f"{plain[:60]}_{fingerprint(name)}"


def _digest(value: object) -> str:
    """A digest that is equal for 1 and 1.0, because a browser writes 1 for both."""
    return fingerprint(json.loads(json.dumps(value), parse_float=_number))


def _number(text: str) -> float:
    return int(float(text)) if float(text).is_integer() else float(text)
