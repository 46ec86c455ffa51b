"""The wheel, installed into an environment that has only what the package requires, and no extra."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.agent.synthetic import Log
from tests.sampling import sample

ROOT = Path(__file__).parents[1]
TRAINING = """
import torch, stabwatch
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with stabwatch.attach(model, optimizer, run_dir="run", agent=False, every_step=True) as watch:
    for _ in range(10):
        torch.nn.functional.cross_entropy(model(torch.randn(8, 4)), torch.zeros(8).long()).backward()
        optimizer.step()
        optimizer.zero_grad()
print(stabwatch.__file__)
"""


def _run(*command: object, cwd: Path) -> str:
    """Standard output of a command that succeeds, without the settings of this process."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _required(name: str, seen: set[str]) -> Iterator[Distribution]:
    """What is installed here for a requirement, and for its own requirements in turn."""
    found = distribution(name)
    for line in found.requires or ():
        requirement = Requirement(line)
        if requirement.name not in seen and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            seen.add(requirement.name)
            yield distribution(requirement.name)
            yield from _required(requirement.name, seen)


def _link(found: Distribution, site: Path) -> None:
    """Show an installed distribution to another environment; torch is too large to install again."""
    for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
        link = site / top
        if not link.exists():
            link.symlink_to(found.locate_file(top))


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Folder of the programs of a new environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    _run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT, cwd=folder)
    [wheel] = folder.glob("stabwatch-*.whl")
    venv.create(folder / "venv", with_pip=False)
    programs = folder / "venv" / "bin"
    [site] = (folder / "venv" / "lib").glob("python*/site-packages")
    for found in _required("stabwatch", set()):
        _link(found, site)
    _run(*pip, "--python", programs / "python", "install", "--no-deps", "--no-index", wheel, cwd=folder)
    _run(*pip, "--python", programs / "python", "check", cwd=folder)
    return programs


def test_the_environment_has_no_extra(installed, tmp_path):
    code = (
        "import importlib.util as u; print([n for n in ('tensorboard', 'grafana_client', 'pytest') if u.find_spec(n)])"
    )
    assert _run(installed / "python", "-c", code, cwd=tmp_path).strip() == "[]"


def test_the_command_line_works(installed, tmp_path):
    assert "analyze" in _run(installed / "stabwatch", "--help", cwd=tmp_path)
    rows = "".join(f"{step},{3 - step / 100}\n" for step in range(100))
    (tmp_path / "log.csv").write_text("step,loss\n" + rows)
    said = _run(installed / "stabwatch", "analyze", "log.csv", cwd=tmp_path)
    assert "100" in said and "loss" in said


def test_a_run_is_watched_and_analysed(installed, tmp_path):
    where = Path(_run(installed / "python", "-c", TRAINING, cwd=tmp_path).splitlines()[-1])
    assert where.is_relative_to(installed.parent), "it is the wheel that ran, and not the sources"
    assert "10 recorded" in _run(installed / "stabwatch", "analyze", "run", cwd=tmp_path)


def test_the_runbooks_are_in_the_wheel(installed, tmp_path):
    assert "## What it means" in _run(installed / "stabwatch", "runbook", "LossSpike", cwd=tmp_path)


@pytest.mark.parametrize(
    "command",
    sample(
        [
            "tensorboard: export run --tensorboard",
            "otlp: export run --otlp",
            "mlflow: export run --mlflow",
            "wandb: export run --wandb",
            "trackio: export run --trackio",
            "grafana: grafana export -o out",
            "grafana: grafana push",
            "grafana: grafana diff",
            "zstd: analyze log.zst",
        ],
        "zstd: analyze log.zst",
        every=5,
    ),
)
def test_what_needs_an_extra_says_what_to_install(installed, tmp_path, command):
    extra, _, words = command.partition(": ")
    (tmp_path / "log.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(40))
    Log(tmp_path / "run", layers=["one"]).folder.close()
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [installed / "stabwatch", *words.split()]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"pip install 'stabwatch[{extra}]'" in done.stderr and done.stderr.count("\n") == 1
