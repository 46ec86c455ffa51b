"""Programs that run unchanged: the runner watches each optimizer, and leaves the bits as they are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.programs.__main__ import Outcome, page
from benchmarks.programs.table import PROGRAMS, Program
from stabwatch.runlog import read_run

POLICY = """
import gym, torch
import matplotlib.pyplot as plt
from torch import nn
from torch.distributions import Categorical

figure, axes = plt.subplots(1, 2)
axes[0].plot([1])
env = gym.make("CartPole-v1")
policy = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
optimizer = torch.optim.Adam(policy.parameters(), lr=0.01)
while True:
    seen, _ = env.reset()
    terms, over = [], False
    while not over:
        chosen = Categorical(logits=policy(torch.from_numpy(seen)))
        action = chosen.sample()
        seen, reward, done, cut, _ = env.step(action.item())
        terms.append(-chosen.log_prob(action))
        over = done or cut
    optimizer.zero_grad()
    (torch.stack(terms).sum() * len(terms)).backward()
    optimizer.step()
"""


def _last_line(folder: Path, runs: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.programs.watched", runs, "12", str(folder / "program.py")],
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.splitlines()[-1].split()


def test_a_program_is_watched_as_it_is_and_its_bits_are_the_same(tmp_path):
    (tmp_path / "program.py").write_text(POLICY)
    watched = _last_line(tmp_path, str(tmp_path / "runs"))
    assert watched[:3] == ["program", "12", "stopped"]
    assert watched == _last_line(tmp_path, "-")
    run = read_run(tmp_path / "runs" / "1")  # it is left within its last step
    assert len(run.steps) == 11 and (run.series("calls_without_gradient")[1] > 0).all()


def test_names_of_programs_are_their_own():
    assert len({program.name for program in PROGRAMS}) == len(PROGRAMS)


@pytest.mark.parametrize("true", [(), ("LossSpike",)])
def test_the_page_counts_what_is_not_known_to_be_true(true):
    program = Program("a+b", "", "c.py", true=true)
    text = page([Outcome(program, 1000, True, ("LossSpike",), "")])
    assert f"1 programs, 1,000 steps, {1 - len(true)} alarms" in text and "| a/b | 1 | 1000 | 1 of 1 | 1 |" in text
