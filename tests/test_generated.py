"""What is generated from the declarations is committed as the generator writes it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_generated_files_are_what_the_declarations_say():
    done = subprocess.run(
        [sys.executable, "scripts/generate", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
