"""Effects of an alert in the training process: escalation, the flight recorder, callbacks, guards.

Normally the agent evaluates the rules, and its alerts come back through the run log within a second. With `on_alert` or
a guard, the same engine runs in the writer's thread, record by record. Then an alert is delayed only by the records in
the queue, and does not depend on another process.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from stabwatch.config import Config
from stabwatch.distributed.exchange import Exchange
from stabwatch.errors import TrainingUnstableError
from stabwatch.guards import LearningRateBackoff, SkipStep, Snapshots, TaylorGuard
from stabwatch.guards.alert_sources import AgentAlerts, AlertSource, LocalEngine
from stabwatch.guards.broadcast import RankBroadcast
from stabwatch.guards.peers import PeerSnapshots
from stabwatch.guards.protocol import Reaction
from stabwatch.guards.requests import RankRequests
from stabwatch.guards.restore import Restored
from stabwatch.hooks.optimizer_step import StepGuard, StepGuards
from stabwatch.hooks.probes.batches import Batches
from stabwatch.hooks.probes.directional import DirectionalDerivative
from stabwatch.runlog import Event, RecordLayout, Writer

if TYPE_CHECKING:
    from stabwatch.alerts import Alert

_log = logging.getLogger("stabwatch")

OF_THE_JOB = ("TrainingStopped", "RankHoldsUp")
"""Rules of which no guard can mend what they tell."""
BEFORE = 2
"""Steps before the onset whose batches are recorded with an alert."""
MOST_BATCHES = 64
MOST_FLIGHTS = 100
"""Maximum number of alerts of one run that are recorded with their batches."""


class AlertDispatcher:
    """Receives alerts in the writer's thread, and acts on them there or at the next step boundary."""

    def __init__(
        self,
        *,
        source: AlertSource | None,
        writer: Writer | None,
        closer: Callable[[], None],
        batches: Batches,
        broadcast: RankBroadcast,
        requests: RankRequests,
        on_alert: Callable[[Alert], object] | None,
        reactions: Sequence[Reaction],
        stop: bool,
        peers: PeerSnapshots | None,
        run: Callable[..., None],
        shield: Callable[..., None],
    ) -> None:
        self._source = source
        self._writer = writer
        self._closer = closer
        self._batches = batches
        self._broadcast = broadcast
        self._requests = requests
        self._on_alert = on_alert
        self._reactions = reactions
        self._stop = stop
        self._peers = peers
        self._run, self._shield = run, shield
        self.unwritten: Callable[[str, int, dict[str, Any]], None] = lambda kind, step, data: None
        """Set by the owner: called with an event that this rank does not write."""
        self._received: deque[Alert] = deque()
        self._active: dict[tuple[str, str, str], Alert] = {}
        self._flights = 0
        self._from = 0

    @property
    def acts(self) -> bool:
        """Are records judged in this process, so that guards can act at the next step?"""
        return isinstance(self._source, LocalEngine)

    # -- in the writer's thread ---------------------------------------------------------------------

    def record(self, layout: RecordLayout, step: int, values: NDArray[np.float32]) -> None:
        """Process a record before it is written."""
        if self._source is not None:
            self._shield("alarm", self._listen, self._source, layout, step, values)

    def _listen(self, source: AlertSource, layout: RecordLayout, step: int, values: NDArray[np.float32]) -> None:
        for alert in source.record(layout, step, time.time(), values):
            if alert.state == "firing":
                self._closer()
                self._keep(alert)
                self._requests.make(
                    alert.since,
                    alert.onset,
                    step=alert.step,
                    rule=alert.rule,
                    signal=alert.signal,
                    layer=alert.layer,
                )
            self._received.append(alert)
            self._note(alert)

    def _note(self, alert: Alert) -> None:
        series = (alert.rule, alert.signal, alert.layer)
        if alert.state == "firing":
            self._active[series] = alert
        else:
            self._active.pop(series, None)

    @property
    def active(self) -> list[Alert]:
        """The firing alerts. Thread-safe."""
        return list(self._active.copy().values())

    def _keep(self, alert: Alert) -> None:
        """The flight recorder: adds the batches of the records around an onset to the log."""
        if self._writer is None or self._flights >= MOST_FLIGHTS:
            return
        batches = self._batches.of(min(alert.onset - BEFORE, alert.since), alert.step)
        self._flights += 1
        self._writer.event(
            "flight", alert.step, rule=alert.rule, signal=alert.signal, layer=alert.layer, onset=alert.onset,
            since=alert.since, batches=batches[:MOST_BATCHES], left_out=max(0, len(batches) - MOST_BATCHES),
        )  # fmt: skip

    # -- in the training thread ---------------------------------------------------------------------

    def announce(self, step: int, what: str, seen: bool = False) -> None:
        """Announce a change of the data at this step; `seen`: a change of the model that the watch has seen itself."""
        self.tell("change", step, {"what": what, "seen": True} if seen else {"what": what})

    def tell(self, kind: str, step: int, data: dict[str, Any], closer: bool = False) -> None:
        """Write an event that an engine reads; `closer`: and measure all in the next steps."""
        if closer:
            self._closer()
        if self._writer is not None:
            self._writer.event(kind, step, **data)
        else:
            self.unwritten(kind, step, data)
        if self._source is not None:
            self._source.tell(Event(kind, time.time(), step, data))

    def use(self, exchange: Exchange | None) -> None:
        """Reach other ranks through this exchange from now on."""
        self._broadcast.use(exchange)
        self._requests.use(exchange)
        if self._peers is not None:
            self._peers.use(exchange)

    def restore(self, optimizer: Any, timeout: float) -> Restored:
        """Before the first step: put back what peers of an earlier attempt hold. optimizer: one, several or None."""
        if self._peers is None:
            return Restored(None, "`snapshot_peers` is not set, or is off")
        given = optimizer if isinstance(optimizer, list | tuple) else [optimizer]
        return self._peers.restore([one for one in given if one is not None], timeout)

    def close(self, reason: str) -> None:
        """The run ends."""
        if self._peers is not None:
            self._peers.close(reason in ("finished", "interrupted"))

    def before(self, optimizer: Any, step: int) -> None:
        """An optimizer is about to step."""
        for reaction in self._reactions:
            self._run(reaction.name, "always", reaction.before, optimizer, step)

    def after(self, optimizer: Any) -> None:
        """It has stepped."""
        for reaction in self._reactions:
            self._run(reaction.name, "always", reaction.after, optimizer)

    def boundary(self, step: int, watched: int) -> None:
        """Between two steps; `step` is the number of the next one, `watched` how many have been watched.

        Raises TrainingUnstableError if guard="raise" is set.
        """
        critical = self.deliver() if self._received else None
        self._run("calls", "always", self._hear)
        if not (self._reactions or self._stop):
            return
        from stabwatch.alerts import Alert

        for reaction in self._reactions:
            self._run(reaction.name, "always", reaction.boundary, step)
        if critical is not None and not self._broadcast.possible:
            self._act(critical, step, ())
        elif critical is not None and not self._broadcast.pending:
            self._broadcast.send(watched, critical.to_event().to_json())
        messages: list[str] = []
        withdrawn: list[str] = []

        def receive() -> None:
            nonlocal messages, withdrawn
            messages, withdrawn = self._broadcast.receive(watched)

        self._run("broadcast", "always", receive)
        for message in messages:
            self._act(Alert.from_event(Event.from_json(message)), step, self._reactions)
        for message in withdrawn:  # not every rank can be reached: nothing may change the weights of some
            self._act(Alert.from_event(Event.from_json(message)), step, ())

    def deliver(self) -> Alert | None:
        """Call `on_alert` with the new alerts. Returns the first critical one that fires.

        Raises TrainingUnstableError if `on_alert` does.
        """
        critical: Alert | None = None
        while self._received:
            alert = self._received.popleft()
            if alert.step < self._from:
                continue  # from before the rollback
            if self._on_alert is not None:
                try:
                    self._on_alert(alert)
                except TrainingUnstableError:
                    raise
                except Exception as error:
                    self._report(error)
            if alert.state == "firing" and alert.severity == "critical" and alert.rule not in OF_THE_JOB:
                critical = critical or alert
        return critical

    def _hear(self) -> None:
        for answered in self._requests.boundary():
            if self._writer is not None:
                batches = answered.pop("batches")
                self._writer.event(
                    "flight", answered.pop("step"), **answered,
                    batches=batches[:MOST_BATCHES], left_out=max(0, len(batches) - MOST_BATCHES),
                )  # fmt: skip

    def _report(self, error: Exception) -> None:
        def again() -> None:
            raise error

        self._run("on_alert", "always", again)

    def _act(self, alert: Alert, step: int, reactions: Sequence[Reaction]) -> None:
        done = False
        for reaction in reactions:
            outcome: dict[str, Any] | None = None

            def react(reaction: Reaction = reaction) -> None:
                nonlocal outcome
                outcome = reaction.react(alert.since)

            self._run(reaction.name, "always", react)
            done = done or outcome is not None
            self._notify(reaction.name, alert, step, outcome)
        if done and self._source is not None:
            self._source.restart(step)
            self._from = step
        if self._stop and not done:
            self._notify("raise", alert, step, {"did": "raised"})
            raise TrainingUnstableError(f"{alert.summary} {alert.description} See {alert.runbook_url}")

    def _notify(self, guard: str, alert: Alert, step: int, outcome: dict[str, Any] | None) -> None:
        result = {"did": "nothing"} if outcome is None else outcome
        _log.warning("stabwatch: guard %s at step %d, for %s: %s", guard, step, alert.rule, result)
        if self._writer is not None:
            self._writer.event("guard", step, guard=guard, rule=alert.rule, onset=alert.onset, **result)


def step_guards(config: Config, model: nn.Module, world: int) -> StepGuards | None:
    """Factory of the guards that act inside an optimizer step; None if the settings enable none.

    world: number of ranks of the job. With more than one there is no Taylor guard.
    """
    wanted = {"skip_step", "taylor"} & set(config.guards) - ({"taylor"} if world > 1 else set())
    if not wanted:
        return None

    def make(optimizer: Any, probe: DirectionalDerivative | None) -> list[StepGuard]:
        guards: list[StepGuard] = [SkipStep(optimizer)] if "skip_step" in wanted else []
        return guards + ([TaylorGuard(optimizer, model, probe=probe)] if "taylor" in wanted else [])

    return make


def make_dispatcher(
    config: Config,
    model: nn.Module,
    world: int,
    exchange: Exchange | None,
    writer: Writer | None,
    run_dir: Path,
    closer: Callable[[], None],
    batches: Batches,
    on_alert: Callable[[Alert], object] | None,
    run: Callable[..., None],
    shield: Callable[..., None],
    first_step: int = 0,
    peers: Callable[[Snapshots], PeerSnapshots] | None = None,
) -> AlertDispatcher:
    """The dispatcher for the settings. first_step: where the training begins, or goes on. peers: makes what sends
    snapshots to other ranks, if they are to be sent."""
    snapshots = Snapshots(model, config.snapshot_every, lends=peers is not None)
    made: dict[str, Callable[[], Reaction]] = {
        "snapshot": lambda: snapshots,
        "lr_backoff": LearningRateBackoff,
    }
    reactions = [make() for name, make in made.items() if name in config.guards]
    stop = "raise" in config.guards
    source: AlertSource | None = None
    if writer is not None and (on_alert is not None or reactions or stop):
        engine = source = LocalEngine(config.rules, None if config.agent else writer.put)
        run("alarm", "always", engine.learn, run_dir, first_step)
    elif writer is not None and config.agent:
        source = AgentAlerts(run_dir)
    requests = RankRequests(exchange, batches, closer)
    return AlertDispatcher(
        source=source, writer=writer, closer=closer, batches=batches, broadcast=RankBroadcast(world, exchange),
        requests=requests, on_alert=on_alert, reactions=reactions, stop=stop,
        peers=peers(snapshots) if peers is not None else None, run=run, shield=shield,
    )  # fmt: skip
