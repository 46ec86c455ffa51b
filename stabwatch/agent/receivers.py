"""Receivers of messages: a webhook, a command, an e-mail address.

Addresses and tokens are secrets. They come from the environment or from a file, and never appear in a log, a process
list or an error.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from stabwatch.errors import ConfigError

WEBHOOK = "STABWATCH_WEBHOOK"
COMMAND = "STABWATCH_NOTIFY_COMMAND"
SMTP = "STABWATCH_SMTP"
ALERTMANAGER = "STABWATCH_ALERTMANAGER"
TOKEN = "STABWATCH_ALERTMANAGER_TOKEN"
TIMEOUT = 10.0
COMMAND_TIMEOUT = 30.0


@dataclass(frozen=True)
class Message:
    """One message. title: one line. text: the whole. alerts: the same as data, one entry per rule."""

    run: str
    title: str
    text: str
    alerts: list[dict[str, Any]] = field(default_factory=list)


class Refused(Exception):
    """A receiver rejected a message. again: whether to retry. The text contains no secret."""

    def __init__(self, reason: str, again: bool) -> None:
        super().__init__(reason)
        self.again = again


class Receiver(Protocol):
    """One receiver of messages."""

    @property
    def name(self) -> str:
        """Its name in the agent's log."""

    def send(self, message: Message) -> None:
        """Deliver a message. Raises Refused."""


def secret(variable: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """The environment variable, or the content of the file named by VARIABLE_FILE. Raises ConfigError."""
    path = environ.get(f"{variable}_FILE")
    try:
        found = Path(path).read_text(encoding="utf-8").strip() if path else environ.get(variable, "").strip()
    except OSError as error:
        raise ConfigError(f"{variable}_FILE cannot be read: {error.strerror}.") from None
    return found or None


def address(variable: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """A secret that is an address. Raises ConfigError."""
    found = secret(variable, environ)
    if found and not found.startswith(("http://", "https://")):
        raise ConfigError(f"{variable} must be an address with http:// or https://.")
    return found


def receivers(environ: Mapping[str, str] = os.environ) -> list[Receiver]:
    """The receivers that the environment configures. Raises ConfigError."""
    found: list[Receiver] = []
    if url := address(WEBHOOK, environ):
        found.append(Webhook(url))
    if command := secret(COMMAND, environ):
        found.append(Command(command))
    if mail := secret(SMTP, environ):
        from stabwatch.agent.email import Email

        found.append(Email(mail))
    return found


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would send the message as a GET, and the token to another address."""

    def redirect_request(self, *args: Any) -> None:
        """Follow none."""


_OPENER = urllib.request.build_opener(_NoRedirect)


def post(url: str, data: Any, token: str | None = None) -> None:
    """POST JSON; a name and a password in the address become basic authentication. Raises Refused."""
    parts = urllib.parse.urlsplit(url)
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    elif parts.username:
        login = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
    bare = urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    request = urllib.request.Request(bare, json.dumps(data).encode(), headers, method="POST")
    try:
        with _OPENER.open(request, timeout=TIMEOUT):
            return
    except urllib.error.HTTPError as error:
        error.close()
        if 300 <= error.code < 400:
            raise Refused(f"it redirects ({error.code}), which is not followed: give the final address", True) from None
        raise Refused(f"it answers {error.code}", error.code >= 500 or error.code == 429) from None
    except Exception as error:  # some texts contain the address
        raise Refused(type(error).__name__, True) from None


class Webhook:
    """A webhook that accepts Slack's JSON, as Mattermost and Discord do."""

    name = "webhook"

    def __init__(self, url: str) -> None:
        self._url = url

    def send(self, message: Message) -> None:
        """Deliver a message. Raises Refused."""
        post(self._url, {"text": escaped(message.text)})


def escaped(text: str) -> str:
    """Text in which names from a run are no mark-up of a chat: no links, and no calls of everybody."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"@(?=(channel|here|all|everyone)\b)", "@\u200b", text)


class Command:
    """A program that gets the message as JSON on standard input: `run`, `text`, `alerts`.

    It runs without a shell, and its output goes to the agent's log. Exit code 75 (temporary failure) means retry; any
    other except 0 is a rejection. It is killed after 30 seconds.
    """

    name = "command"

    def __init__(self, command: str) -> None:
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise ConfigError(f"{COMMAND} is not a command line: {error}.") from None

    def send(self, message: Message) -> None:
        """Deliver a message. Raises Refused."""
        data = json.dumps({"run": message.run, "text": message.text, "alerts": message.alerts})
        try:
            done = subprocess.run(
                self._words, input=data.encode(), stdout=sys.stderr.fileno(), timeout=COMMAND_TIMEOUT, check=False
            )
        except subprocess.TimeoutExpired:
            raise Refused(f"it did not end within {COMMAND_TIMEOUT:.0f} s", True) from None
        except OSError as error:
            raise Refused(f"it cannot be started: {error.strerror}", False) from None
        if done.returncode:
            raise Refused(f"it ended with exit code {done.returncode}", done.returncode == os.EX_TEMPFAIL)
