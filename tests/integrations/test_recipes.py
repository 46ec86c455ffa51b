"""Every recipe in hooks/ runs as it is, and records the steps that it makes; docs/trainers.md shows its lines."""

from __future__ import annotations

import importlib
import json
import os
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from stabwatch.runlog import Run, read_run
from tests.integrations.recipes import HOOKS, MARK, RECIPES, Recipe

PAGE = Path(__file__).parents[2] / "docs/trainers.md"
SETTINGS = {"STABWATCH_AGENT": "0", "STABWATCH_EVERY_STEP": "1", "STABWATCH_VERBOSE": "0"}


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own for each recipe, and no agent."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)


def need(recipe: Recipe) -> None:
    for package in recipe.needs:
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def the_run(recipe: Recipe) -> Run:
    (meta,) = Path("stabwatch-runs").glob("*/meta.json")
    run = read_run(meta.parent)
    assert list(run.steps) == list(recipe.steps)
    steps, losses = run.series("loss")
    assert list(steps) == list(recipe.steps)
    if recipe.file == "trl_grpo.py":
        assert abs(losses).max() < 1e-3, "advantages add up to zero, and so does the objective before an update"
    else:
        assert (losses > 0).all()
    assert [e.data["reason"] for e in run.events if e.kind == "end"] == ["finished"]
    assert not [e.data for e in run.events if e.kind == "error"]
    logged = {key.layer for key in run.keys if key.signal == "logged_value"}
    assert set(recipe.logged) <= logged
    assert "loss" not in logged
    return run


@pytest.mark.usefixtures("collected")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("recipe", [r for r in RECIPES if not r.ranks and r.path.suffix == ".py"], ids=lambda r: r.file)
def test_a_recipe_runs(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    need(recipe)
    monkeypatch.syspath_prepend(str(HOOKS))
    names = runpy.run_path(str(recipe.path), run_name="__main__")
    watch = names.get("watch") or getattr(names.get("recipe"), "watch", None)
    if watch is not None:
        watch.detach()  # the end of the process, which the file leaves it to
    the_run(recipe)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [r for r in RECIPES if r.ranks], ids=lambda r: r.file)
def test_a_recipe_runs_under_torchrun(recipe: Recipe) -> None:
    need(recipe)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={recipe.ranks}"]
    done = subprocess.run([*launcher, str(recipe.path)], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    the_run(recipe)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = next(r for r in RECIPES if r.path.suffix == ".ipynb")
    need(recipe)
    nbformat, nbclient = importlib.import_module("nbformat"), importlib.import_module("nbclient")
    notebook = nbformat.read(recipe.path, as_version=4)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HOOKS), os.environ.get("PYTHONPATH", "")]))
    client = nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    the_run(recipe)
    assert "detached" in json.dumps(notebook.cells[-1].outputs)


def test_every_file_is_a_recipe() -> None:
    assert {r.file for r in RECIPES} | {"tiny.py"} == {p.name for p in HOOKS.iterdir() if p.is_file()}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.file)
def test_a_recipe_has_two_lines_at_most(recipe: Recipe) -> None:
    assert 1 <= len(recipe.lines()) <= 2


def table() -> str:
    """The table of docs/trainers.md, from the recipes."""
    rows = ["| Trainer | Lines | Step numbers | Runnable file |", "|---|---|---|---|"]
    for recipe in RECIPES:
        lines = "<br>".join(f"`{line}`" for line in recipe.lines())
        rows.append(f"| {recipe.title} | {lines} | {recipe.note} | [{recipe.file}](../hooks/{recipe.file}) |")
    return "\n".join(rows)


def test_the_page_shows_the_lines_of_the_recipes() -> None:
    assert table() in PAGE.read_text(encoding="utf-8"), (
        "docs/trainers.md is not the table of the recipes: run `python -m tests.integrations.test_recipes`"
    )


def test_no_other_line_of_a_recipe_speaks_of_stabwatch() -> None:
    for recipe in RECIPES:
        if recipe.path.suffix == ".py":
            code = recipe.path.read_text(encoding="utf-8").split('"""', 2)[2]
            others = [line for line in code.splitlines() if "stabwatch" in line and not line.endswith(MARK)]
            assert others == [], recipe.file


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition("| Trainer | Lines |")
    after = rest[rest.index("\n\n") :]
    PAGE.write_text(before + table() + after, encoding="utf-8")
