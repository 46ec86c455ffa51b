"""A fast filter for lines that may be relevant. Most lines of most logs are not, and each line is tested."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import numpy as np

_COUNTED = re.compile(rb"\n ?\d{1,6}/\d")
_BEGINS = re.compile(
    rb"s:|\W{0,12}(?i:train|val|test|eval|dev)[^\d]{0,90}$"
    rb"|\[\d[^\]]{0,9}\]|\[\d+, \d|-?\d+(?:\.\d+)?[ \t,;]+[-+.\d]+[ \t,;]+[-+.\d]|\s{0,13}\d.{0,13}  |\s*\d.{0,9}/"
    rb"|\s{0,8}(?i:val|test|eval|dev)(?i:uation|idation)?[_/ -]\w[\w/ @.-]{0,40}[:=]"
    rb"|\s{0,8}L[a-z]\w{0,10}: [-+.\dni][\w.+-]{0,20}, ?L[a-z]"
    rb"|  .*=|\s+all\s+\d|\xe2\x94|\s{0,8}(['\"])[^'\"]{1,60}\1\s?:"
)
"""Counts before a colon, in brackets, in a column, of a total; indented keys; terms of a loss; scores of all classes; a
row in a box."""
_ROW = re.compile(rb"\n-?\d+(?:\.\d+)?[ \t,;]+[-+.\d]+[ \t,;]+[-+.\d]")
"""A row of numbers without names."""
_BARE_LENGTH = 48
"""Shorter lines may have numbers without names."""
_SIGNS = (
    b"oss", b"tep", b"|", b"iter", b"Iter", b"poch", b"orm", b"lr", b"ost ", b"Up.", b"OSS", b"earning", b"verflow",
    b"[batch", b"bjective", b"trl:", b"tel:", b"ccuracy", b"tensor(", b"core:", b"hmean", b"dice", b"Dice",
    b"cost", b"Cost", b"ppl", b"PPL", b"erplex", b"xent", b"nll", b"NLL", b"mse", b"MSE", b"elbo", b"ELBO",
    b"STEP", b"EPOCH", b"ITER", b"VERFLOW", b"rror", b"xception", b"raceback", b"iverge", b"illed", b"signal",
    b"heckpoint", b"esum", b"---", b"nan", b"NaN", b"Nan", b"rad", b"eward", b"Rew", b"eturn", b"ntropy", b"KL", b"kl",
    "损失".encode(), "次数".encode(), "━".encode(), b"learn:", b"NAN", b"nvalid loss",
    b"perte", b"Perte", b"erlust", b"rdida", b"perda", "потер".encode(), "損失".encode(), "誤差".encode(),
    "손실".encode(), b"INFO\t[", b"PSNR", b"psnr",
)  # fmt: skip


def worth_parsing(raw: bytes, signs: Iterable[bytes] = _SIGNS) -> bool:
    """Whether a line may be relevant. Most lines of most logs are not."""
    for sign in signs:
        if sign in raw:
            return True
    return _BEGINS.match(raw) is not None or (len(raw) < _BARE_LENGTH and raw.strip()[:1].isdigit())


def worth_parsing_in(block: bytes) -> Callable[[bytes], bool] | None:
    """The same for the lines of a block, without tests for marks that are not in it. None: no line is relevant."""
    there = tuple(sign for sign in _SIGNS if sign in block)
    begins = (
        block[:2] in (b"s:", b"  ")
        or block[:1] == b"["
        or b"\n[" in block
        or b"\n\xe2\x94" in block
        or b"\ns:" in block
        or b"\n  " in block
        or b"\n '" in block
        or b'\n "' in block
        or (b"/" in block and _COUNTED.search(b"\n" + block) is not None)
        or _ROW.search(b"\n" + block) is not None
    )
    if there or begins or _shortest(block) < _BARE_LENGTH:
        return lambda raw: worth_parsing(raw, there)
    return None


def _shortest(block: bytes) -> int:
    """Length of the shortest line."""
    ends = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n"))
    return int(np.diff(ends, prepend=-1, append=len(block)).min()) - 1
