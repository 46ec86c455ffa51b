"""Values by placement: however a model is spread over ranks, its numbers are those of one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stabwatch.runlog import read_run
from stabwatch.signals import CATALOGUE
from tests.distributed.placement_job import STEPS

ROOT = Path(__file__).parents[2]
MODES = {
    "ddp": 2,
    "zero": 2,
    "replicate": 2,
    "manual": 2,
    "compiled": 2,
    "fsdp2": 2,
    "tp": 2,
    "hsdp": 4,
    "2d": 4,
}
COMPARED = {"moments", "update", "group", "mean"}
OF_PARAMETERS = {"gradient", "weight", "update", "group", "loss"}
RTOL = 2e-5
"""float32 sums in another order."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("placements")
    jobs = [f"{mode}:{world}" for mode, world in {"single": 1, **MODES}.items()]
    command = [sys.executable, "-m", "tests.distributed.placement_job", str(out), *jobs]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=230)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


@pytest.mark.parametrize("mode", MODES)
def test_the_values_are_those_of_one_process(mode, runs):
    job, single = read_run(runs / mode), read_run(runs / "single")
    [said] = [event.data for event in job.events if event.kind == "ranks"]
    assert (said["covered"], said["since"], said["missing"]) == (MODES[mode], 0, [])
    compared = set()
    for key in single.keys:
        signal = CATALOGUE[key.signal]
        if signal.tap in OF_PARAMETERS and signal.reduction in COMPARED:
            (steps, values), (expected_steps, expected) = job.series(*_of(key)), single.series(*_of(key))
            assert list(steps) == list(expected_steps) == list(range(STEPS)), (mode, key)
            np.testing.assert_allclose(values, expected, rtol=RTOL, atol=1e-9, err_msg=f"{mode} {key}")
            compared.add(key.signal)
    assert {"gradient_norm", "weight_rms", "loss"} <= compared, compared


def _of(key):
    return key.signal, key.layer
