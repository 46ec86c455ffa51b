"""The fused kernels compile for GPUs, also where there is none: the interpreter runs what the compiler would refuse."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SHARED_BYTES = 99 * 1024
"""What a block may have on GPUs of capability 8.6 and 8.9; on 8.0 and 9.0 it is more."""


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_every_kernel_compiles(capability, tmp_path):
    script = Path(__file__).with_name("compile_all.py")
    root = script.parents[2]
    environ = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environ |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(root)}
    command = [sys.executable, str(script), str(capability)]
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"(\w+) (\w+) shared=(\d+) wide_loads=(\d+)", done.stdout)
    assert {kernel for _, kernel, _, _ in found} >= {
        "_aggregates",
        "_update",
        "_counts",
        "_moments",
        "_change",
        "_statistics",
    }
    assert all(int(shared) <= SHARED_BYTES for _, _, shared, _ in found)
    for module, kernel, _, wide in found:
        if module == "moments" or (module, kernel) == ("multi_tensor", "_moments"):
            assert int(wide) > 0, f"{module} reads less than 16 bytes at once"
