"""The life of an agent: open the run, serve and follow it, linger after its end, clean up."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType

from stabwatch.agent.alertmanager import Alertmanager
from stabwatch.agent.discovery import AGENT, target, target_file, write_atomically
from stabwatch.agent.http import HttpServer
from stabwatch.agent.notify import Notifier
from stabwatch.agent.receivers import ALERTMANAGER, TOKEN, address, receivers, secret
from stabwatch.agent.server import App
from stabwatch.agent.sink_processes import SinkProcesses
from stabwatch.agent.state import Follower
from stabwatch.agent.summary import EndSummary
from stabwatch.alerts import RULES
from stabwatch.alerts.user_rules import load_rules
from stabwatch.errors import AgentError, StabwatchError
from stabwatch.exporters.cardinality import WORST, Cardinality
from stabwatch.exporters.latest import MAX_SERIES
from stabwatch.exporters.registry import live_sinks
from stabwatch.runlog.schema import TARGETS
from stabwatch.runlog.upload import send_events

POLL_SECONDS = 0.25
HOSTS = "STABWATCH_HOSTS"
"""Environment variable: further names under which the service may be asked for, with commas."""
USERNAME = "stabwatch"
"""User name of a login, if only a password is given."""
WAIT_SECONDS = 10.0
"""Time to wait for the run folder."""


def serve(
    run_dir: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 9478,
    linger: float = 60.0,
    file_sd: str | Path | None = None,
    certfile: str | Path | None = None,
    keyfile: str | Path | None = None,
    username: str | None = None,
    password: str | None = None,
    rules: str | Path | None = None,
    cardinality: Cardinality = "layer",
    worst: int = WORST,
    max_series: int = MAX_SERIES,
    sinks: Sequence[str] = (),
    external_url: str | None = None,
    summary: bool = False,
) -> int:
    """Follow a run and serve it until `linger` seconds after its end, or until SIGTERM or SIGINT. Returns 0.

    host: loopback by default; '0.0.0.0' opens it. port: if it is taken, the next free one; 0 for any.
    file_sd: folder for the Prometheus target file; `targets` next to the run folder by default.
    rules: YAML file that changes, mutes or adds rules.
    cardinality: on /metrics, a series per 'layer', per 'block', or one for the 'run'; below 'layer' also the `worst`
    layers of each signal. max_series: series above this limit are left out and counted.
    sinks: names of live sinks; each is a process of its own.
    external_url: address of the page for others, for links in notifications. summary: notify of the end of the run.
    Raises RunLogError if there is no run, AgentError if it cannot be served, RuleError with the line of a mistake in
    the rules, and ConfigError or MissingExtraError for a sink that cannot be used.
    """
    run = Path(run_dir).resolve()
    token = login(username, password)
    with ExitStack() as leave:
        chosen = load_rules(rules) if rules else RULES
        chosen_sinks = [sink.name for sink in live_sinks(sinks)]
        found, upstream, bearer = receivers(), address(ALERTMANAGER), secret(TOKEN)
        follower = Follower(
            run, timeout=WAIT_SECONDS, rules=chosen, cardinality=cardinality, worst=worst, max_series=max_series
        )
        failed, batches = follower.count_error, follower.batches
        leave.enter_context(stop_signals(follower.stopping))
        leave.callback(follower.lease.release)
        server = HttpServer(
            App(follower, token, host_names(host)), host, port, certfile=_path(certfile), keyfile=_path(keyfile)
        )
        leave.callback(server.close)
        where = follower.where = replace(follower.where, page=page_address(external_url) or server.url)
        notifiers = [Notifier(receiver, where, chosen, failed, batches=batches) for receiver in found]
        for notifier in notifiers:
            follower.tell.append(notifier.tell)
            leave.callback(notifier.close)
        if upstream:
            manager = Alertmanager(
                upstream, where, chosen, follower.firing, token=bearer, failed=failed, batches=batches
            )
            leave.callback(manager.close)
        announcement = _Announcement(follower, server, Path(file_sd) if file_sd else run.parent / TARGETS)
        leave.callback(announcement.withdraw)
        server.start()
        _print_start(server, follower, token)
        feeding = SinkProcesses(run, chosen_sinks, follower.report_sink)
        leave.callback(_send_rest, follower)
        leave.callback(follower.poll)  # writes what the sinks said at the end
        leave.callback(lambda: feeding.close(follower.ended is not None))
        _follow(follower, announcement, feeding, linger, EndSummary(follower, notifiers if summary else ()))
    return 0


def _send_rest(follower: Follower) -> None:
    """What was written after the training had ended, to the object store that the run is in."""
    if follower.lease.held():
        try:
            send_events(follower.log.path)
        except (StabwatchError, OSError) as error:
            print(f"stabwatch agent: the last events could not be sent: {error}", file=sys.stderr)


def page_address(external_url: str | None) -> str:
    """The address with a slash at its end; '' without one. Raises AgentError."""
    if external_url and not external_url.startswith(("http://", "https://")):
        raise AgentError(f"The external address must begin with http:// or https://, and is {external_url!r}.")
    return external_url.rstrip("/") + "/" if external_url else ""


def _follow(
    follower: Follower, announcement: _Announcement, sinks: SinkProcesses, linger: float, summary: EndSummary
) -> None:
    ended: float | None = None
    while not follower.stopping.is_set():
        announcement.make()
        follower.poll()
        if follower.lease.held():
            sinks.check()
            summary.check()
        ended = None if follower.ended is None else ended or time.monotonic()
        if ended is not None and time.monotonic() - ended >= linger:
            return
        follower.stopping.wait(POLL_SECONDS)


class _Announcement:
    """agent.json and the Prometheus target, written by the agent that holds the lease."""

    def __init__(self, follower: Follower, server: HttpServer, folder: Path) -> None:
        self._follower = follower
        self._server = server
        self._files = (follower.log.path / AGENT, target_file(folder, follower.meta.run))
        self._made = False
        self._complained = False

    def make(self) -> None:
        """Announce this agent once it has the lease."""
        if self._made or not self._follower.lease.held():
            return
        server, run = self._server, self._follower.meta.run
        me = {"pid": os.getpid(), "url": server.url, "host": server.host, "port": server.port, "started": time.time()}
        try:
            write_atomically(self._files[0], me)
            write_atomically(self._files[1], target(server.address, run, server.tls))
            self._made = True
        except OSError as error:
            if not self._complained:
                print(f"stabwatch agent: cannot announce itself: {error}; trying again.", file=sys.stderr)
            self._complained = True

    def withdraw(self) -> None:
        """Remove the announcement."""
        if self._made:
            for file in self._files:
                with suppress(OSError):
                    file.unlink()


def _print_start(server: HttpServer, follower: Follower, token: str | None) -> None:
    if server.asked not in (0, server.port):
        print(f"stabwatch agent: port {server.asked} is taken, using {server.port}.")
    print(f"stabwatch agent: run {follower.meta.run}: {server.url} (Prometheus: {server.url}metrics)")
    if not follower.lease.held():
        print(
            "stabwatch agent: another agent has the lease of this run (or its folder is read-only): this one only "
            "serves."
        )
    tell_access("stabwatch agent", server, token)
    sys.stdout.flush()


def tell_access(who: str, server: HttpServer, token: str | None) -> None:
    """Say on standard output when others can read what is served, or the password."""
    loopback = server.host in ("localhost", "::1") or server.host.startswith("127.")
    if not loopback and token is None:
        print(f"{who}: open to the network without a password; STABWATCH_PASSWORD sets one.")
    elif not loopback and not server.tls:
        print(f"{who}: the password is sent unencrypted; use --certfile and --keyfile.")


def host_names(host: str) -> list[str]:
    """Names of this service: what it listens on, and those of the environment."""
    return [host, *(name.strip() for name in os.environ.get(HOSTS, "").split(",") if name.strip())]


def login(username: str | None, password: str | None) -> str | None:
    """'user:password', or None without a login. Raises AgentError."""
    if not username and not password:
        return None
    if not password:
        raise AgentError("A login needs a password: set STABWATCH_PASSWORD.")
    username = username or USERNAME
    if ":" in username:
        raise AgentError("A user name for HTTP basic authentication must not contain a colon.")
    return f"{username}:{password}"


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


@contextmanager
def stop_signals(stop: threading.Event) -> Iterator[None]:
    """Shut down cleanly on SIGTERM and SIGINT. Outside the main thread, no handler can be set."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
