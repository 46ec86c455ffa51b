"""Rows that begin with `3/100` under a header that begins with `Epoch`, as the YOLO trainers print and keep them.

Epoch   GPU_mem  box_loss  cls_loss  Instances  Size
3/100     2.31G     1.234     2.345         20   640: 100%|##########| 10/10 [00:02<00:00]
"""

from __future__ import annotations

import re

from stabwatch.analysis.readers.names import number

_ROW = re.compile(r"\s*(\d{1,6})/(\d{1,6})\s+(?=[-\dniNI])([^:|%]*)(?::\s*(\d+)%)?")
_HEADER = re.compile(r"\s*Epoch\s+(?=.*(?:loss|_mem))[A-Za-z_]\S*(?:\s+[A-Za-z_]\S*)+\s*$")
_MEMORY = re.compile(r"[\d.]+[KMGT]B?$")
_UNTITLED = (
    "gpu_mem", "box_loss", "obj_loss", "cls_loss", "total_loss", "labels", "img_size", "P", "R", "mAP@.5", "mAP@.5:.95",
    "val/box_loss", "val/obj_loss", "val/cls_loss",
)  # fmt: skip
"""Columns of `results.txt` (YOLOv5 before 6, YOLOv7), which has no header."""
_SHORT = {"box", "obj", "cls", "total", "dfl", "iou", "seg"}


class EpochRows:
    """The last header, and the rows under it."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()

    def header(self, text: str) -> bool:
        """Whether the line is a header, which is then kept."""
        if not _HEADER.match(text) or any(mark in text for mark in ":=|"):
            return False
        self._names = tuple(f"{name}_loss" if name in _SHORT else name for name in text.split()[1:])
        return True

    def row(self, text: str) -> tuple[int, dict[str, float]] | None:
        """Epoch and values of a row, without values while its bar runs; None if the line is not a row."""
        found = _ROW.match(text)
        cells = found[3].split() if found else []
        names = self._names or (_UNTITLED if len(cells) >= 7 and _MEMORY.match(cells[0]) else ())
        if found is None or not names or (len(cells) < len(names) - 1 and names is not _UNTITLED):
            return None
        values = {n: number(c) for n, c in zip(names, cells, strict=False) if not _MEMORY.match(c)}
        if found[4] is not None and int(found[4]) < 100 and not any(v is not None and v != v for v in values.values()):
            return int(found[1]), {}  # means of the epoch so far; one that is NaN remains NaN
        return int(found[1]), {n: v for n, v in values.items() if v is not None}
