"""Values by placement: however a model is spread over ranks, its numbers are those of one process."""

from __future__ import annotations

import json

import numpy as np
import pytest

from stabwatch.distributed.summands import deviation
from stabwatch.hooks.base.spread_gradients import estimated, only_moments
from stabwatch.hooks.base.tensors import SPREAD
from stabwatch.hooks.probes.loss import CLASSES_ELSEWHERE
from stabwatch.runlog import read_run
from stabwatch.runtime.pipeline_events import OTHER_STAGE, WITHIN_STAGE
from stabwatch.signals import CATALOGUE
from tests.distributed.placement_job import GROWS_AT, INTERLEAVED, PIPELINES, ROUGH, STEPS
from tests.processes import run_python
from tests.sampling import sample

MODES = {
    "ddp": 2,
    "zero": 2,
    "replicate": 2,
    "manual": 2,
    "compiled": 2,
    "fsdp1": 2,
    "fsdp1_flat": 2,
    "fsdp2": 2,
    "fsdp2_later": 2,
    "fsdp2_accumulates": 2,
    "tp": 2,
    "tp_loss": 2,
    "tp_sequence": 2,
    "hsdp": 4,
    "2d": 4,
    "2d_sequence": 4,
    "ddp_tp": 4,
    "ddp-attached_first": 2,
    "fsdp1-attached_first": 2,
    "fsdp2-attached_first": 2,
    "manual-grows": 2,
    "ddp-launched": 2,
    "fsdp2-launched": 2,
    "manual-spawned": 2,
    "1f1b": 2,
    "gpipe": 2,
    "1f1b_fsdp": 4,
    "1f1b_ddp": 4,
    "interleaved": 2,
    "zero_bubble": 2,
    "v": 2,
}
SAMPLE = (
    "ddp", "fsdp1", "fsdp2_accumulates", "tp", "tp_loss", "tp_sequence", "2d", "ddp_tp", "ddp-attached_first",
    "manual-grows", "ddp-launched", "manual-spawned", "1f1b", "v",
)  # fmt: skip
"""Modes that run by default, a job of their own; those of both jobs are held against the same single process."""
COMPARED = {"moments", "update", "group", "mean"}
OF_PARAMETERS = {"gradient", "weight", "update", "group", "loss"}
RTOL = 2e-5
"""float32 sums in another order."""


def _job(out, modes):
    jobs = [f"{mode}:{world}" for mode, world in {"single": 1, **modes}.items()]
    done = run_python("-m", "tests.distributed.placement_job", out, *jobs, timeout=400)
    assert done.returncode == 0, done.stderr[:8000] + done.stderr[-4000:]


def _of_sample(once):
    modes = {mode: MODES[mode] for mode in SAMPLE} | {"groups": 4, "tp_sequence+rough": 2}
    return once("placements-sample", lambda out: _job(out, modes))


def _of_others(once):
    modes = {mode: world for mode, world in MODES.items() if mode not in SAMPLE}
    return once("placements-others", lambda out: _job(out, modes))


@pytest.fixture
def run_of(once):
    """run_of(mode): the folder of its run."""
    return lambda mode: (_of_sample if mode in SAMPLE else _of_others)(once) / mode


@pytest.fixture(params=[SAMPLE, pytest.param(tuple(MODES), marks=pytest.mark.slow)], ids=["sample", "all"])
def modes(request):
    """Modes to look at together."""
    return request.param


@pytest.mark.parametrize("mode", sample(MODES, *SAMPLE))
def test_the_values_are_those_of_one_process(mode, run_of):
    runs = run_of(mode).parent
    job, single = read_run(runs / mode), read_run(runs / "single")
    said = [event.data for event in job.events if event.kind == "ranks"]
    assert [(s["covered"], s["missing"]) for s in said] == [(MODES[mode], [])] * len(said)
    assert [s["since"] for s in said] == ([0, GROWS_AT] if mode.endswith("-grows") else [0])
    compared = set()
    for key in single.keys:
        signal = CATALOGUE[key.signal]
        if signal.tap in OF_PARAMETERS and signal.reduction in COMPARED:
            (steps, values), (expected_steps, expected) = job.series(*_of(key)), single.series(*_of(key))
            assert list(steps) == list(expected_steps) == list(range(STEPS)), (mode, key)
            np.testing.assert_allclose(values, expected, rtol=RTOL, atol=1e-9, err_msg=f"{mode} {key}")
            compared.add(key.signal)
    assert {"gradient_norm", "weight_rms", "loss"} <= compared, compared
    if mode.startswith("fsdp1"):  # by a method of its own
        norms = [run.series(f"gradient_norm{what}")[1] for run, what in ((job, "_before_clip"), (single, ""))]
        np.testing.assert_allclose(*norms, rtol=RTOL)


@pytest.mark.parametrize("mode", sample(MODES, *SAMPLE))
def test_data_that_ranks_share_counts_once(mode, run_of):
    """Labels add up over ranks with batches of their own; the ranks of a tensor-parallel group have the same batch."""
    runs = run_of(mode).parent
    job, single = read_run(runs / mode), read_run(runs / "single")
    assert list(job.series("target_labels")[1]) == list(single.series("target_labels")[1])
    if mode == "tp":  # the standard error depends on the number of pairs of tokens
        for signal in ("geometry_stability", "geometry_stability_error"):
            (steps, values), (_, expected) = job.series(signal, "blocks.0"), single.series(signal, "blocks.0")
            assert len(steps)
            np.testing.assert_allclose(values, expected, rtol=RTOL, err_msg=signal)


def test_summands_of_gradients_are_added_up_and_what_is_made_of_single_ones_is_not_measured(once):
    """Of the norms under sequence parallelism, and of the bias behind a sum over ranks: each rank has a summand."""
    runs = _of_sample(once)
    job, single = read_run(runs / "tp_sequence"), read_run(runs / "single")
    [coverage] = [event.data for event in job.events if event.kind == "coverage"]
    assert {each["tap"] for each in coverage["unmeasured"] if each["reason"] == SPREAD} == {"descent"}
    assert only_moments("blocks.0.norm.weight") in {each["reason"] for each in coverage["notes"]}
    clipped = [key.layer for key in single.keys if key.signal == "layer_gradient_norm" and key.layer != "enter"]
    norms = np.sqrt(sum(single.series("layer_gradient_norm", layer)[1] ** 2 for layer in clipped))
    np.testing.assert_allclose(job.series("gradient_norm_before_clip")[1], norms, rtol=RTOL)


def test_sums_of_gradients_with_too_many_numbers_are_estimated_and_said_to_be(once):
    runs, norms = _of_sample(once), ["blocks.0", "blocks.1"]
    job, single = read_run(runs / "tp_sequence+rough"), read_run(runs / "single")
    [coverage] = [event.data for event in job.events if event.kind == "coverage"]
    said = {each["tap"]: each["reason"] for each in coverage["notes"]}
    assert said["estimated gradients"] == estimated(norms, ROUGH) and not coverage["missing"]
    for key in single.keys:
        if key.signal in ("layer_gradient_norm", "gradient_rms", "gradient_norm", "group_gradient_norm"):
            off = np.abs(job.series(*_of(key))[1] / single.series(*_of(key))[1] - 1)
            least = 1e-6 if key.layer in (*norms, "", "group0") else -1
            assert len(off) == STEPS and least < off.max() < (3 * deviation(ROUGH) if least > 0 else RTOL), (key, off)
        if key.signal == "gradient_abs_max":
            assert np.isnan(job.series(*_of(key))[1]).all() == (key.layer in norms), key


def test_of_classes_that_are_split_over_ranks_the_loss_and_the_labels_are_measured(run_of):
    runs = run_of("tp_loss").parent
    job, single = read_run(runs / "tp_loss"), read_run(runs / "single")
    for signal in ("token_loss", "target_classes", "target_mean"):
        np.testing.assert_allclose(job.series(signal)[1], single.series(signal)[1], rtol=RTOL, err_msg=signal)
    [coverage] = [event.data for event in job.events if event.kind == "coverage"]
    said = {entry["site"]: entry["reason"] for entry in coverage["unmeasured"] if entry["tap"] == "logits"}
    assert said == {"": CLASSES_ELSEWHERE} and not coverage["missing"]


@pytest.mark.parametrize("mode", sample(("tp", "tp_sequence", "2d"), "tp", "tp_sequence", "2d"))
def test_a_rank_misses_nothing_that_another_rank_counts(mode, run_of):
    """Norms and the outer layers are on all ranks, and the first one measures them."""
    for rank in range(MODES[mode]):
        assert not json.loads((run_of(mode).parent / f"{mode}-coverage-{rank}.json").read_text())["missing"]


def test_groups_of_ranks_that_train_models_of_their_own_have_runs_of_their_own(once):
    """The ranks are called as in the job, and the values of the first group are those of its own training."""
    runs = _of_sample(once)
    first, second, single = (read_run(runs / name) for name in ("groups-0", "groups-1", "single"))
    for run, ranks in ((first, {0, 1}), (second, {2, 3})):
        [said] = [event.data for event in run.events if event.kind == "ranks"]
        assert (said["covered"], said["world"], said["missing"]) == (2, 2, [])
        assert set(run.series("rank_loss_highest")[1]) <= ranks
        [coverage] = [event.data for event in run.events if event.kind == "coverage"]
        names = ", ".join(map(str, sorted(ranks)))
        assert any(f"trained by the ranks {names} of 4" in note["reason"] for note in coverage["notes"])
    for signal in ("loss", "gradient_norm"):
        np.testing.assert_allclose(first.series(signal)[1], single.series(signal)[1], rtol=RTOL)
        assert not np.allclose(second.series(signal)[1], single.series(signal)[1], rtol=RTOL)


def test_ranks_that_were_attached_before_their_process_group_was_made_are_one_run(run_of):
    """Where a launcher says what rank it is, another rank makes no run; else the run that it has made ends."""
    launched, spawned = run_of("ddp-launched"), run_of("manual-spawned")
    assert not launched.with_name(f"{launched.name}-2").exists()
    assert [(read_run(run).meta.world_size, read_run(run).meta.rank) for run in (launched, spawned)] == [(2, 0)] * 2
    other = read_run(spawned.with_name(f"{spawned.name}-2"))
    assert [event.data.get("reason") for event in other.events] == [None, "replaced"] and not len(other.steps)


def test_only_a_pipeline_is_said_to_be_one(modes, run_of):
    said = {mode: {e["reason"] for event in read_run(run_of(mode)).events if event.kind == "coverage"
                   for e in event.data.get("notes", ())} for mode in modes}  # fmt: skip
    assert {mode for mode in modes if WITHIN_STAGE in said[mode]} == {*PIPELINES, *INTERLEAVED} & set(modes)


def test_that_the_loss_is_on_another_rank_is_said_by_the_ranks_without_the_last_stage_only(modes, run_of):
    """Rank 0 of the V has the first stage and the last one. Rank 0 of the others knows the loss from the records."""
    for mode in sorted({*PIPELINES, *INTERLEAVED} & set(modes)):
        said = [OTHER_STAGE in (run_of(mode).parent / f"{mode}-coverage-{rank}.json").read_text()
                for rank in range(MODES[mode])]  # fmt: skip
        if mode == "v":
            assert said == [False, True]
        else:
            assert said[1:] == [True, False, False][4 - len(said) :], mode


def test_no_mode_has_an_error_and_what_is_sharded_says_why_it_is_not_measured(modes, run_of):
    for mode in modes:
        job = read_run(run_of(mode))
        assert not [event.data for event in job.events if event.kind == "error"], mode
        if mode.endswith("-grows"):
            continue  # its new layer is not called
        [coverage] = [event.data for event in job.events if event.kind == "coverage"]
        assert not coverage["missing"], mode
        if any(kind in mode for kind in ("sdp", "tp", "2d")):
            replicas = [k for k in job.keys if k.signal == "replica_difference_ratio"]
            found = {k.layer: job.series(*_of(k))[1] for k in replicas}
            assert not any(values.any() for values in found.values()), mode
            assert ("enter" in found) == ("tp" in mode), f"{mode}: every rank has all of it under tensor parallelism"
            assert "blocks.0.up" not in found, f"{mode}: each rank has a part"
        told = "replica" in {each["tap"] for each in coverage["unmeasured"]}
        assert told == any(kind in mode for kind in ("sdp", "tp", "2d")), mode
        spectra = {key.layer for key in job.keys if key.signal == "stable_rank"}
        said = {each["site"] for each in coverage["unmeasured"] if each["tap"] == "matrix"}
        assert "blocks.0.up.weight" in spectra | said, mode
        assert not spectra & said, mode


def _of(key):
    return key.signal, key.layer
