"""Which lines of a text may say anything about a training. Most lines of most logs do not; this is asked of each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import numpy as np

_COUNTED = re.compile(rb"^ ?\d{1,6}/\d", re.MULTILINE)
_BRACKETED = re.compile(rb"^\[\d", re.MULTILINE)
_DIGITS = b"0123456789"
_BARE_LENGTH = 48
"""Shorter lines may hold numbers without names."""
_SIGNS = (
    b"oss", b"tep", b"|", b"iter", b"Iter", b"poch", b"orm", b"lr", b"ost ", b"Up.", b"OSS", b"earning", b"verflow",
    b"[batch", b"trl:", b"tel:", b"VERFLOW", b"rror", b"xception", b"raceback", b"iverge", b"illed", b"signal",
    b"heckpoint", b"esum", b"---", b"\xe2\x94", b"nan", b"NaN", b"NAN", b"inite", b"cale", b"tr ", b"ppl", b"LR",
    b"it ",
)  # fmt: skip


def worth_parsing(raw: bytes, signs: Iterable[bytes] = _SIGNS) -> bool:
    """May a line say anything? Most lines of most logs do not; this is asked of each."""
    for sign in signs:
        if sign in raw:
            return True
    return (
        raw[:2] == b"s:"
        or (raw[:1] == b"[" and b"]" in raw[2:12] and raw[1:2] in _DIGITS)
        or (b"  " in raw[:16] and raw.strip()[:1].isdigit())
        or (b"/" in raw[:12] and raw.lstrip()[:1].isdigit())
        or (raw[:2] == b"  " and b"=" in raw)
        or (len(raw) < _BARE_LENGTH and raw.strip()[:1].isdigit())
    )


def worth_parsing_in(block: bytes) -> Callable[[bytes], bool] | None:
    """The same for the lines of a block: signs that are nowhere in it need not be looked for. None: no line may."""
    there = tuple(sign for sign in _SIGNS if sign in block)
    begins = (
        block[:2] in (b"s:", b"  ")
        or _BRACKETED.search(block) is not None
        or b"\ns:" in block
        or b"\n  " in block
        or (b"/" in block and _COUNTED.search(block) is not None)
    )
    if there or begins or _shortest(block) < _BARE_LENGTH:
        return lambda raw: worth_parsing(raw, there)
    return None


def _shortest(block: bytes) -> int:
    """Length of the shortest line."""
    ends = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n"))
    return int(np.diff(ends, prepend=-1, append=len(block)).min()) - 1
