"""The recipes of CONTRIBUTING.md: the files that they create are real code, and do what the text says."""

from __future__ import annotations

import importlib
import io
import re
import sys
from pathlib import Path

import pytest
import torch

from stabwatch.hooks.base.probe import PROBES
from stabwatch.runlog import RunLog

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def created(path: str) -> str:
    """The text of a file that a recipe creates."""
    found = re.search(rf"^\+\+\+ b/{re.escape(path)}\n@@\n((?:\+.*\n)+)", TEXT, re.M)
    assert found, f"CONTRIBUTING.md creates no {path}"
    return "".join(line[1:] + "\n" for line in found[1].splitlines())


def changed_files(title: str) -> list[str]:
    part = TEXT.split(f"### {title}\n")[1].split("\n### ")[0].split("\n## ")[0]
    return re.findall(r"^\+\+\+ b/(.*)$", part, re.M)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes modules of a recipe into an importable package, and imports one."""
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "from_a_recipe"
    folder.mkdir()
    (folder / "__init__.py").write_text("")

    def load(name: str, text: str):
        (folder / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        return importlib.import_module(f"from_a_recipe.{name}")

    yield load
    for name in [name for name in sys.modules if name.startswith("from_a_recipe")]:
        del sys.modules[name]


def test_the_five_recipes_touch_two_files_each() -> None:
    counts = {title: len(changed_files(title)) for title in ("A rule", "A reader", "An exporter", "A trainer")}
    assert counts == dict.fromkeys(counts, 2)
    assert len(changed_files("A signal")) == 3, (
        "one for a signal of what is measured already, two for a new measurement"
    )


def test_the_probe_of_the_recipe_is_measured(package, attach) -> None:
    package("sparsity_kernel", created("stabwatch/kernels/sparsity/__init__.py"))
    text = created("stabwatch/hooks/probes/sparsity.py")
    known = set(PROBES)
    package("sparsity", text.replace("stabwatch.kernels.sparsity", "from_a_recipe.sparsity_kernel"))
    (probe,) = set(PROBES) - known
    try:
        model = torch.nn.Sequential(torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(4, 4)) for _ in "ab")))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        attach(model, optimizer)
        for _ in range(10):
            model(torch.randn(3, 4)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        log = attach.finish()
    finally:
        PROBES.remove(probe)
    values = [
        v for key in log.keys if key.signal == "residual_zero_ratio" for v in log.series(key.signal, key.layer)[1]
    ]
    assert values and max(values) == 0.0


def test_the_sink_of_the_recipe_writes_events(package, attach) -> None:
    from stabwatch.exporters.sink import write_run

    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = attach(model, optimizer)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    attach.finish()
    out = io.BytesIO()
    lines = write_run(
        RunLog(watch.run_dir), package("json_lines", created("stabwatch/exporters/json_lines.py")).JsonLinesSink(out)
    )
    assert lines == len(out.getvalue().splitlines()) >= 2 and b'"kind": "start"' in out.getvalue()


def test_the_reader_of_the_recipe_reads(package, tmp_path) -> None:
    import numpy as np

    from stabwatch.analysis.readers.file import LogFile

    path = tmp_path / "log.npz"
    np.savez(path, step=np.arange(5), loss=np.linspace(2, 1, 5))
    reader = package("archive", created("stabwatch/analysis/readers/archive.py")).READER
    (run,) = reader.read(LogFile(path)).runs
    assert run.of("loss").values.tolist() == np.linspace(2, 1, 5).tolist()


def test_the_trainer_of_the_recipe_watches(package, tmp_path) -> None:
    pytest.importorskip("skorch")
    from skorch import NeuralNetRegressor

    from stabwatch.runlog import read_run

    module = package("skorch_", created("stabwatch/integrations/skorch.py"))
    net = NeuralNetRegressor(torch.nn.Linear(3, 1), max_epochs=2, batch_size=8, train_split=None, verbose=0)
    watch = module.attach_to(net, {"run_dir": tmp_path / "run", "agent": False, "verbose": False, "every_step": True})
    x = torch.randn(32, 3).numpy()
    net.fit(x, x.sum(axis=1, keepdims=True))
    run = read_run(watch.watch.run_dir)
    assert len(run.steps) == 8 and run.events[-1].data["reason"] == "finished"
