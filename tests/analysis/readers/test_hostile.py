"""Anything may be in a file: a clear error or a log, never another exception, never gigabytes."""

# ruff: noqa: E501 -- lines as trainers print them
from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import random
import resource

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stabwatch.analysis.readers import read_log
from stabwatch.analysis.readers.log import Log
from stabwatch.errors import StabwatchError

GOOD = {
    "text": "".join(f"step: {i} loss: {3 - i / 10} lr=0.1 | grad norm: 1.0\n" for i in range(30)).encode(),
    "csv": b"step,loss,lr\n" + b"".join(b"%d,2.5,0.1\n" % i for i in range(30)),
    "jsonl": b"".join(b'{"step": %d, "loss": 2.5}\n' % i for i in range(30)),
    "json": json.dumps({"log_history": [{"step": i, "loss": 2.5} for i in range(30)]}).encode(),
    "gzip": gzip.compress(b"step: 1 loss: 2.5\n" * 30),
    "tfevents": b'\x18\x00\x00\x00\x00\x00\x00\x00\xa3\x7fK"\t\x00\x00\xc0\xf3\x12x\xd9A\x1a\rbrain.Event:2\xec\xcc\x00\x00'
    * 2,
    "16-bit": "".join(f"step: {i} loss: {3 - i / 10}\r\n" for i in range(30)).encode("utf-16"),
    "hole": bytes(100) + b"step: 1 loss: 2.5\n" * 30,
    "wandb": b":W&B\xbe\x04\x00\x00\x00" + bytes(200),
}


def _read(path):
    try:
        return read_log(path)
    except StabwatchError as error:
        assert str(error)
        return None


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_bytes_make_it_stumble(data, tmp_path):
    path = tmp_path / "log"
    base = bytearray(GOOD[data.draw(st.sampled_from(sorted(GOOD)))])
    for at in data.draw(st.lists(st.integers(0, len(base) - 1), max_size=20)):
        base[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(base)))
    path.write_bytes(data.draw(st.binary(max_size=30)) * data.draw(st.integers(0, 1)) + bytes(base[:cut]))
    _read(path)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet=st.characters(codec="utf-8"), max_size=400))
def test_no_text_makes_it_stumble(text, tmp_path):
    path = tmp_path / "log"
    path.write_text(f"step: 1 loss: 2.5\n{text}\nstep: 2 loss: {text}\n", encoding="utf-8")
    _read(path)


def test_columns_without_end(tmp_path):
    path = tmp_path / "wide.csv"
    names = ["step", "loss", *(f"c{i}" for i in range(1_000_000))]
    path.write_text(",".join(names) + "\n" + "\n".join(",".join(["1"] * len(names)) for _ in range(2)) + "\n")
    _read(path)


def test_a_line_without_end(tmp_path):
    path = tmp_path / "long.log"
    path.write_bytes(b"step: 1 loss: 2.5\n" + b"loss: 1.0 " * 1_000_000 + b"\nstep: 2 loss: 2.25\n")
    assert _read(path).runs[0].of("loss").steps[-1] >= 1


def test_json_without_a_bottom(tmp_path):
    path = tmp_path / "deep.json"
    path.write_text('{"a":' * 200_000 + "1" + "}" * 200_000)
    _read(path)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstandard.compress])
@pytest.mark.parametrize("text", ["step: 1 loss: 2.5\n", '{"loss": 2.5}, '])
def test_packed_and_damaged(pack, text, tmp_path):
    rng = random.Random(0)
    body = "".join(text.replace("2.5", str(rng.random())) for _ in range(20_000))
    packed = bytearray(pack((f"[{body}]" if "{" in text else body).encode()))
    for at in (3, len(packed) // 2, len(packed) - 9):
        path = tmp_path / str(at)
        path.write_bytes(bytes(packed[:at]))
        _read(path)
        path.write_bytes(bytes(packed[:at]) + b"damaged" + bytes(packed[at + 7 :]))
        _read(path)


def test_a_bomb(tmp_path):
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb") as out:
        for _ in range(200):
            out.write(bytes(1 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert _read(path) is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, "kilobytes"


def test_links_that_go_in_circles_and_things_that_are_no_files(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert _read(loop) is None
    (tmp_path / "up").symlink_to(tmp_path)
    assert _read(tmp_path) is None
    os.mkfifo(tmp_path / "pipe")
    assert _read(tmp_path / "pipe") is None


def test_names_that_would_paint_the_terminal_are_kept_as_they_are(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"step": i, "loss": 2.5, "<b>\x1b[31mloss": 1.0}) + "\n" for i in range(5)))
    assert isinstance(_read(path), Log)


@pytest.mark.parametrize("seed", range(3))
def test_binary_is_no_log(seed, tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(random.Random(seed).randbytes(100_000))
    assert _read(path) is None
