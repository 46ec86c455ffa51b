"""Snapshots with other ranks (guards/peers.py) as a session has them: whether there are any, and going back to them."""

from __future__ import annotations

import logging
from collections.abc import Callable

from torch import nn

from stabwatch.config import Config
from stabwatch.distributed.exchange import Exchange
from stabwatch.distributed.ranks import Ranks
from stabwatch.guards.peers import PeerJob, PeerSnapshots
from stabwatch.guards.restore import Restored
from stabwatch.guards.snapshots import Snapshots
from stabwatch.hooks.base.context import TapContext
from stabwatch.runtime.notices import say
from stabwatch.runtime.resume import job_name

_log = logging.getLogger("stabwatch")
NO_SNAPSHOT = "`snapshot_peers` does nothing without the guard `snapshot`"
NO_EXCHANGE = "no snapshot is kept with other ranks: without the job's store they do not find each other"


def peers_for(
    config: Config,
    ranks: Ranks,
    model: nn.Module,
    exchange: Exchange | None,
    context: TapContext,
    event: Callable[..., None],
) -> Callable[[Snapshots], PeerSnapshots] | None:
    """What makes the sender of snapshots to other ranks; None, and a note, where they cannot be sent."""
    if config.snapshot_peers is None:
        return None
    alone = ranks.world > 1 and exchange is None
    if alone or "snapshot" not in config.guards:
        why = NO_EXCHANGE if alone else NO_SNAPSHOT
        context.unmeasured("note", "guard", why)
        _log.warning("stabwatch: %s.", why)
        return None
    job = PeerJob(config.snapshot_peers, job_name(config, model), ranks.rank, ranks.world, ranks.number)
    return lambda snapshots: PeerSnapshots(job, snapshots, exchange, event, context.isolation.caught)


def restored(rank: int, begun: bool, restore: Callable[[], Restored], event: Callable[..., None]) -> int | None:
    """Go back, unless a step has ended; the number of the next step, None where nothing is put back. Says which."""
    try:
        found = Restored(None, "`restore` comes after the first step of the run") if begun else restore()
    except Exception as error:
        found = Restored(None, f"{type(error).__name__}: {error}")
    did, text = found.told()
    event("snapshot", found.step, did=did, why=found.said)
    say(f"rank {rank}: {text}.")
    return found.step
