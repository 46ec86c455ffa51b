"""Sees that a step of this rank is overdue, from a thread of its own, and writes down where the rank is.

The patience is learned from the rank's own steps. Before the first steps, during evaluations, checkpoints and
compilation it is long, and it is never longer than a third of the time after which torch ends the job. Where this rank
sees the run folder, it writes its file there; else it puts it into the job's store, and rank 0 writes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch.distributed as dist

from stabwatch.alerts.held_up import held_up
from stabwatch.distributed import standing
from stabwatch.distributed.directory import Directory
from stabwatch.runlog.stacks import Stand, read_stands, remove_stand, remove_stands, write_stand
from stabwatch.runtime.run_metadata import told

LOOK = 1.0
"""Seconds between two looks."""
LEAST, STEPS, PAUSES = 30.0, 20.0, 2.0
"""A step is overdue after so many seconds, median steps, and longest pauses so far."""
LONGEST = 1800.0
"""Most seconds that earlier pauses give, and that an evaluation, a checkpoint or a compilation may take."""
WARM, FIRST = 3, 300.0
"""Steps before which nothing is known, and the patience in seconds until then."""
OF_TIMEOUT, BUSY_OF_TIMEOUT = 1 / 3, 0.8
"""Shares of the time after which torch ends a job whose collective does not end."""
KEPT = 101
AGAIN = 30.0
"""Seconds after which a rank that is still there looks again, and one that goes on says so again."""
FAREWELL = 1.0
"""Seconds that rank 0 waits for the files of others when it ends with the error of a collective."""
FOLDER, COUNT = "folder", "stands"
LOST = "its connection ended without a word: it was killed, or its node is lost"
MOST_ASKED = 16
"""Ranks without a file of which the reason is asked for."""


class Overdue:
    """Follows the steps of one rank.

    run: the folder and number of the attempt, on rank 0. directory: gives the directory of the ranks, None without one.
    training: whether the model is in training mode. event: writes an event of the run log.
    """

    def __init__(
        self,
        rank: int,
        world: int,
        run: tuple[Path, int] | None,
        directory: Callable[[], Directory | None],
        training: Callable[[], bool],
        event: Callable[..., None],
        failed: Callable[[str, Exception], None],
    ) -> None:
        self._rank, self._world = rank, world
        self._run = run
        self._directory = directory
        self._training = training
        self._trained = True
        """The model was in training mode when the last step ended."""
        self._event = event
        self._failed = failed
        self._ended = 0
        self._step = 0
        self._last = time.monotonic()
        self._seconds: deque[float] = deque(maxlen=KEPT)
        self._longest = 0.0
        self._thread_id = threading.get_ident()
        self._taken = -1.0
        self._told = -1
        self._found: dict[str, str | None] = {}
        self._announced: Directory | None = None
        self._withdrawn = time.monotonic()
        self._timeout = _timeout()
        self._stop = threading.Event()
        self._pid = os.getpid()
        if run is not None:
            remove_stands(*run)
        self._thread = threading.Thread(target=self._follow, name="stabwatch-overdue", daemon=True)
        self._thread.start()

    # -- in the training thread ---------------------------------------------------------------------

    def step_ended(self, step: int) -> None:
        """This step is over; the thread that says so is the one that trains."""
        now = time.monotonic()
        if self._ended >= WARM:
            self._seconds.append(now - self._last)
            self._longest = max(self._longest, now - self._last)
        self._ended, self._step, self._last = self._ended + 1, step + 1, now
        self._thread_id = threading.get_ident()
        self._trained = self._training()

    def lost(self, rank: int, lost: bool) -> None:
        """In the exchange's thread: the connection to a rank has ended without a word, or it is there again.

        A launcher ends the others at once when one was killed, and this process with them: so it is written now.
        Another rank may have written that it is lost.
        """
        if self._run is None:
            return
        written = read_stands(*self._run).get(rank)
        if lost and written is None:
            _write(*self._run, Stand(rank, self._world, "lost", self._step, 0.0, 0.0, time.time(), error=LOST))
        elif not lost and written is not None and written.state == "lost":
            remove_stand(*self._run, rank)

    def close(self, failure: BaseException | None) -> None:
        """The watch ends; failure: the exception that ends it."""
        if os.getpid() != self._pid:
            return
        self._stop.set()
        self._thread.join(2 * LOOK)
        if failure is None or isinstance(failure, KeyboardInterrupt):
            self._withdraw(at_once=True)
            return
        frames = standing.frames_of_error(failure.__traceback__)
        stand = self._stand(frames, time.monotonic() - self._last)
        lost = standing.is_of_lost_rank(failure)
        error = told(failure)
        self._look_for_folder()
        self._publish(replace(stand, state="raised", error=error, busy="", inside="collective" if lost else ""))
        directory = self._directory()
        if directory is not None:
            directory.flush(FAREWELL)
        if self._rank == 0:
            self._last_look(lost)

    def _look_for_folder(self) -> None:
        """A job that fails in its first seconds: this rank was not told the folder yet."""
        directory = self._directory()
        if self._run is None and directory is not None and self._rank:
            for _ in range(2):  # ask, and take the answer
                self._find_folder()
                directory.flush(FAREWELL / 2)

    def _last_look(self, lost: bool) -> None:
        end = time.monotonic() + FAREWELL
        while not self._tell() and lost and time.monotonic() < end:
            self._collect()
            time.sleep(0.05)

    # -- in its own thread --------------------------------------------------------------------------

    def _follow(self) -> None:
        try:
            self._announce()
            while not self._stop.wait(LOOK):
                self._look()
        except Exception as error:
            self._failed("overdue", error)

    def _announce(self) -> None:
        directory = self._directory()
        if self._run is not None and directory is not None and directory is not self._announced:
            self._announced = directory
            path, attempt = self._run
            facts = {"path": str(path.resolve()), "attempt": attempt, "mark": _mark(path)}
            directory.put(FOLDER, json.dumps(facts))

    def _look(self) -> None:
        waited = time.monotonic() - self._last
        if self._rank == 0:
            self._announce()
        elif self._run is None:
            self._find_folder()
        if waited <= self.patience:
            self._withdraw()
            return
        if self._taken < 0 or waited - self._taken > AGAIN:
            self._taken = waited
            frames = standing.frames_of_thread(self._thread_id)
            self._publish(self._stand(frames, waited))
        if self._rank == 0 and self._told != self._ended:
            self._collect()
            self._tell()

    @property
    def patience(self) -> float:
        """Seconds from which the open step is overdue."""
        seconds = list(self._seconds)
        if not seconds:
            return min(FIRST, OF_TIMEOUT * self._timeout)
        paused = min(PAUSES * self._longest, LONGEST)
        return min(max(LEAST, STEPS * median(seconds), paused), OF_TIMEOUT * self._timeout)

    def _stand(self, frames: standing.Frames, waited: float) -> Stand:
        where, call = standing.inside(frames)
        return Stand(
            rank=self._rank,
            world=self._world,
            state="overdue",
            step=self._step,
            seconds=waited,
            patience=self.patience,
            time=time.time(),
            inside=where,
            call=call,
            place=standing.place_of(frames),
            busy=standing.busy_with(frames, self._trained and not self._training()),
            busy_limit=min(LONGEST, BUSY_OF_TIMEOUT * self._timeout),
            entered=standing.entered(),
            threads=standing.stacks(),
        )

    def _publish(self, stand: Stand) -> None:
        directory = self._directory()
        if self._run is not None and _write(*self._run, stand):
            return
        if self._rank and directory is not None:
            small = replace(stand, threads={name: lines[:16] for name, lines in list(stand.threads.items())[:2]})
            directory.put(f"{COUNT}/{self._rank}", small.to_json())
            directory.add(COUNT)

    def _withdraw(self, at_once: bool = False) -> None:
        """This rank goes on. Its file may be one of another rank, which has lost it and heard nothing since."""
        now = time.monotonic()
        if self._taken >= 0 or at_once or now - self._withdrawn > AGAIN:
            self._taken, self._withdrawn = -1.0, now
            if self._run is not None:
                with contextlib.suppress(OSError):  # a folder out of reach for a while
                    remove_stand(*self._run, self._rank)

    def _find_folder(self) -> None:
        """The run folder, if rank 0 has told it and this rank sees the same."""
        directory = self._directory()
        text = self._found.get(FOLDER)
        if text is None and directory is not None:
            directory.get([FOLDER], self._found.update)
        elif text:
            told: dict[str, Any] = json.loads(text)
            path = Path(told["path"])
            self._found[FOLDER] = ""
            self._run = (path, int(told["attempt"])) if _mark(path) == told["mark"] else None

    # -- on rank 0 ----------------------------------------------------------------------------------

    def _collect(self) -> None:
        """Write the files of ranks that do not see the folder, and of those that have left."""
        directory = self._directory()
        if directory is None or self._run is None:
            return
        there = read_stands(*self._run)
        absent = [rank for rank in range(self._world) if rank not in there]
        for rank in absent:
            text = self._found.pop(f"{COUNT}/{rank}", None)
            info = self._found.pop(f"at/{rank}", "")
            if text:
                write_stand(*self._run, rank, text)
            elif info != "":
                self._note_left(rank, info)
        if self._found.pop(COUNT, None):
            directory.get([f"{COUNT}/{rank}" for rank in absent], self._found.update)
        directory.get([COUNT], self._found.update)
        for rank in absent[:MOST_ASKED]:  # a rank that fails says where it is before it leaves: read in the other order
            directory.get([f"at/{rank}", f"{COUNT}/{rank}"], self._found.update)

    def _note_left(self, rank: int, info: str | None) -> None:
        """Write that a rank is not watched, if that is so. info: its announcement, None without one."""
        why = "it has ended no step that was watched" if self._ended else ""
        if info is not None:
            why = "its watch has ended" if json.loads(info).get("state") != "here" else ""
        if why and self._run is not None:
            stand = Stand(rank, self._world, "left", self._step, 0.0, 0.0, time.time(), error=why)
            write_stand(*self._run, rank, stand.to_json())

    def _tell(self) -> bool:
        if self._run is None:
            return False
        found = held_up(read_stands(*self._run), time.time())
        if found is None or self._told == self._ended:
            return found is not None
        self._told = self._ended
        event = found.to_event(time.time(), "rank 0")
        self._event(event.kind, event.step, **event.data)
        return True


def _write(path: Path, attempt: int, stand: Stand) -> bool:
    try:
        write_stand(path, attempt, stand.rank, stand.to_json())
    except OSError:
        return False
    return True


def _mark(path: Path) -> str:
    """What tells the run folder from another one at the same path; '' where it is not seen."""
    try:
        return (path / "meta.json").read_text(encoding="utf-8")[:4096]
    except OSError:
        return ""


def _timeout() -> float:
    """Seconds after which torch gives a collective of the job up."""
    try:
        group = dist.distributed_c10d._get_default_group()
        backends = [group._get_backend(device) for device in group._device_types]
        return min(float(backend.options._timeout.total_seconds()) for backend in backends)
    except Exception:  # a backend without options
        return float(dist.distributed_c10d.default_pg_timeout.total_seconds())
