"""What imports what: nothing but the training side may load torch, and the command line starts in no time."""

from __future__ import annotations

import importlib.util
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import stabwatch
from tests.sampling import sample

WITHOUT_TORCH = ("signals", "runlog", "exporters", "alerts", "analysis", "agent", "serve", "cli")

PROBE = """
import importlib, json, sys
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""


def loaded_by(*modules: str) -> set[str]:
    """All modules that a fresh interpreter has after importing the given ones."""
    command = [sys.executable, "-c", PROBE, json.dumps(modules)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def modules_in(package: str) -> list[str]:
    """A package and every module in it, except the entry points that run on import."""
    path = Path(stabwatch.__file__).parent / package
    walked = [
        m.name for m in pkgutil.walk_packages([str(path)], prefix=f"stabwatch.{package}.", onerror=lambda _: None)
    ]
    if importlib.util.find_spec("grafana_foundation_sdk") is None:  # an extra, which needs Python 3.11
        walked = [name for name in walked if ".grafana" not in name or ".commands." in name]
    return [f"stabwatch.{package}", *(name for name in walked if not name.endswith("__main__"))]


def test_the_packages_for_readers_load_no_torch() -> None:
    """All in one process; one by one below."""
    modules = [name for package in WITHOUT_TORCH for name in modules_in(package)]
    loaded = loaded_by(*modules)
    assert set(modules) <= loaded
    assert "torch" not in loaded


@pytest.mark.parametrize("package", sample(WITHOUT_TORCH, "runlog", "cli"))
def test_a_package_for_readers_loads_no_torch(package: str) -> None:
    modules = modules_in(package)
    assert len(modules) > 1, f"the walk found no module in {package}"
    loaded = loaded_by(*modules)
    assert set(modules) <= loaded
    assert "torch" not in loaded, f"stabwatch.{package} loads torch, directly or indirectly"


def test_the_probe_can_fail() -> None:
    """Meta-test: a module that loads torch is seen to, or the test above guards nothing."""
    assert "torch" in loaded_by("stabwatch.watch")


def test_every_package_is_on_one_side() -> None:
    """A new package must be put on the list above, or here among those that need torch."""
    packages = {m.name for m in pkgutil.iter_modules(stabwatch.__path__) if m.ispkg}
    assert packages - {"distributed", "guards", "hooks", "integrations", "kernels", "runtime"} == set(WITHOUT_TORCH)


def test_importing_stabwatch_is_cheap() -> None:
    loaded = loaded_by("stabwatch")
    assert {m for m in loaded if m.startswith("stabwatch")} == {"stabwatch"}
    assert not loaded & {"torch", "numpy", "pyarrow", "typer", "rich", "prometheus_client", "yaml"}


def test_the_command_line_starts_without_the_heavy_libraries() -> None:
    loaded = loaded_by("stabwatch.cli", "stabwatch.cli.app")
    assert not loaded & {"torch", "numpy", "pyarrow", "scipy", "prometheus_client"}


def test_the_public_names_load_on_first_use() -> None:
    code = "import sys, stabwatch; stabwatch.attach; print('torch' in sys.modules, stabwatch.attach.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "stabwatch.watch"]


def test_the_tests_of_other_versions_are_there() -> None:
    root = Path(__file__).parents[1]
    named = re.findall(r"tests/[\w/]+\.py", (root / "scripts/test-versions").read_text())
    assert len(named) > 10 and not [name for name in named if not (root / name).is_file()]
