"""Checks of `stabwatch doctor` on this machine. Torch is located but not imported."""

from __future__ import annotations

import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from stabwatch import __version__
from stabwatch.cli.render.text import clean, size

State = Literal["ok", "note", "bad"]

NEEDED = ("numpy", "pyarrow", "prometheus-client", "typer", "rich", "pyyaml", "psutil")
AGENT_PORT = 9478
LITTLE_SPACE = 1 << 30
"""Free bytes below which the check fails; a record of a large model takes about ten kilobytes."""


@dataclass(frozen=True)
class Check:
    """One finding. state: 'ok', 'note' (works, with a limitation), 'bad' (does not work)."""

    name: str
    state: State
    found: str
    remedy: str = ""


def check_environment(runs: Path, port: int = AGENT_PORT) -> list[Check]:
    """Checks outside a run: versions, torch, accelerator, disk, programs, port."""
    return [
        Check("stabwatch", "ok", f"{__version__} on Python {platform.python_version()}, {platform.platform()}"),
        *map(_package, NEEDED),
        *_torch(),
        _accelerator(),
        _triton(),
        _disk(runs),
        *map(_program, ("prometheus", "promtool")),
        _port(port),
    ]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _package(name: str) -> Check:
    version = _version(name)
    if version is None:
        return Check(name, "bad", "not installed", f"pip install {name}")
    return Check(name, "ok", version)


def _torch() -> Iterator[Check]:
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        yield Check(
            "torch",
            "bad",
            f"not found by {sys.executable}",
            "install torch, or run doctor in the environment of the training",
        )
        return
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    built = {name: found for name in ("cuda", "hip") if (found := _built_for(text, name))}
    kind = ", ".join(f"built for {name} {version}" for name, version in built.items()) or "built for the CPU only"
    yield Check("torch", "ok", f"{_version('torch') or 'unknown version'}, {kind}")


def _built_for(version_py: str, name: str) -> str | None:
    match = re.search(rf"^{name}\b[^=\n]*=\s*['\"]([^'\"]+)['\"]", version_py, re.MULTILINE)
    return match.group(1) if match else None


def _accelerator() -> Check:
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    if shutil.which(query[0]):
        try:
            answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
        except (OSError, subprocess.SubprocessError) as error:
            return Check("GPU", "bad", f"nvidia-smi fails: {clean(error)}", "repair the driver before training")
        return Check("GPU", "ok", "; ".join(map(clean, answer.strip().splitlines())) or "none listed by nvidia-smi")
    if Path("/dev/kfd").exists():
        return Check("GPU", "ok", "AMD (found /dev/kfd)")
    return Check("GPU", "note", "none found: statistics are computed on the CPU with plain torch kernels")


def _triton() -> Check:
    version = _version("triton")
    if version is None:
        return Check("triton", "note", "not installed: plain torch kernels are used, not fused ones")
    return Check("triton", "ok", version)


def _disk(runs: Path) -> Check:
    place = runs.absolute()
    while not place.is_dir():
        place = place.parent
    free = shutil.disk_usage(place).free
    found = f"{size(free)} free at {clean(place)}"
    if free < LITTLE_SPACE:
        return Check("disk", "bad", found, "free some space, or pass a `run_dir` on another disk to `stabwatch.attach`")
    return Check("disk", "ok", found)


def _program(name: str) -> Check:
    path = shutil.which(name)
    if path is None:
        return Check(name, "note", "not found: only needed to store metrics and to test rules on this machine")
    return Check(name, "ok", path)


def _port(port: int) -> Check:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return Check(
                f"port {port}",
                "note",
                f"not free on 127.0.0.1 ({error.strerror}): another agent may be using it",
                f"check with curl http://127.0.0.1:{port}/healthz; an agent uses the next free port, or that of --port",
            )
    return Check(f"port {port}", "ok", "free on 127.0.0.1")
