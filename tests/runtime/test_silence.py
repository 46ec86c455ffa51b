"""A run without records says why: in a warning, in the log, from `analyze` and from `doctor`."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from stabwatch.analysis import analyze
from stabwatch.analysis.analyze import UNRECORDED
from stabwatch.cli.app import app
from stabwatch.hooks.forward import WITHIN_TRANSFORM
from stabwatch.runlog.schema import META
from stabwatch.runtime.silence import TO_BE_RECORDED


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def reasons(log) -> list[str]:
    return [entry["reason"] for e in log.events if e.kind == "coverage" for entry in e.data["missing"]
            if entry["tap"] == "clock"]  # fmt: skip


def train(trained: nn.Module, steps: int, called: nn.Module | None = None) -> None:
    optimizer = torch.optim.Adam(trained.parameters())
    for _ in range(steps):
        trained(torch.randn(3, 4)).sum().backward()
        if called is not None:
            called(torch.randn(3, 4))
        optimizer.step()
        optimizer.zero_grad()


def test_another_model_is_trained(attach, caplog) -> None:
    watched = net()
    attach(watched)
    train(copy.deepcopy(watched), 9)
    assert caplog.text == ""
    train(copy.deepcopy(watched), 3)
    assert caplog.text.count("nothing is recorded") == 1
    assert "after 10 optimizer steps (Adam) and 0 training forwards of Sequential, none of the" in caplog.text
    log = attach.finish()
    assert "after 12 optimizer steps (Adam)" in reasons(log)[-1]


def test_the_model_of_another_optimizer_is_a_problem_at_attach(attach, caplog) -> None:
    attach(net(), torch.optim.SGD(net().parameters(), lr=0.1))
    assert caplog.text.count("the optimizer holds no parameter of this model") == 1
    log = attach.finish()
    assert reasons(log) == ["nothing is recorded: the optimizer holds no parameter of this model: its steps are not "
                            "steps of this run"]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.ReLU(), "the model has no parameters"),
        (nn.Linear(3, 2, device="meta"), "on the device `meta`"),
        (nn.Linear(3, 2).requires_grad_(False), "all 2 parameters of the model are frozen"),
    ],
    ids=["no parameters", "meta", "frozen"],
)
def test_a_model_that_cannot_be_trained_gets_one_sentence(model, said, attach, caplog) -> None:
    attach(model)
    assert caplog.text.count(said) == 1 and "Traceback" not in caplog.text
    assert said in reasons(attach.finish())[-1]


def test_forwards_without_a_step_are_said_after_ten_and_are_no_fault_of_accumulation(attach, caplog) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer)
    for _ in range(16):
        model(torch.randn(3, 4)).sum().backward()
    assert caplog.text.count("nothing is recorded") == 1
    assert "no optimizer step was seen yet. Where gradients are accumulated over more forwards" in caplog.text
    optimizer.step()
    log = attach.finish()
    assert len(log.steps) == 1 and len(reasons(log)) == 1
    assert [e.kind for e in log.events].index("coverage") < len(log.events) - 2  # the last report is that of the record


def test_forwards_without_a_backward_pass(attach, caplog) -> None:
    model = net()
    attach(model)
    for _ in range(12):
        model(torch.randn(3, 4))
    assert "after 10 training forwards of Sequential, no backward pass that reached its parameters" in caplog.text


def test_a_model_that_is_only_evaluated(attach) -> None:
    model = net().eval()
    attach(model)
    train(net(), 0)
    for _ in range(3):
        model(torch.randn(3, 4)).sum().backward()
    assert reasons(attach.finish()) == ["nothing is recorded: the model was called, but not in training mode: call "
                                        "`model.train()`"]  # fmt: skip


def test_a_training_without_gradients(attach) -> None:
    """Evolution strategies: the model was trained, and was not compiled."""
    model = net()
    attach(model)
    with torch.no_grad():
        for _ in range(12):
            model(torch.randn(3, 4))
            for p in model.parameters():
                p.add_(torch.randn_like(p), alpha=0.01)
    assert reasons(attach.finish()) == [
        "nothing is recorded: the model was called in training mode, but always without gradients (12 times), and no "
        "optimizer step was seen. A training that needs no gradients is not recorded"
    ]


def test_a_run_with_records_is_not_silent(attach, caplog) -> None:
    model = net()
    attach(model)
    train(model, 12)
    log = attach.finish()
    assert len(log.steps) == 12 and reasons(log) == [] and "nothing is recorded" not in caplog.text


def test_a_watch_that_was_replaced_before_training_is_not_complained_about(attach, caplog) -> None:
    model = net()
    attach(model)
    attach(model)
    train(model, 2)
    attach.finish()
    assert "nothing is recorded" not in caplog.text


def test_analyze_and_doctor_say_it_and_fail(attach) -> None:
    attach(net())
    train(net(), 10)
    log = attach.finish()
    analysis = analyze(log.path)
    assert (analysis.exit_code, analysis.calm, analysis.silent) == (1, False, True)
    assert analysis.diagnosis.verdict.startswith("Nothing is recorded: after 10 optimizer steps (Adam)")
    for command in ("analyze", "doctor"):
        result = CliRunner().invoke(app, [command, str(log.path)])
        assert result.exit_code == 1
        assert "after 10 optimizer steps" in " ".join(result.output.split())


def test_a_run_that_has_not_begun_says_so(attach) -> None:
    watch = attach(net())
    verdict = analyze(watch.run_dir)
    assert verdict.exit_code == 1
    assert verdict.diagnosis.verdict.startswith("Nothing has been recorded yet: no step of the training has ended")


def test_a_run_that_was_replaced_before_its_first_step_says_so(attach) -> None:
    model = net()
    first = attach(model)
    attach(model)
    assert analyze(first.run_dir).diagnosis.verdict == UNRECORDED["replaced"]


def test_a_run_that_was_killed_before_its_first_record_says_so(attach) -> None:
    watch = attach(net())
    meta = watch.run_dir / META
    gone = json.loads(meta.read_text()) | {"pid_started": 0.0}
    meta.write_text(json.dumps(gone))
    assert analyze(watch.run_dir).diagnosis.verdict == UNRECORDED["killed"]
    said = CliRunner().invoke(app, ["doctor", str(watch.run_dir)]).output
    assert "the process was gone" in " ".join(said.split())


def rollouts(model: nn.Module, optimizer: torch.optim.Optimizer, kept: bool, updates: int = 1) -> None:
    """Outputs of many calls are trained on together. kept: with their graphs; else the model is called once more."""
    for _ in range(updates):
        outputs = [model(torch.randn(3, 4)) if kept else model(torch.randn(3, 4)).detach() for _ in range(30)]
        loss = torch.stack(outputs).square().mean() if kept else model(torch.randn(3, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_calls_that_are_trained_on_together_are_not_complained_about(attach, caplog) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer)
    rollouts(model, optimizer, kept=True)
    log = attach.finish()
    assert len(log.steps) == 1 and "nothing is recorded" not in caplog.text and reasons(log) == []


def test_calls_before_the_training_are_told_as_what_they_are(attach, caplog) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer)
    rollouts(model, optimizer, kept=False)
    assert caplog.text.count("nothing is recorded") == 1
    assert "no optimizer step was seen yet. Where the model is called more often than that" in caplog.text
    assert len(attach.finish().steps) == 1


def test_a_run_that_goes_on_is_known_to_be_trained(attach, caplog) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer, first_step=1)
    rollouts(model, optimizer, kept=False)
    assert len(attach.finish().steps) == 1 and "nothing is recorded" not in caplog.text


def test_a_watch_that_began_after_the_only_step_does_not_say_that_nothing_was_trained(attach) -> None:
    attach(net(), first_step=1)
    said = reasons(attach.finish())
    assert said == ["nothing is recorded: no training forward of the model and no optimizer step was seen after the "
                    "watch began, which was before step 1, counted from 0"]  # fmt: skip


def test_an_optimizer_for_each_parameter_is_not_many_steps_without_a_record(attach, caplog) -> None:
    """They step in the backward pass, and the first step is over when the second one begins."""
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(8)))
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}
    for p in optimizers:
        p.register_post_accumulate_grad_hook(lambda p: optimizers[p].step())
    attach(model)
    for _ in range(3):
        model(torch.randn(3, 4)).sum().backward()
    log = attach.finish()
    assert len(log.steps) == 3 and reasons(log) == [] and "nothing is recorded" not in caplog.text


def test_gradients_that_torch_func_computes_are_said_to_be_unseen(attach, caplog) -> None:
    model = net()
    attach(model)
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss = torch.func.grad(lambda given, x: torch.func.functional_call(model, given, (x,)).sum())
    for _ in range(3):
        values = {name: values[name] - 0.1 * g for name, g in loss(values, torch.randn(3, 4)).items()}
    said = reasons(attach.finish())
    assert said == [f"nothing is recorded: {WITHIN_TRANSFORM}, and no optimizer step was seen. {TO_BE_RECORDED}"]


def test_a_step_of_an_optimizer_beside_torch_func_is_recorded(attach) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer)
    loss = torch.func.grad(lambda given, x: torch.func.functional_call(model, given, (x,)).sum())
    for _ in range(3):
        found = loss({name: p.detach() for name, p in model.named_parameters()}, torch.randn(3, 4))
        for name, p in model.named_parameters():
            p.grad = found[name]
        optimizer.step()
    log = attach.finish()
    assert len(log.series("gradient_norm")[1]) == 3 and not reasons(log)
    (coverage,) = [event.data for event in log.events if event.kind == "coverage"]
    assert {entry["reason"] for entry in coverage["missing"]} == {WITHIN_TRANSFORM}, "a step was seen"
