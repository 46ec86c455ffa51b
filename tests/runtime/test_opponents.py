"""Two models that are trained against each other are told from several that are trained together, or side by side."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stabwatch
from stabwatch.runlog import read_run

STEPS = 6


def _pair(noise=4, data=2):
    return nn.Linear(noise, data), nn.Linear(data, 1)


def _optimizers(*models):
    return [torch.optim.SGD(model.parameters(), lr=0.01) for model in models]


def _judged(judge, x, real):
    return F.binary_cross_entropy_with_logits(judge(x), torch.full((len(x), 1), float(real)))


def _game(generator, judge, of_g, of_d, freezes=False):
    """A GAN; `freezes`: the discriminator is frozen while the generator learns."""
    fake = generator(torch.randn(8, 4))
    of_d.zero_grad()
    (_judged(judge, torch.randn(8, 2), True) + _judged(judge, fake.detach(), False)).backward()
    of_d.step()
    judge.requires_grad_(not freezes)
    of_g.zero_grad()
    _judged(judge, fake, True).backward()
    of_g.step()
    judge.requires_grad_(True)


def _frozen(*args):
    _game(*args, freezes=True)


def _together(encoder, head, of_encoder, of_head):
    """One objective, two optimizers."""
    for optimizer in (of_encoder, of_head):
        optimizer.zero_grad()
    head(encoder(torch.randn(8, 4))).square().mean().backward()
    of_encoder.step()
    of_head.step()


def _side_by_side(one, other, of_one, of_other):
    """Two models that know nothing of each other."""
    for model, optimizer, width in ((one, of_one, 4), (other, of_other, 2)):
        optimizer.zero_grad()
        model(torch.randn(8, width)).square().mean().backward()
        optimizer.step()


def _frozen_features(head, features, of_head, of_features):
    """Features are frozen while what follows on them learns, which gives nothing back."""
    of_features.zero_grad()
    features(torch.randn(8, 2)).square().mean().backward()
    of_features.step()
    features.requires_grad_(False)
    of_head.zero_grad()
    head(features(torch.randn(8, 2)).expand(8, 4)).square().mean().backward()
    of_head.step()
    features.requires_grad_(True)


LOOPS = [(_game, 1.0), (_frozen, 1.0), (_together, 0.0), (_side_by_side, 0.0)]


@pytest.mark.parametrize(("loop", "expected"), LOOPS)
@pytest.mark.parametrize("watched", [0, 1])
def test_an_objective_that_goes_through_the_other_model(tmp_path, loop, expected, watched):
    torch.manual_seed(0)
    models = _pair()
    optimizers = _optimizers(*models)
    watch = stabwatch.attach(models[watched], optimizers[watched], run_dir=tmp_path, agent=False, verbose=False)
    for _ in range(STEPS):
        loop(*models, *optimizers)
    watch.detach()
    _, found = read_run(tmp_path).series("opponent_steps")
    assert max(found) == expected


def test_a_frozen_model_that_gives_features_to_another_one_plays_no_game(tmp_path):
    torch.manual_seed(0)
    models = _pair()
    optimizers = _optimizers(*models)
    watch = stabwatch.attach(models[1], optimizers[1], run_dir=tmp_path, agent=False, verbose=False)
    for _ in range(STEPS):
        _frozen_features(*models, *optimizers)
    watch.detach()
    assert max(read_run(tmp_path).series("opponent_steps")[1]) == 0.0


def test_one_model_with_an_optimizer_for_each_side_is_a_game_too(tmp_path):
    torch.manual_seed(0)
    models = _pair()
    optimizers = _optimizers(*models)
    watch = stabwatch.attach(nn.ModuleList(models), optimizers, run_dir=tmp_path, agent=False, verbose=False)
    for _ in range(STEPS):
        _game(*models, *optimizers)
    watch.detach()
    assert max(read_run(tmp_path).series("opponent_steps")[1]) == 1.0


def test_a_second_optimizer_that_steps_less_often_on_the_same_objective_is_no_opponent(tmp_path):
    torch.manual_seed(0)
    models = _pair()
    of_encoder, of_head = _optimizers(*models)
    watch = stabwatch.attach(models[0], of_encoder, run_dir=tmp_path, agent=False, verbose=False)
    for step in range(3 * STEPS):
        of_encoder.zero_grad()
        models[1](models[0](torch.randn(8, 4))).square().mean().backward()
        of_encoder.step()
        if step % 4 == 3:
            of_head.step()
            of_head.zero_grad()
    watch.detach()
    assert max(read_run(tmp_path).series("opponent_steps")[1]) == 0.0
