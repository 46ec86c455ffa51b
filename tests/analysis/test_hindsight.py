"""Rules and detectors together: what is merged, what only hindsight shows, and a run beside its own text log."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import stabwatch
from stabwatch.alerts.incidents import Incident
from stabwatch.analysis import Analysis, analyze, open_source
from stabwatch.analysis.analyze import analyze_source
from stabwatch.analysis.hindsight import in_hindsight
from stabwatch.analysis.readers.records import ForeignLog
from stabwatch.analysis.replay import replay
from stabwatch.analysis.run_curves import RunCurves
from stabwatch.cli.commands.replay import rendered
from stabwatch.runlog import Event, Meta, RecordBatch, RunFolder
from tests.alerts.scenarios import block
from tests.analysis.curves import HEALTHY, analysed, healthy, run_of
from tests.sampling import sample

META = Meta(run="r", created=0.0, host="h", pid=1, pid_started=0.0)
LENGTH = 1200


def falling_loss(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 0.5 + 2.5 * np.exp(-np.arange(LENGTH) / 150) + 0.03 * rng.standard_normal(LENGTH)


def changed(kind: str, seed: int = 0) -> np.ndarray:
    loss, noise = falling_loss(seed), np.random.default_rng(seed + 100).standard_normal(LENGTH)
    match kind:
        case "jump to a level":
            loss[700:] = 2.3 + 0.03 * noise[700:]
        case "not learning":
            loss = np.log(10) + 0.008 * noise
        case "too good":
            loss[800:] = 0
        case "shift":
            loss[800:] += 0.3
        case "slow rise":
            loss[800:] += 0.004 * np.arange(LENGTH - 800)
        case "short spike":
            loss[600:604] += 3
        case "long spike":
            loss[600:630] += np.linspace(4, 0, 30)
        case "one batch":
            loss[600] += 5
        case "nan":
            loss[1000:] = np.nan
        case "nan and back":
            loss[600:603] = np.nan
    return loss


KINDS = (
    "calm", "jump to a level", "not learning", "too good", "shift", "slow rise", "short spike", "long spike",
    "one batch", "nan", "nan and back",
)  # fmt: skip
CALM = ("calm", "one batch")


def folder(path: Path, batch: RecordBatch, *events: Event) -> Path:
    written = RunFolder(path, META)
    for i in range(len(batch)):
        written.append(batch.layout, int(batch.steps[i]), float(batch.times[i]), batch.rows[i])
    for event in events:
        written.event(event)
    written.close()
    return path


def text_log(path: Path, loss: np.ndarray) -> Path:
    path.write_text("".join(f"step {i} loss {x:.6f}\n" for i, x in enumerate(loss)))
    return path


def problems(found: Analysis) -> list[tuple[str, int, int | None]]:
    return [(i.condition, i.first_step, i.last_step) for i in found.incidents if i.is_problem]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_and_its_own_text_log_have_one_verdict(kind, tmp_path):
    loss = changed(kind)
    run = analyze(folder(tmp_path / "run", block({"loss": loss.tolist()})))
    log = analyze(text_log(tmp_path / "train.log", loss))
    assert run.calm == log.calm == (kind in CALM)
    assert problems(run) == problems(log)
    if not run.calm:
        assert run.diagnosis.verdict == log.diagnosis.verdict
        assert {c.name for c in log.diagnosis.causes} <= {c.name for c in run.diagnosis.causes}


@pytest.mark.parametrize("seed", sample([0, 1], 0))
@pytest.mark.parametrize("kind", KINDS)
def test_replay_and_analyze_agree_or_say_why(kind, seed):
    run = run_of(loss=changed(kind, seed))
    live, whole = replay([ForeignLog(Path("x.log"), run)]), analysed(run)
    (found,) = live.runs
    if live.exit_code == whole.exit_code:
        return
    said = " ".join(str(part) for part in rendered(live))
    assert whole.exit_code == 1 and found.only_in_hindsight, "only hindsight may add a problem to these curves"
    assert "the whole run shows more than the rules" in said


def test_a_rule_and_a_detector_make_one_incident():
    (spike,) = [i for i in analysed(run_of(loss=changed("long spike"))).incidents if i.is_problem]
    assert (spike.condition, spike.found_by, spike.first_step) == ("LossSpike", ("rule", "detector"), 600)
    assert spike.live_step == 602 and "Live: LossSpike fired at step 602." in spike.evidence
    assert {a.rule for a in spike.alerts} >= {"LossSpike"} and "alerts" not in spike.to_dict()


def test_what_a_spike_became_names_it():
    (gone,) = [i for i in analysed(run_of(loss=changed("jump to a level"))).incidents if i.is_problem]
    assert gone.condition == "LossDivergence" and {"LossSpike", "LossDivergence"} <= {a.rule for a in gone.alerts}


def test_a_spike_that_is_the_noise_of_its_curve_is_information():
    loss = falling_loss(3)
    for at in (300, 500, 700, 900):
        loss[at : at + 3] *= 6
    run = run_of(loss=loss)
    live, whole = replay([ForeignLog(Path("x.log"), run)]), analysed(run)
    assert (live.exit_code, whole.exit_code) == (1, 0)
    (found,) = live.runs
    assert len(found.withdrawn) == 4 and "noise of the curve" in found.withdrawn[0].text
    assert "No problem in hindsight, LossSpike at step 300" in " ".join(map(str, _flat(rendered(live))))


def _flat(parts):
    return (getattr(part, "renderable", part) for part in parts)


def test_what_a_layer_shows_is_never_withdrawn(tmp_path):
    series = {"loss": falling_loss(0).tolist(), "lower a": [10.0] * 600 + [150.0] * 30 + [10.0] * 570}
    found = analyze(folder(tmp_path / "run", block(series)))
    assert found.exit_code == 1 and found.diagnosis.causes[0].name == "AttentionLogitGrowth"
    (grown,) = [i for i in found.incidents if i.is_problem]
    assert (grown.layers, grown.found_by) == (("a",), ("rule",))


def test_a_run_that_paused_or_was_resumed_is_no_problem(tmp_path):
    loss = falling_loss(0)[:200].tolist()
    before, after = block({"loss": loss[:100]}), block({"loss": loss[100:]}, first=100)
    late = RecordBatch(after.layout, after.steps, after.times + 5000, after.rows)
    run = RunFolder(tmp_path / "run", META)
    for batch in (before, late):
        for i in range(len(batch)):
            run.append(batch.layout, int(batch.steps[i]), float(batch.times[i]), batch.rows[i])
    run.close()
    found = analyze(tmp_path / "run")
    assert [a.rule for a in found.alerts if a.state == "firing"] == ["TrainingStopped"]
    pauses = [i for i in found.incidents if i.condition == "TrainingPaused"]
    assert pauses and not any(i.is_problem for i in pauses), [i.text for i in found.incidents]


def test_nothing_is_missing_where_the_loss_was_not_measured(tmp_path):
    """In a text log a loss that stops while others go on is a NaN left blank; a run folder records NaN as NaN."""
    loss = [*falling_loss(0)[:600].tolist(), *[None] * 600]
    found = analyze(folder(tmp_path / "run", block({"loss": loss, "learning_rate": [1e-3] * LENGTH})))
    assert found.calm, [i.text for i in found.incidents]


def test_healthy_curves_are_silent_for_rules_and_detectors_together():
    warned = []
    for place, family in enumerate(HEALTHY):
        for seed in range(8):
            run = healthy(np.random.default_rng([seed, place]), family)
            warned += [f"{family} {seed}: {i.text}" for i in analysed(run).incidents if i.is_problem][:1]
    assert warned == []


def test_open_source_gives_one_kind_of_source(tmp_path):
    log = text_log(tmp_path / "train.log", falling_loss(0))
    run = folder(tmp_path / "run", block({"loss": falling_loss(0).tolist()}))
    for path in (run, log):
        (source,) = open_source(path)
        assert analyze_source(source).exit_code == 0


def test_the_curves_of_a_long_run_are_thinned_and_keep_what_stands_out(monkeypatch):
    monkeypatch.setattr("stabwatch.analysis.run_curves.MOST_POINTS", 20_000)
    curves, rng = RunCurves(), np.random.default_rng(0)
    curves._check = 20_000
    for start in range(0, 100_000, 1000):
        loss = 2 + 0.02 * rng.standard_normal(1000)
        if start == 77_000:
            loss[500] = np.nan
        curves.add(block({"loss": loss.tolist()}, first=start))
    view = curves.run("r")
    loss = view.of("loss")
    assert loss is not None and len(loss) < 40_000 and "one in" in curves.note
    assert np.isnan(loss.values[loss.steps == 77_500]).all() and (loss.steps == 77_500).any()
    assert (loss.lines == loss.steps + 1).all()


def test_a_number_that_the_loop_logs_under_the_name_of_a_signal_is_no_second_curve():
    """Trainers of transformers log `learning_rate`."""
    curves, rates = RunCurves(), np.linspace(1e-3, 1e-4, 10).tolist()
    for start in (0, 5):
        part = rates[start : start + 5]
        curves.add(block({"learning_rate": part, "logged learning_rate": part}, first=start))
    found = [c for c in curves.run("r").columns if c.name == "learning_rate"]
    assert [c.steps.tolist() for c in found] == [list(range(10))]


LONG = """
import re, sys
import numpy as np
from pathlib import Path
from stabwatch.analysis import analyze_source
from stabwatch.runlog import Accumulator, Meta, RecordBatch, RecordLayout, host_accumulator
table = RecordLayout.build([Accumulator("loss", "", "mean"), Accumulator("gradient", "", "clip"),
                            host_accumulator("learning_rate"), host_accumulator("step_seconds")])
class Long:
    meta = Meta(run="long", created=0.0, host="h", pid=1, pid_started=0.0)
    path, tables, position, size = Path("long"), [table], 0, 1
    bad_event_lines = damaged_records = torn_bytes = 0
    unreadable = {}
    def poll_events(self): return []
    def stream(self):
        rng = np.random.default_rng(0)
        for start in range(0, int(sys.argv[1]), 4096):
            n = min(4096, int(sys.argv[1]) - start)
            rows = np.zeros((n, table.width), np.float32)
            for cell in table.accumulators:
                rows[:, table.start(cell)] = 1
                rows[:, table.start(cell) + 1] = 2 + 0.02 * rng.standard_normal(n)
            steps = np.arange(start, start + n)
            yield RecordBatch(table, steps, 1e9 + 0.1 * steps, rows)
found = analyze_source(Long())
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]  # ru_maxrss has that of the parent
print(found.records, int(peak) // 1024, [i.text for i in found.incidents])
"""


@pytest.mark.slow
def test_a_million_records_need_little_memory():
    done = subprocess.run([sys.executable, "-c", LONG, "1000000"], capture_output=True, text=True)
    records, megabytes = map(int, done.stdout.split()[:2])
    assert records == 1_000_000 and megabytes < 350, (done.stdout, done.stderr)


def test_a_rate_that_a_log_prints_as_0_during_its_warm_up_is_information():
    rate = np.concatenate((np.zeros(30), np.linspace(1e-6, 1e-3, 170)))
    found = analysed(run_of(loss=np.linspace(5, 2, 200), learning_rate=rate))
    assert found.calm, [i.text for i in found.incidents]


def test_a_policy_loss_that_converges_to_zero_has_not_diverged(tmp_path):
    """REINFORCE and GRPO: below zero while there is something to learn, and back at zero when it is learned."""
    rng = np.random.default_rng(3)
    course = np.concatenate([np.linspace(0, -0.8, 200), np.linspace(-0.8, 0.03, 300), np.full(100, 0.03)])
    loss = course + 0.05 * rng.standard_normal(600)
    found = analyze(folder(tmp_path / "policy", block({"loss": loss.tolist()})))
    assert found.calm, [i.text for i in found.incidents]
    worse = np.where(np.arange(600) < 200, loss, np.linspace(-0.8, 4, 600))
    lost = analyze(folder(tmp_path / "density", block({"loss": worse.tolist()})))
    assert [i.condition for i in lost.incidents if i.is_problem] == ["LossDivergence"]


def _validated(told, fell=0.3, spacing=4):
    """A log whose training loss falls to a share, with a validation every few records."""
    length = len(told) * spacing
    loss = np.exp(np.linspace(0, np.log(fell), length))
    every = [told[i // spacing] if i % spacing == spacing - 1 else None for i in range(length)]
    return analysed(run_of(loss=loss, eval_loss=every))


@pytest.mark.parametrize("scatter", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_validation_losses_that_scatter_are_no_overfitting(scatter, seed):
    rng = np.random.default_rng(seed)
    told = np.exp(-np.linspace(0, 1, 100) + scatter * rng.standard_normal(100))
    assert not [i for i in _validated(told).incidents if i.condition == "Overfitting" and i.is_problem]


@pytest.mark.parametrize("scatter", [0.01, 0.05])
def test_validation_losses_that_rise_out_of_their_scatter_are(scatter):
    curve = np.concatenate((-np.linspace(0, 1, 20), -1 + 0.03 * np.arange(1, 31)))
    told = np.exp(curve + scatter * np.random.default_rng(0).standard_normal(50))
    (found,) = [i for i in _validated(told).incidents if i.is_problem]
    assert found.condition == "Overfitting" and 80 <= found.first_step <= 150


def test_a_rise_before_the_lowest_validation_is_information():
    curve = np.concatenate((1 - 0.05 * np.arange(10), 0.55 + 0.05 * np.arange(8), 0.5 - 0.02 * np.arange(12)))
    (found,) = [i for i in _validated(curve).incidents if i.condition == "Overfitting"]
    assert not found.is_problem and "0.28 at step 119, lower than ever before" in found.text


@pytest.mark.parametrize(("later", "problem"), [(8.0, False), (-7.0, True)])
def test_a_fall_of_the_reward_before_anything_was_learned_is_information(later, problem):
    run = run_of(other__reward=[-7.5] * 60 + [-7.9] * 40 + np.linspace(-7.9, later, 100).tolist() + [later] * 40)
    told = Incident(
        condition="RewardCollapse", severity="warning", first_step=60, last_step=99, records=40, signal="reward",
        confidence="likely", text="The reward is -7.9.",
    )  # fmt: skip
    (found,) = in_hindsight(run, [told], watched=False).incidents
    assert found.is_problem == problem and ("before the policy had learned" in found.text) != problem


@pytest.mark.parametrize(("name", "problem"), [("loss_gen", False), ("loss", True)])
def test_what_a_rule_says_of_a_generator_that_came_back_is_information(name, problem):
    run = run_of(**{f"loss__{name}": 1 + 0.2 * np.random.default_rng(0).standard_normal(300)})
    told = Incident(
        condition="LossDivergence", severity="critical", first_step=90, last_step=150, records=60, ratio=2.5,
        confidence="likely", text="The loss is 1.5.",
    )  # fmt: skip
    (found,) = in_hindsight(run, [told], watched=False).incidents
    assert found.is_problem == problem


@pytest.mark.parametrize("stepped", [True, False], ids=["learned", "the optimizer keeps the old head"])
def test_a_new_head_that_is_learned_is_no_divergence(stepped, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = stabwatch.attach(model, optimizer, run_dir=tmp_path / "run", agent=False, verbose=False)
    ways = torch.randn(16, 6)
    for step in range(240):
        classes = 2 if step < 120 else 6
        if step == 120:
            model[2] = nn.Linear(32, 6)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1) if stepped else optimizer
        x = torch.randn(64, 16)
        model.zero_grad()
        nn.functional.cross_entropy(model(x), (x @ ways[:, :classes]).argmax(dim=1)).backward()
        optimizer.step()
    watch.detach()
    found = analyze(watch.run_dir)
    jumps = [i for i in found.incidents if i.condition in ("LossDivergence", "LossShift", "LossSpike")]
    assert jumps
    assert all(("The model has changed at step 120" in i.text) == stepped == (not i.is_problem) for i in jumps)


def test_a_loss_of_two_levels_does_not_diverge():
    rng = np.random.default_rng(6)
    high = rng.random(600) < np.where(np.arange(600) < 60, 0.5, 0.75)
    loss = np.where(high, 4.9, 0.7) + 0.3 * rng.standard_normal(600)
    found = analysed(run_of(loss=loss))
    rises = [i for i in found.incidents if i.condition == "LossDivergence"]
    assert rises and not [i for i in found.incidents if i.is_problem]
    assert all("the loss has two levels" in i.text for i in rises)
