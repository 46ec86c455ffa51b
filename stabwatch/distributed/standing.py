"""Where a thread of this process is, seen from another one, and which collectives this process has entered."""

from __future__ import annotations

import json
import re
import site
import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

from stabwatch.runlog.stacks import Inside, Place

MOST_FRAMES, MOST_THREADS = 64, 24
SAVES, EVALUATES, COMPILES = "saves or loads a checkpoint", "evaluates", "compiles"
_TORCH = str(Path(torch.__file__).parent)
_PACKAGES = tuple(
    {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages(), site.getusersitepackages()}
)
_STANDARD = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})
_OURS = str(Path(__file__).parents[1])
_COLLECTIVE = (f"{_TORCH}/distributed/", f"{_TORCH}/nn/parallel/")
_LOADER = f"{_TORCH}/utils/data/"
_BACKWARD = "_engine_run_backward"
_CHECKPOINT = (f"{_TORCH}/serialization.py", f"{_TORCH}/distributed/checkpoint/", "/safetensors/")
_COMPILER = (f"{_TORCH}/_dynamo/", f"{_TORCH}/_inductor/")
_LONG = (
    (re.compile(r"(^|_)(save|saving|ckpt|checkpoint|export|push|upload)(_|s?$)", re.IGNORECASE), SAVES),
    (
        re.compile(r"(^|_)(val|valid(ate|ation)?|eval(uate|uation)?|generate)(_|$)", re.IGNORECASE),
        EVALUATES,
    ),
)
"""By names of the user's functions."""
_LOST = re.compile(
    r"gloo|nccl|connection|broken pipe|timed? ?out|peer|socket|process group|store|remote|rank \d", re.IGNORECASE
)
_LOST_TYPES = ("DistBackendError", "DistNetworkError", "DistStoreError", "DistError", "ConnectionError")

Frames = Sequence[traceback.FrameSummary]
"""The innermost first."""


def frames_of(frame: FrameType | None) -> Frames:
    """The frames of a stack."""
    return list(traceback.StackSummary.extract(traceback.walk_stack(frame), limit=MOST_FRAMES, lookup_lines=False))


def frames_of_error(trace: TracebackType | None) -> Frames:
    """The frames of a traceback."""
    found = traceback.StackSummary.extract(traceback.walk_tb(trace), limit=-MOST_FRAMES, lookup_lines=False)
    return list(found)[::-1]


def frames_of_thread(thread: int) -> Frames:
    """The frames of a running thread; none if it has ended."""
    return frames_of(sys._current_frames().get(thread))


def stacks() -> dict[str, list[str]]:
    """The stacks of all threads but those of stabwatch, by name."""
    names = {t.ident: t.name for t in threading.enumerate()}
    running = {names.get(i, f"thread {i}"): frame for i, frame in sys._current_frames().items()}
    mine = [(name, frame) for name, frame in running.items() if not name.startswith("stabwatch")]
    return {
        name: [f"{f.filename}:{f.lineno} {f.name}" for f in frames_of(frame)] for name, frame in mine[:MOST_THREADS]
    }


def _is_foreign(file: str) -> bool:
    """Is this no file of the user's?"""
    return file.startswith((_OURS, _TORCH, *_PACKAGES, *_STANDARD, "<"))


def place_of(frames: Frames) -> Place | None:
    """The innermost line of the user's code; without one, of any but torch's and the standard library's."""
    own = next((f for f in frames if not _is_foreign(f.filename)), None)
    library = (f for f in frames if not f.filename.startswith((_OURS, _TORCH, "<")) and not _is_standard(f.filename))
    frame = own or next(library, None)
    if frame is None:
        return None
    return Place(frame.filename, frame.lineno or 0, frame.name, (frame.line or "").strip())


def _is_standard(file: str) -> bool:
    return file.startswith(_STANDARD) and not file.startswith(_PACKAGES)


def inside(frames: Frames) -> tuple[Inside, str]:
    """What of torch a thread is in, and the function of it that the user's code has called."""
    if any(f.filename.startswith(_LOADER) for f in frames):
        return "loader", "DataLoader"
    called = list(_until_user(frames))
    collective = [f for f in called if f.filename.startswith(_COLLECTIVE)]
    if collective:
        named = (f.name for f in reversed(collective) if f.name not in ("wrapper", "inner", "decorate_context"))
        return "collective", next(named, collective[-1].name)
    if any(f.name == _BACKWARD for f in called):
        return "backward", "backward"
    return "", ""


def _until_user(frames: Frames) -> Iterable[traceback.FrameSummary]:
    for frame in frames:
        if not _is_foreign(frame.filename):
            return
        yield frame


def busy_with(frames: Frames, evaluating: bool) -> str:
    """What this thread is doing that takes long in healthy runs too; '' for nothing of it."""
    files = [f.filename for f in frames]
    if any(file.startswith(_CHECKPOINT) or _CHECKPOINT[-1] in file for file in files):
        return SAVES
    if any(file.startswith(_COMPILER) for file in files):
        return COMPILES
    names = [f.name for f in frames if not f.filename.startswith((_TORCH, _OURS)) and not _is_standard(f.filename)]
    for pattern, what in _LONG:
        if any(pattern.search(name) for name in names):
            return what
    return EVALUATES if evaluating else ""


def is_of_lost_rank(error: BaseException) -> bool:
    """Is this the error of a collective that another rank has not entered, or has left?"""
    if type(error).__name__ in _LOST_TYPES:
        return True
    return isinstance(error, RuntimeError | OSError) and bool(_LOST.search(str(error)))


def entered() -> dict[str, tuple[int, bool, str]]:
    """For each process group: number of the last collective that was entered, whether it has ended, and its name.

    From torch's flight recorder, if it runs (`TORCH_FR_BUFFER_SIZE`). Sends and receives are left out.
    """
    dump = getattr(getattr(torch._C, "_distributed_c10d", None), "_dump_fr_trace_json", None)
    if dump is None:
        return {}
    try:
        data: dict[str, Any] = json.loads(dump(True, False))
        found: dict[str, tuple[int, bool, str]] = {}
        for entry in data.get("entries") or ():
            group, number = str(entry["process_group"][0]), int(entry["collective_seq_id"])
            if not entry.get("is_p2p") and number >= found.get(group, (0,))[0]:
                ended = bool(entry.get("retired")) or entry.get("state") == "completed"
                found[group] = (number, ended, str(entry.get("profiling_name", "")))
    except Exception:  # another format: it is of torch, and may change
        return {}
    return found
