"""Signals of the user's own: declared in a few lines, measured, merged and exported like ours."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

import stabwatch
from stabwatch import plugins
from stabwatch.cli.app import app
from stabwatch.hooks.base.probe import PROBES
from stabwatch.runlog import read_run
from stabwatch.signals import CATALOGUE
from stabwatch.signals.reductions import REDUCTIONS

DECLARATION = dict(
    tap="activation", unit="ratio", help="Share of a module's output below zero.",
    aggregates={"count": "sum", "negative": "sum"}, value=("negative", "count"), formula="mean",
)  # fmt: skip


@pytest.fixture
def declare():
    names = []

    def register(name, function, **changes):
        stabwatch.signal(name, **{**DECLARATION, **changes})(function)
        names.append(name)

    yield register
    for name in names:
        plugins.forget(name)


def negative(x):
    return x.numel(), (x < 0).sum()


def run(path, steps=4, **settings):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    outputs = []
    model[0].register_forward_hook(lambda m, a, out: outputs.append(out.detach()))
    with stabwatch.attach(model, optimizer, run_dir=path, agent=False, every_step=True, verbose=False, **settings):
        for _ in range(steps):
            x = torch.randn(16, 6)
            optimizer.zero_grad()
            F.cross_entropy(model(x), torch.randint(3, (16,))).backward()
            optimizer.step()
    return outputs, model, read_run(path)


def test_a_plugin_is_measured_at_every_module_and_exported(declare, tmp_path):
    declare("activation_negative_ratio", negative)
    plugins.check("activation_negative_ratio", (torch.randn(5, 4),), (torch.randn(3, 4),))
    outputs, _, log = run(tmp_path / "run")
    _, values = log.series("activation_negative_ratio", "0")
    assert values.tolist() == pytest.approx([(out < 0).float().mean().item() for out in outputs])
    assert len(log.series("activation_negative_ratio", "2")[0]) == 4


def test_a_plugin_of_gradients_is_merged_over_the_parameters_of_a_layer(declare, tmp_path):
    aggregates = {"count": "sum", "peak": "max"}
    declare("gradient_peak", lambda g: (g.numel(), g.max()), tap="gradient", unit="1", aggregates=aggregates,
            value=("peak",), formula="same", help="Largest gradient.")  # fmt: skip
    _, model, log = run(tmp_path / "run", steps=1)
    truth = max(p.grad.max().item() for p in model[0].parameters())
    assert log.series("gradient_peak", "0")[1].tolist() == pytest.approx([truth])


def test_a_plugin_of_logits_sees_the_target(declare, tmp_path):
    declare(
        "accuracy_ratio", lambda z, t: (len(t), (z.argmax(1) == t).sum()), tap="logits", help="Share that is right."
    )
    _, _, log = run(tmp_path / "run")
    assert all(0 <= v <= 1 for v in log.series("accuracy_ratio")[1])


def test_another_process_knows_help_and_kind_from_the_log(declare, tmp_path):
    declare("activation_negative_ratio", negative)
    run(tmp_path / "run")
    code = f"""
from pathlib import Path
from stabwatch.agent.state import Follower
from stabwatch.exporters.declared import declared
follower = Follower(Path({str(tmp_path / "run")!r}))
print(declared("activation_negative_ratio").help)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "Share of a module's output below zero.\n"
    assert read_run(tmp_path / "run").meta.signals[0]["unit"] == "ratio"


def test_a_plugin_that_fails_is_reported_and_switched_off_and_training_goes_on(declare, tmp_path):
    declare("activation_negative_ratio", lambda x: 1 / 0)
    declare("wrong_number_of_aggregates", lambda x: (1, 2, 3), unit="1")
    _, _, log = run(tmp_path / "run", steps=6)
    errors = {e.data["probe"]: e.data["message"] for e in log.events if e.kind == "error"}
    assert "ZeroDivisionError" in errors["plugin activation_negative_ratio"]
    assert "returned 3 numbers; its aggregates are: count, negative" in errors["plugin wrong_number_of_aggregates"]
    assert len(log.series("loss")[0]) == 6


def test_a_plugin_stands_in_the_table_of_signals(declare, tmp_path):
    declare("activation_negative_ratio", negative, source="ours | theirs")
    run(tmp_path / "run")
    told = CliRunner().invoke(app, ["signals", "--run", str(tmp_path / "run"), "--markdown"]).output
    row = next(line for line in told.splitlines() if "activation_negative_ratio" in line)
    help = "Share of a module's output below zero."
    assert row == f"| `stabwatch_activation_negative_ratio` | layer | sampled | ratio | {help} | ours \\| theirs |"
    assert told.count("stabwatch_activation_negative_ratio") == 1
    found = json.loads(CliRunner().invoke(app, ["signals", "--run", str(tmp_path / "run"), "--json"]).output)
    assert "stabwatch_activation_negative_ratio" in [s["metric"] for s in found["signals"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(tap="somewhere"), "tap is one of activation, gradient, weight, logits"),
        (dict(aggregates={"count": "sum", "x": "mean"}), "merge operators are 'sum', 'max' and 'min', and not mean"),
        (dict(aggregates={"x": "sum"}), "the first field must be the count"),
        (dict(value=("other",)), "not all in"),
        (dict(help="no full stop"), "full stop"),
    ],
)
def test_a_declaration_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        stabwatch.signal("activation_negative_ratio", **{**DECLARATION, **changes})
    assert "activation_negative_ratio" not in CATALOGUE and "activation_negative_ratio" not in REDUCTIONS


def test_a_name_of_ours_is_refused_and_keeps_its_meaning():
    with pytest.raises(ValueError, match="`output_rms` is registered already"):
        stabwatch.signal("output_rms", **{**DECLARATION, "unit": "1"})(negative)
    assert CATALOGUE["output_rms"].reduction == "moments"
    with pytest.raises(ValueError, match="`moments` is registered already"):
        stabwatch.signal("moments", **{**DECLARATION, "unit": "1"})


def test_the_contract_finds_aggregates_that_do_not_merge(declare):
    declare("activation_mean", lambda x: (x.numel(), x.mean()), unit="1")
    with pytest.raises(AssertionError, match="its parts do not merge"):
        plugins.check("activation_mean", (torch.rand(4, 2),), (torch.rand(4, 2),))


def test_packages_are_found_by_their_entry_point(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import stabwatch\n\n"
        "@stabwatch.signal('activation_ones', tap='activation', help='Elements.', aggregates={'count': 'sum'},\n"
        "                  value=('count',), formula='total')\n"
        "def ones(x):\n    return (x.numel(),)\n"
    )
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[stabwatch.signals]\nmine = mine\nbroken = no_such_module\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.load()
    assert PROBES.find("activation", "activation_ones") is not None
    plugins.forget("activation_ones")
