"""`watch.log_policy`: divergences, ratios and advantages of all samples of a step, with what is not finite counted."""

from __future__ import annotations

import math

import pytest
import torch

import stabwatch
from stabwatch.runlog import read_run


def _recorded(folder, calls):
    """The values of the policy's signals in one step, with these calls of `log_policy` in it."""
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = stabwatch.attach(model, optimizer, run_dir=folder, agent=False, verbose=False, every_step=True)
    for args, more in calls:
        watch.log_policy(*args, **more)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    watch.detach()
    (batch,) = read_run(folder).blocks
    return {key.signal: float(value) for key, value in zip(batch.layout.keys, batch.values[0], strict=True)}


def test_the_numbers_are_those_of_all_samples_of_the_step(tmp_path):
    torch.manual_seed(0)
    logp, old, reference, rollout = (-1 - torch.rand(8, 5, dtype=torch.float64) for _ in range(4))
    advantage = torch.randn(8, dtype=torch.float64)
    advantage[2] = 0.0
    mask = torch.rand(8, 5) > 0.3
    halves = [
        ((logp[h], old[h], reference[h], rollout[h]), {"advantage": advantage[h], "mask": mask[h]})
        for h in (slice(0, 3), slice(3, 8))
    ]
    found = _recorded(tmp_path / "run", halves)
    ratio = (logp - old)[mask].exp()
    away = (reference - logp)[mask]
    apart = (old - rollout)[mask]
    every = advantage[:, None].expand(8, 5)[mask]
    expected = {
        "policy_entropy_estimate": -logp[mask].mean(),
        "policy_reference_kl_k1": -away.mean(),
        "policy_reference_kl_k3": (away.exp() - 1 - away).mean(),
        "policy_old_kl_k1": -ratio.log().mean(),
        "policy_old_kl_k3": (ratio - 1 - ratio.log()).mean(),
        "policy_clip_ratio": ((ratio < 0.8) | (ratio > 1.2)).double().mean(),
        "policy_ratio_max": ratio.max(),
        "policy_ratio_min": ratio.min(),
        "policy_effective_sample_ratio": ratio.mean() ** 2 / ratio.square().mean(),
        "rollout_kl_k3": (apart.exp() - 1 - apart).mean(),
        "rollout_logp_difference": apart.abs().mean(),
        "rollout_ratio_max": apart.max().exp(),
        "advantage_deviation": every.std(correction=0),
        "advantage_abs_max": every.abs().max(),
        "advantage_zero_ratio": (every == 0).double().mean(),
        "policy_nonfinite_total": 0.0,
    }
    assert {name: found[name] for name in expected} == pytest.approx(
        {n: float(x) for n, x in expected.items()}, rel=1e-4
    )


def test_what_is_not_finite_is_counted_and_left_out(tmp_path):
    logp = torch.tensor([-1.0, -2.0, math.nan, -3.0])
    old = torch.tensor([-1.0, -math.inf, -1.0, -3.0])
    found = _recorded(tmp_path / "run", [((logp, old), {})])
    assert found["policy_nonfinite_total"] == 2
    assert found["policy_entropy_estimate"] == pytest.approx(2.0)
    assert found["policy_ratio_max"] == found["policy_effective_sample_ratio"] == 1.0
    assert math.isnan(found.get("policy_reference_kl_k1", math.nan))


def test_a_clip_range_may_have_two_sides_and_shapes_that_differ_are_an_error_of_ours(tmp_path):
    logp = torch.log(torch.tensor([0.5, 0.9, 1.1, 1.25]))
    found = _recorded(tmp_path / "a", [((logp, torch.zeros(4)), {"clip": (0.4, 0.28)})])
    assert found["policy_clip_ratio"] == 0.25
    found = _recorded(tmp_path / "b", [((logp, torch.zeros(3)), {})])
    assert found["probe_errors_total"] == 1


def test_equal_rewards_have_no_advantage_whatever_the_scale(tmp_path):
    small = torch.tensor([[1e-5, -1e-5], [0.0, 1e-9]])
    found = _recorded(tmp_path / "run", [((torch.zeros(2, 2),), {"advantage": small})])
    assert found["advantage_zero_ratio"] == 0.5
