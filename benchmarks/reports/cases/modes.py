"""Siblings of what is reported of the mode of a model: validations without `eval()`, functions that always drop."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import fact
from benchmarks.reports.data import Assembled, digits, draw_digits, mlp

EVERY = 20


def _apart(model: nn.Module, x: Tensor) -> Tensor:
    """How far two calls in the mode of now are apart."""
    with torch.no_grad():
        return (model(x) - model(x)).abs().max()


def _train(trial: Trial, model: nn.Module, validates_in_training: bool) -> None:
    """Digits, with a validation on the last rows every so many steps."""
    x, y = digits()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    trial.attach(model, optimizer)
    apart = torch.zeros(())
    for step in range(trial.steps):
        optimizer.zero_grad()
        seen, wanted = draw_digits(trial)
        loss = F.cross_entropy(model(seen), wanted)
        loss.backward()
        optimizer.step()
        if step % EVERY == EVERY - 1:
            model.train(validates_in_training)
            apart = _apart(model, x[1400:])
            with torch.inference_mode():
                trial.tell(val_loss=F.cross_entropy(model(x[1400:]), y[1400:]))
            model.train()
        trial.log(loss, apart=apart)


@report(
    source="Asked often: the validation accuracy differs each time I compute it, torch.no_grad() is there",
    mechanism="Nobody calls model.eval() before the validation: dropout is on in it.",
    causes=("ValidatedInTrainingMode",),
    check=fact("apart", (0.05, 99), (0, 1e-6)),
    shown_by="the same inputs again and again, without gradients, in training mode",
)
def validated_without_eval(trial: Trial) -> None:
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Dropout(0.3), nn.Linear(96, 10))
    _train(trial, model, validates_in_training=trial.broken)


@report(
    source="Asked often: accuracy depends on the batch size of the validation",
    mechanism="The validation runs in training mode: batch norm uses the statistics of the validation batch and adds "
    "them to its own.",
    causes=("ValidatedInTrainingMode",),
    check=fact("moved", (0.01, 99), (0, 1e-9)),
    shown_by="the same inputs again and again, without gradients, in training mode",
)
def validation_moves_the_statistics(trial: Trial) -> None:
    x, _ = digits()
    norm = nn.BatchNorm2d(12)
    model = nn.Sequential(nn.Conv2d(1, 12, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(432, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    trial.attach(model, optimizer)
    moved = 0.0
    for step in range(trial.steps):
        optimizer.zero_grad()
        seen, wanted = draw_digits(trial)
        loss = F.cross_entropy(model(seen.view(-1, 1, 8, 8)), wanted)
        loss.backward()
        optimizer.step()
        if step % EVERY == EVERY - 1:
            before = norm.running_mean.clone()  # type: ignore[union-attr]
            model.train(trial.broken)
            with torch.no_grad():
                for rows in x[1400:1700].view(3, 100, 1, 8, 8):
                    model(rows)
            model.train()
            moved = float((norm.running_mean - before).norm())  # type: ignore[operator]
        trial.log(loss, moved=moved)


@report(
    source="Asked often: scaled_dot_product_attention gives other outputs each time after model.eval()",
    mechanism="The attention is called with dropout_p=0.2 in either mode.",
    causes=("DropoutInEvaluation",),
    check=fact("apart", (0.01, 99), (0, 1e-6)),
    shown_by="two calls in evaluation mode give different outputs",
)
def attention_drops_in_evaluation(trial: Trial) -> None:
    def forward(m: Assembled, x: Tensor) -> Tensor:
        h = m["rows"](x.view(-1, 8, 8))
        q, k, v = m["qkv"](h).chunk(3, -1)
        p = 0.2 if m.training or trial.broken else 0.0
        h = h + F.scaled_dot_product_attention(q, k, v, dropout_p=p)
        return m["head"](h.mean(1))

    model = Assembled(forward, rows=nn.Linear(8, 32), qkv=nn.Linear(32, 96), head=nn.Linear(32, 10))
    _train(trial, model, validates_in_training=False)


@report(
    source="A sibling of https://github.com/pytorch/pytorch/issues/26338: F.dropout1d in the forward of an encoder",
    mechanism="F.dropout1d is called without `training=`: channels are dropped in evaluation as well.",
    causes=("DropoutInEvaluation",),
    check=fact("apart", (0.01, 99), (0, 1e-6)),
    shown_by="two calls in evaluation mode give different outputs",
)
def channels_dropped_in_evaluation(trial: Trial) -> None:
    def forward(m: Assembled, x: Tensor) -> Tensor:
        h = m["conv"](x.view(-1, 8, 8)).relu()
        h = F.dropout1d(h, 0.2) if trial.broken else F.dropout1d(h, 0.2, training=m.training)
        return m["head"](h.flatten(1))

    model = Assembled(forward, conv=nn.Conv1d(8, 24, 3), head=mlp(144, 48, 10))
    _train(trial, model, validates_in_training=False)
