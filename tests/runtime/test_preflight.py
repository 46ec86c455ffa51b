"""Set-ups that are wrong are told from one batch; right ones are not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner

import stabwatch
from stabwatch.alerts.preflight import preflight
from stabwatch.cli.app import app
from stabwatch.runlog import RunFolder
from tests.alerts.scenarios import block
from tests.runlog.conftest import meta

CLASSES = 10


def _net(scale=1.0):
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, CLASSES))
    with torch.no_grad():
        net[2].weight.mul_(scale)
    return net


def _labels(x):
    return (3 * x[:, 0].abs()).long().clamp(0, CLASSES - 1)


def right(model):
    return lambda x: F.cross_entropy(model(x), _labels(x))


def softmax_twice(model):
    return lambda x: F.cross_entropy(model(x).softmax(-1), _labels(x))


def broadcast(model):
    return lambda x: F.mse_loss(model(x)[:, :1], 2 * x[:, 0])


def dice_of_logits(model):
    def loss(x):
        out, mask = model(x), (x[:, :1] > 0).float().expand(-1, CLASSES)
        return 1 - (2 * (out * mask).sum() + 1) / (out.sum() + mask.sum() + 1)

    return loss


def out_of_range(model):
    return lambda x: F.binary_cross_entropy_with_logits(model(x)[:, :1], 1 + x[:, :1].abs())


def ignored(model):
    return lambda x: F.cross_entropy(model(x), torch.where(torch.arange(len(x)) > 0, -100, _labels(x)))


def logits_too_large(model):
    return lambda x: F.cross_entropy(200 * model(x), _labels(x))


def pixels(model):
    return lambda x: F.cross_entropy(model(100 * x), _labels(x))


def knows(model):
    return lambda x: F.cross_entropy(model(x) + 9 * F.one_hot(_labels(x), CLASSES), _labels(x))


class _Cut(nn.Module):
    """The features of the body are cut off; a plain list of layers is not known."""

    def __init__(self, cut=False, hidden=False):
        super().__init__()
        self.body, self.head = nn.Linear(6, 16), nn.Linear(16, CLASSES)
        self.cut, self.more = cut, [nn.Linear(16, 16)] if hidden else []

    def forward(self, x):
        x = self.body(x).tanh()
        for layer in self.more:
            x = x + layer(x)
        return self.head(x.detach() if self.cut else x)


def _preflight(tmp_path, loss, model=None, steps=1, **optimizer):
    torch.manual_seed(0)
    model = model or _net()
    held = optimizer.pop("held", None) or model.parameters()
    optimizer = torch.optim.Adam(held, **{"lr": 1e-3, **optimizer})
    watch = stabwatch.attach(model, optimizer, run_dir=tmp_path / "run", agent=False, verbose=False)
    compute = loss(model)
    for _ in range(steps):
        optimizer.zero_grad()
        compute(torch.randn(64, 6)).backward()
        optimizer.step()
    found = watch.preflight()
    watch.detach()
    return found


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("make", [_net, _Cut], ids=["sequential", "parts"])
def test_a_right_set_up(make, steps, tmp_path, capsys):
    found = _preflight(tmp_path, right, make(), steps)
    assert found.ok and not found.findings and found.steps == steps
    said = capsys.readouterr().out
    assert "Nothing is wrong" in said and "a uniform guess among 10 classes has 2.303" in said


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize(
    ("loss", "name"),
    [
        (softmax_twice, "DoubleSoftmax"),
        (broadcast, "LossBroadcast"),
        (dice_of_logits, "OverlapOfLogits"),
        (out_of_range, "TargetOutOfRange"),
        (logits_too_large, "InitialLossTooHigh"),
        (pixels, "InputsNotScaled"),
    ],
)
def test_a_wrong_loss(loss, name, tmp_path, capsys):
    found = _preflight(tmp_path, loss)
    assert name in {f.name for f in found.findings} and not found.ok
    assert name in capsys.readouterr().out


def test_what_may_be_meant_is_information(tmp_path):
    found = _preflight(tmp_path, knows)
    assert [(f.name, f.severity) for f in found.findings] == [("FirstLossLow", "info")] and found.ok
    assert "FirstLossLow" in str(found)


def test_targets_that_are_mostly_ignored(tmp_path):
    assert "TargetsMostlyIgnored" in {f.name for f in _preflight(tmp_path, ignored).findings}


def test_parts_that_are_not_trained(tmp_path):
    cut = _preflight(tmp_path / "cut", right, _Cut(cut=True))
    assert [(f.name, f.layers) for f in cut.findings] == [("PartWithoutGradient", ("body",))]
    hidden = _preflight(tmp_path / "hidden", right, _Cut(hidden=True))
    assert "ParametersNotRegistered" in {f.name for f in hidden.findings}
    model = _Cut()
    unheld = _preflight(tmp_path / "unheld", right, model, held=list(model.body.parameters()))
    assert [(f.name, f.layers) for f in unheld.findings] == [("ParametersNotInOptimizer", ("head",))]


def test_frozen_on_purpose_and_adapters_at_zero_are_right(tmp_path):
    model = _Cut()
    model.body.requires_grad_(False)
    nn.init.zeros_(model.head.weight)
    assert _preflight(tmp_path, right, model, steps=2).ok


@pytest.mark.parametrize(("lr", "name"), [(3.0, "UpdateTooLarge"), (1e-12, "UpdatesSmall")])
def test_a_rate_far_from_usual(lr, name, tmp_path):
    assert name in {f.name for f in _preflight(tmp_path, right, lr=lr).findings}


def test_a_mode_that_is_wrong(tmp_path):
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES)).eval()
    assert "EvalModeInTraining" in {f.name for f in _preflight(tmp_path, right, model).findings}


@pytest.mark.parametrize(("apart", "found"), [(1e-3, ["ReplicasDiffer"]), (0.0, [])])
def test_replicas_that_begin_apart(apart, found, tmp_path):
    folder = RunFolder(tmp_path / "run", meta())
    batch = block({"replica a": [apart], "loss": [2.3]})
    folder.append(batch.layout, 0, 1000.0, batch.rows[0])
    folder.close()
    assert [f.name for f in preflight(tmp_path / "run").findings] == found


@pytest.mark.parametrize("part", [nn.BatchNorm1d(16), nn.Dropout(0.5)], ids=["batch norm", "dropout"])
def test_a_mode_that_is_right(part, tmp_path):
    model = nn.Sequential(nn.Linear(6, 16), part, nn.ReLU(), nn.Linear(16, CLASSES))
    assert _preflight(tmp_path / "train", right, model.train()).ok
    wrong = _preflight(tmp_path / "eval", right, model.eval())
    assert [(f.name, f.severity) for f in wrong.findings] == [("EvalModeInTraining", "warning")]


def test_before_the_first_step(tmp_path):
    assert "no step was recorded" in str(_preflight(tmp_path, right, steps=0))


PROGRAM = """
import torch, torch.nn.functional as F
torch.manual_seed(0)
model = torch.nn.Linear(6, 10)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for _ in range(10**9):
    optimizer.zero_grad()
    F.cross_entropy(model(torch.randn(32, 6)){}, torch.randint(10, (32,))).backward()
    optimizer.step()
"""


@pytest.mark.parametrize("attached", [False, True])
def test_the_command(attached, tmp_path, capfd, monkeypatch):
    """attached: the program calls `attach` itself, with a folder of its own. Its log is not there."""
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "train.py"
    line = "import stabwatch; stabwatch.attach(model, optimizer, run_dir='mine', agent=True)\nfor _ in"
    text = PROGRAM.format(".softmax(-1)")
    script.write_text(text.replace("for _ in", line) if attached else text)
    done = CliRunner().invoke(app, ["preflight", "--timeout", "100", "--", sys.executable, str(script)])
    assert done.exit_code == 1 and "DoubleSoftmax" in done.output, done.output
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"]


def test_the_command_on_a_run_folder(tmp_path):
    _preflight(tmp_path, right)
    done = CliRunner().invoke(app, ["preflight", "--json", str(tmp_path / "run")])
    assert done.exit_code == 0 and '"ok": true' in done.output
    assert preflight(Path(tmp_path / "run")).ok
