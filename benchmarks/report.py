"""What benchmarks write: Markdown tables, and the line that says where they ran."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable

import torch


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; floats with three digits."""
    head = tuple(head)
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(map(_cell, row))} |" for row in rows)])


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def machine(device: torch.device = torch.device("cpu")) -> str:  # noqa: B008
    """'Linux, 2 cores of x86_64, torch 2.13.0 on the CPU'; or '... on an NVIDIA H200'."""
    where = "the CPU" if device.type == "cpu" else f"an {torch.cuda.get_device_name(device)}"
    return f"{platform.system()}, {os.cpu_count()} cores of {platform.machine()}, torch {torch.__version__} on {where}"
