"""Pushes dashboards to Grafana through grafana-client. A second push changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from stabwatch.errors import GrafanaError, MissingExtraError
from stabwatch.exporters.grafana.dashboards import Page, render

State = Literal["new", "changed", "same"]
_OF_THE_SERVER = ("id", "version", "iteration")
T = TypeVar("T")


@dataclass(frozen=True)
class Difference:
    """Comparison of one dashboard with the server. version: the server's, None if it has none."""

    page: Page
    state: State
    version: int | None


class Server:
    """A Grafana server. token: of a service account that may edit dashboards; it is only sent to this server."""

    def __init__(self, url: str, token: str = "", user: str = "", password: str = "", timeout: float = 10.0) -> None:
        try:
            from grafana_client.api import GrafanaApi
            from grafana_client.client import TokenAuth
        except ImportError as error:
            raise MissingExtraError("This needs grafana-client: pip install 'stabwatch[grafana]'.") from error
        credential: Any = TokenAuth(token) if token else (user, password) if user else None
        self._url = url
        self._api = GrafanaApi.from_url(url=url, credential=credential, timeout=timeout)

    def differences(self, pages: Iterable[Page]) -> list[Difference]:
        """The changes that a push would make."""
        return [self._difference(page) for page in pages]

    def push(self, pages: Iterable[Page], folder: str, overwrite: bool = False) -> list[Difference]:
        """Create or update dashboards in a folder, which is created if needed.

        A dashboard that changes on the server during the push raises GrafanaError, unless overwrite.
        """
        found = self.differences(pages)
        if all(d.state == "same" for d in found):
            return found
        uid = self._folder(folder)
        for difference in found:
            if difference.state != "same":
                self._put(difference, uid, overwrite)
        return found

    def _difference(self, page: Page) -> Difference:
        answer = self._ask(lambda: self._api.dashboard.get_dashboard(page.uid), missing=None)
        if answer is None:
            return Difference(page, "new", None)
        there = {k: v for k, v in answer["dashboard"].items() if k not in _OF_THE_SERVER}
        mine = {k: v for k, v in json.loads(render(page)).items() if k not in _OF_THE_SERVER}
        return Difference(page, "same" if there == mine else "changed", answer["dashboard"].get("version"))

    def _folder(self, title: str) -> str:
        folders = self._ask(self._api.folder.get_all_folders)
        found = next((f["uid"] for f in folders if f["title"] == title), None)
        return str(found or self._ask(lambda: self._api.folder.create_folder(title))["uid"])

    def _put(self, difference: Difference, folder: str, overwrite: bool) -> None:
        body = json.loads(render(difference.page))
        if difference.version is not None:
            body["version"] = difference.version
        message = {"dashboard": body, "folderUid": folder, "overwrite": overwrite, "message": "stabwatch grafana push"}
        self._ask(lambda: self._api.dashboard.update_dashboard(message))

    def _ask(self, call: Callable[[], T], missing: T | type[Exception] | None = GrafanaError) -> T:
        """Send a request; errors become GrafanaError. missing: the result of a 404, if that is not an error."""
        from grafana_client.client import GrafanaException

        try:
            return call()
        except GrafanaException as error:
            status = error.status_code
            if status == 404 and missing is not GrafanaError:
                return missing  # type: ignore[return-value]
            raise GrafanaError(f"{self._url}: {_WORDS.get(status, error.message)}") from None
        except Exception as error:  # any error of the transport
            raise GrafanaError(f"{self._url} does not answer: {type(error).__name__}. Is the address right?") from None


_WORDS = {
    401: "the token is not accepted (401). Make one under Administration, Service accounts; set GRAFANA_TOKEN.",
    403: "the token may not edit dashboards or folders (403): its service account needs the role Editor.",
    404: "there is no Grafana API at this address (404). Include a path prefix in the URL.",
    412: "a dashboard changed on the server during the push (412). Check with `diff`; --overwrite replaces it.",
}  # fmt: skip
