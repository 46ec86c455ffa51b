"""Which package may import which: one direction, no cycles, and nothing but users' names at the root."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import stabwatch

PACKAGE = Path(stabwatch.__file__).parent

MAY_IMPORT: dict[str, frozenset[str]] = {
    name: frozenset(others.split())
    for name, others in {
        "errors": "",
        "signals": "",
        "kernels": "signals",
        "plugins": "hooks kernels signals",
        "runlog": "errors signals",
        "alerts": "errors runlog signals",
        "config": "alerts errors exporters",
        "distributed": "runlog signals",
        "exporters": "alerts errors runlog signals",
        "analysis": "alerts errors exporters runlog signals",
        "agent": "alerts errors exporters runlog signals",
        "serve": "agent alerts analysis errors exporters runlog signals",
        "hooks": "distributed kernels runlog signals",
        "guards": "alerts config distributed errors hooks kernels runlog signals",
        "runtime": "alerts config distributed errors guards hooks kernels runlog signals",
        "watch": "alerts config errors integrations plugins runtime",
        "integrations": "errors",  # and what users get from `import stabwatch`
        "demo": "watch",
        "cli": "agent alerts analysis config demo errors exporters integrations runlog serve signals watch",
        "__main__": "cli",
    }.items()
}
"""Package or root module -> what it may import. `stabwatch/__init__.py` itself imports lazily what it offers."""

PUBLIC_AT_THE_ROOT = {"__init__", "__main__", "config", "demo", "errors", "plugins", "watch"}


def _modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE).with_suffix("")
        yield ".".join(relative.parts), ast.parse(path.read_text(encoding="utf-8"))


def violations(modules: Iterator[tuple[str, ast.Module]]) -> list[str]:
    """Imports that go against `MAY_IMPORT`, also those inside functions and under TYPE_CHECKING."""
    found = []
    for name, tree in modules:
        mine = name.split(".")[0]
        if mine == "__init__":
            continue
        for target in _imported(tree):
            if target not in (mine, "") and target not in MAY_IMPORT.get(mine, frozenset()):
                found.append(f"{name} imports stabwatch.{target}")
    return found


def _imported(tree: ast.Module) -> Iterator[str]:
    """First part below `stabwatch` of each import; '' for `stabwatch.__version__` and the like."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "stabwatch":
            names = [f"stabwatch.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in names:
            if name.split(".")[0] == "stabwatch":
                part = [*name.split("."), ""][1]
                yield "" if part.startswith("__") else {"attach": "watch", "Watch": "watch"}.get(part, part)


def test_imports_go_in_one_direction() -> None:
    assert violations(_modules()) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("runlog.reader", "from stabwatch.analysis.sources import open_sources"),
        ("signals.loss", "import stabwatch.kernels.moments"),
        ("hooks.forward", "def f():\n    from stabwatch.guards import SkipStep"),
        ("exporters.prometheus", "from stabwatch import attach"),
    ],
)
def test_a_planted_violation_is_caught(module: str, line: str) -> None:
    assert len(violations(iter([(module, ast.parse(line))]))) == 1


def test_the_directions_have_no_cycle() -> None:
    order = list(TopologicalSorter(MAY_IMPORT).static_order())
    assert set(order) == set(MAY_IMPORT)


def test_every_package_is_on_the_list() -> None:
    found = {name.split(".")[0] for name, _ in _modules()} - {"__init__"}
    assert found <= set(MAY_IMPORT), f"add to MAY_IMPORT: {sorted(found - set(MAY_IMPORT))}"


def test_the_root_holds_only_what_users_import() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == PUBLIC_AT_THE_ROOT
