"""Who is notified of the alerts of the runs that the service judges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from stabwatch.agent.alertmanager import Alertmanager
from stabwatch.agent.notify import Notifier
from stabwatch.agent.receivers import Receiver
from stabwatch.agent.state import Follower
from stabwatch.alerts import Rule
from stabwatch.serve.run import ListedRun


class Told:
    """Gives each run that is judged its notifiers. base: address of the service, for links.

    Without a receiver nothing is started.
    """

    def __init__(
        self, receivers: Sequence[Receiver], upstream: str | None, bearer: str | None, rules: Sequence[Rule]
    ) -> None:
        self._receivers, self._upstream, self._bearer, self._rules = receivers, upstream, bearer, rules
        self.base = ""

    def add(self, run: ListedRun, follower: Follower) -> Callable[[], None]:
        """Tell of the alerts of a run from now on. Returns what sends the rest and ends it."""
        where = follower.where = replace(follower.where, page=f"{self.base}runs/{run.id}/")
        failed, batches = follower.count_error, follower.batches
        notifiers = [Notifier(receiver, where, self._rules, failed, batches=batches) for receiver in self._receivers]
        follower.tell += [notifier.tell for notifier in notifiers]
        ends: list[Callable[[], None]] = [notifier.close for notifier in notifiers]
        if self._upstream:
            manager = Alertmanager(
                self._upstream, where, self._rules, follower.firing, token=self._bearer, failed=failed, batches=batches
            )
            ends.append(manager.close)

        def close() -> None:
            for end in ends:
                end()

        return close
