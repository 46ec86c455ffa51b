"""`watch.probe`: how far a fixed batch's representations have moved, and that asking changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import percentileofscore
from torch import nn

from stabwatch.demo import GPT, DemoConfig
from stabwatch.hooks.base.flags import PHASES
from stabwatch.kernels.geometry.naive import centred_cosine, drift
from tests.models import ARCHITECTURES, run
from tests.sampling import sample

BATCH = torch.randint(256, (3, 16), generator=torch.Generator().manual_seed(9))


def points(model):
    found = []
    handle = model.blocks[1].register_forward_hook(lambda m, args, out: found.append(out.detach().flatten(0, 1)))
    with torch.no_grad():
        model(BATCH)
    handle.remove()
    return found[0].double().numpy()


def tracked(steps, attach):
    """The points of a block before training and after each step, and the log."""
    torch.manual_seed(0)
    model = GPT(DemoConfig(width=32, layers=2, heads=2, context=16))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    watch = attach(model, optimizer)
    reference, seen = points(model), {}
    watch.probe(BATCH)
    for step in range(steps):
        data = torch.randint(256, (3, 17))
        optimizer.zero_grad()
        F.cross_entropy(model(data[:, :-1]).flatten(0, 1), data[:, 1:].flatten()).backward()
        optimizer.step()
        seen[step] = points(model)
    return reference, seen, attach.finish()


def test_the_lagged_cosine_and_its_rank_against_float64(attach):
    _, seen, log = tracked(5 * PHASES, attach)
    measured = log.series("geometry_drift", "blocks.1")[0].tolist()
    steps, found = log.series("activation_lagged_cosine", "blocks.1")
    assert steps.tolist() == measured[1:] and len(steps) == 4, "the first one has none before it"
    for before, step, cosine in zip(measured, steps, found, strict=False):
        assert cosine == pytest.approx(centred_cosine(seen[step], seen[before]), abs=1e-6)
    ranks = log.series("activation_lagged_cosine_rank", "blocks.1")[1]
    expected = [percentileofscore(found[: i + 1], found[i], "mean") / 100 for i in range(len(found))]
    assert ranks.tolist() == pytest.approx(expected)


def test_drift_and_coherence_against_float64(attach):
    reference, seen, log = tracked(2 * PHASES, attach)
    steps, found = log.series("geometry_drift", "blocks.1")
    assert len(steps) == 2, "once in a round of turns"
    coherence = log.series("shift_coherence", "blocks.1")[1]
    for step, moved, together in zip(steps, found, coherence, strict=True):
        assert moved == pytest.approx(drift(seen[step], reference), abs=1e-4)
        shift = seen[step] - reference
        mean = shift.mean(0)
        cosines = shift @ mean / (np.linalg.norm(shift, axis=1) * np.linalg.norm(mean))
        assert together == pytest.approx(cosines.mean(), abs=1e-5)


def test_a_model_that_does_not_move_does_not_drift_dropout_and_batch_norm_or_not(attach):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attach(model, optimizer).probe(torch.randn(30, 20))
    for _ in range(PHASES):
        model(torch.randn(8, 20)).sum().backward()
        optimizer.step()
    log = attach.finish()
    found = [log.series("geometry_drift", key.layer)[1] for key in log.keys if key.signal == "geometry_drift"]
    assert found and all(abs(v) < 1e-6 for values in found for v in values)


def test_a_new_batch_is_not_compared_with_the_one_before_and_equal_cosines_are_in_the_middle(attach):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    watch = attach(model, optimizer)
    for _ in range(2):
        watch.probe(torch.randn(30, 20))
        for _ in range(3 * PHASES):
            model(torch.randn(8, 20)).sum().backward()
            optimizer.step()
    log = attach.finish()
    keys = {key.signal: key.layer for key in log.keys}
    assert log.series("activation_lagged_cosine", keys["activation_lagged_cosine"])[1].tolist() == pytest.approx(
        [1] * 4
    )
    ranks = log.series("activation_lagged_cosine_rank", keys["activation_lagged_cosine_rank"])[1]
    assert ranks.tolist() == [0.5] * 4


INPUTS = {
    "gpt": BATCH % 64,
    "mlp": torch.randn(8, 20, generator=torch.Generator().manual_seed(2)),
    "cnn": torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(2)),
    "rnn": BATCH % 64,
    "vit": torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(2)),
    "regression": torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(2)),
}


@pytest.mark.parametrize("name", sample(ARCHITECTURES, "gpt", "cnn"))
def test_training_is_bit_identical(name, attach):
    def watched(model, optimizer):
        attach(model, optimizer).probe(INPUTS[name])

    plain, probed = run(name), run(name, before=watched)
    log = attach.finish()
    assert all(torch.equal(a, b) for a, b in zip(plain[0], probed[0], strict=True))
    assert torch.equal(plain[1], probed[1]) and plain[2] == probed[2]
    assert not [e for e in log.events if e.kind == "error"]
    assert any(len(log.series("geometry_drift", key.layer)[0]) for key in log.keys if key.signal == "geometry_drift")


def test_a_batch_that_does_not_fit_is_reported_and_training_goes_on(attach):
    plain = run("mlp")
    watched = run("mlp", before=lambda model, optimizer: attach(model, optimizer).probe(torch.ones(3, 7)))
    log = attach.finish()
    assert all(torch.equal(a, b) for a, b in zip(plain[0], watched[0], strict=True))
    (error,) = [e for e in log.events if e.kind == "error"]
    assert error.data["probe"] == "drift" and "shape" in error.data["message"]


def test_a_model_that_synchronises_over_ranks_is_not_called_alone(attach):
    model = nn.Sequential(nn.Linear(4, 4), nn.SyncBatchNorm(4))
    watch = attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    watch.probe(torch.randn(8, 4))
    unmeasured = {(e["tap"], e["site"]) for e in watch.coverage()["unmeasured"]}
    assert {("probe", "0"), ("probe", "1")} <= unmeasured
