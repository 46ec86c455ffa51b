"""Damaged logs: no traceback, no hang, and no finding where only the bytes are odd."""

from __future__ import annotations

import json
import math
import os
import random
import re
import time
from pathlib import Path

import pytest

from benchmarks.logs_findings import PASTED
from stabwatch.analysis import analyze_source, open_source
from stabwatch.analysis.readers import read_log
from stabwatch.errors import StabwatchError
from tests.analysis.readers.test_hostile import GOOD

_LOGS = [*GOOD.values(), *(path.read_bytes()[:6000] for path in sorted(PASTED.glob("*.txt")))]
SEEDS = [*_LOGS, *(re.sub(rb"(.{80})", rb"\1\n", log) for log in _LOGS[::4])]
"""Logs of many shapes, some of them with lines that a terminal broke."""
ODD = (
    b"\xef\xbb\xbf", b"\xff\xfe", b"\0" * 40, b"\r",
    b"\r\r\n", b"\n\n", b"nan", b"inf", b"-nan", b"1e999", b"0.0", b"-1",
    b"{", b"}", b'"', b"|", b",,,,", b"[", b"9" * 400, b"\x1b[31m", "，：损失".encode(),
    b"step: ", b"loss: ", b"epoch ", b"%|",
)  # fmt: skip
SLOWEST = 10.0
"""Seconds for one small file on a busy machine."""


def _mutated(rng: random.Random) -> bytes:
    data = bytearray(rng.choice(SEEDS))
    for _ in range(rng.randint(1, 12)):
        at, kind = rng.randrange(len(data) + 1), rng.randrange(7)
        if kind == 0:
            data[at:at] = rng.choice(ODD)
        elif kind == 1 and at < len(data):
            data[at] = rng.randrange(256)
        elif kind == 2:
            del data[at : at + rng.randint(1, 200)]
        elif kind == 3:
            data[at:at] = data[at : at + rng.randint(1, 400)]
        elif kind == 4:
            data = data[: max(at, 1)]
        elif kind == 5:
            lines = data.split(b"\n")
            rng.shuffle(lines)
            data = bytearray(b"\n".join(lines))
        else:
            other = rng.choice(SEEDS)
            data += other[rng.randrange(len(other)) :][:2000]
        data = data or bytearray(b"\n")
    return bytes(data)


def _survives(path: Path, rng: random.Random, many: int) -> None:
    for place in range(many):
        path.write_bytes(_mutated(rng))
        begun = time.monotonic()
        try:
            for source in open_source(path):
                json.dumps(analyze_source(source).to_dict(), allow_nan=False)
        except StabwatchError as error:
            assert str(error)
        except Exception as error:
            kept = Path(os.environ.get("STABWATCH_FUZZ_KEPT", path.parent)) / f"kept-{place}"
            kept.write_bytes(path.read_bytes())
            raise AssertionError(f"{kept}: {error!r}") from error
        assert time.monotonic() - begun < SLOWEST, "a hang"


def test_damaged_logs_are_read_or_refused(tmp_path):
    _survives(tmp_path / "log", random.Random(0), 150)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_many_damaged_logs_are_read_or_refused(seed, tmp_path):
    _survives(tmp_path / "log", random.Random(seed), 550)


HEALTHY = "".join(f"step {i} | loss {8 - i / 40 + 0.05 * math.sin(i):.4f} | grad_norm 1.0{i % 9}\n" for i in range(120))
LINES = HEALTHY.encode().splitlines(keepends=True)
OBJECTS = [json.dumps({"step": i, "loss": 8 - i / 40}).encode() + b"\n" for i in range(120)]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + HEALTHY.encode(),
        b"\xef\xbb\xbf" + b"".join(OBJECTS),
        b"\xef\xbb\xbfstep,loss\n" + b"".join(b"%d,%f\n" % (i, 8 - i / 40) for i in range(120)),
        HEALTHY.encode("utf-16"),
        b"".join([*LINES[:50], bytes(5000), *LINES[50:]]),
        b"".join([*OBJECTS[:50], bytes(5000), *OBJECTS[50:]]),
        b"".join([*OBJECTS[:50], OBJECTS[50][:9], b"\n", *OBJECTS[51:]]),
        b"".join([*OBJECTS, OBJECTS[50][:12]]),
        b"".join(LINES).replace(b"\n", b"\r\n"),
        b"".join([*LINES[:60], LINES[60][:14]]),
    ],
    ids=["bom", "bom-json", "bom-csv", "utf-16", "hole", "hole-json", "torn-json", "cut-json", "windows", "cut"],
)
def test_odd_bytes_are_no_finding(content, tmp_path):
    path = tmp_path / "log"
    path.write_bytes(content)
    (source,) = open_source(path)
    found = analyze_source(source)
    assert found.calm and found.records >= 58, [i.text for i in found.incidents]


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/urandom", "pipe"])
def test_devices_and_pipes_are_refused_at_once(name, tmp_path):
    path = Path(name)
    if name == "pipe":
        path = tmp_path / name
        os.mkfifo(path)
    begun = time.monotonic()
    for read in (read_log, open_source):
        with pytest.raises(StabwatchError, match="is not a regular file"):
            read(path)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "values", [[0.0], [0.0, 0.0], [0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1e-9, 0.1], [1e-320, 1.0]]
)
def test_zeros_in_short_curves(values, tmp_path):
    path = tmp_path / "log"
    path.write_text("".join(f"step {i} loss {value} lr 0.0 grad_norm 0.0\n" for i, value in enumerate(values)))
    (source,) = open_source(path)
    assert not [i for i in analyze_source(source).incidents if i.severity == "critical"]
