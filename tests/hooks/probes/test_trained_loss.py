"""The objective whose gradient a step uses, read at the roots of backward passes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stabwatch.hooks.probes.trained_loss import MOST, TrainedLoss, objective, remember_scaling, scale_of, scaler_of


def backward(watched: TrainedLoss, loss: torch.Tensor, gradient: torch.Tensor | None = None) -> None:
    """What the patched `backward` does around the original."""
    watched.begin()
    loss.backward(gradient)
    if watched.reached():
        watched.add(objective([loss], None if gradient is None else [gradient]))


@pytest.fixture
def net() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 2)


def loss_of(net: nn.Module, batch: int = 3) -> torch.Tensor:
    return net(torch.ones(batch, 4)).square().mean()


def test_micro_batches_add_up_as_their_gradients_do(net) -> None:
    watched = TrainedLoss.of(net.parameters())
    parts = [loss_of(net) / 2, loss_of(net, 5) / 2]
    for part in parts:
        backward(watched, part)
    assert watched.take() == pytest.approx(sum(p.item() for p in parts))
    assert watched.take() is None


def test_the_loss_before_the_scaler_is_meant(net) -> None:
    watched = TrainedLoss.of(net.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    loss = loss_of(net)
    scaled = scaler.scale(loss)
    remember_scaling(loss, scaled, scaler._scale)
    assert scale_of([scaled]).item() == 2.0**16
    backward(watched, scaled)
    assert watched.take() == loss.item()


@pytest.mark.parametrize(
    ("combined", "wanted"),
    [(lambda a, b: a + 0.25 * b, lambda a, b: a + 0.25 * b), (lambda a, b: sum([a, b]) / 2, lambda a, b: (a + b) / 2),
     (lambda a, b: torch.stack([a, b]).mean(), lambda a, b: (a + b) / 2)],
)  # fmt: skip
@pytest.mark.parametrize("kept", [True, False])
def test_sums_and_multiples_of_scaled_losses_are_unscaled(kept, combined, wanted, net) -> None:
    watched = TrainedLoss.of(net.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    losses = [loss_of(net), loss_of(net, 5)]
    scaled = [scaler.scale(loss) for loss in losses]
    remember_scaling(losses, scaled, scaler._scale, scaler)
    root = combined(*scaled)
    if not kept:
        scaled.clear()
    assert scale_of([root]).item() == 2.0**10 and scaler_of([root]) is scaler
    backward(watched, root)
    assert float(watched.take()) == pytest.approx(wanted(*[loss.item() for loss in losses]))


def test_a_disabled_scaler_changes_nothing(net) -> None:
    watched = TrainedLoss.of(net.parameters())
    loss = loss_of(net)
    scaled = torch.amp.GradScaler("cpu", enabled=False).scale(loss)
    remember_scaling(loss, scaled, None)
    assert scale_of([scaled]) is None
    backward(watched, scaled)
    assert watched.take() == loss.item()


def test_gradients_that_are_thrown_away_take_their_loss_with_them(net) -> None:
    watched = TrainedLoss.of(net.parameters())
    for set_to_none in (True, False):
        backward(watched, 100 * loss_of(net))
        net.zero_grad(set_to_none)
        last = loss_of(net)
        backward(watched, last)
        assert watched.take() == pytest.approx(last.item())
        net.zero_grad()


def test_the_discriminator_of_a_gan_has_its_own_loss(net) -> None:
    generator, critic = nn.Linear(4, 4), net
    mine, other = TrainedLoss.of(critic.parameters()), TrainedLoss.of(generator.parameters())

    def both(loss: torch.Tensor) -> None:
        for watched in (mine, other):
            watched.begin()
        loss.backward()
        for watched in (mine, other):
            if watched.reached():
                watched.add(objective([loss], None))

    for _ in range(3):
        critic.zero_grad()
        real = loss_of(critic)
        both(real)
        fake = critic(generator(torch.ones(3, 4)).detach()).mean()
        both(fake)
        assert mine.take() == pytest.approx((real + fake).item())
        generator.zero_grad()
        fooled = -critic(generator(torch.ones(3, 4))).mean()
        both(fooled)
        assert other.take() == pytest.approx(fooled.item())


def test_a_loss_per_token_with_a_mask(net) -> None:
    watched = TrainedLoss.of(net.parameters())
    losses = F.cross_entropy(net(torch.ones(3, 4)), torch.tensor([0, 1, 1]), reduction="none")
    mask = torch.tensor([0.5, 0.0, 0.5])
    backward(watched, losses, mask)
    assert watched.take() == pytest.approx((losses * mask).sum().item())


def test_an_activation_of_a_pipeline_stage_is_no_loss() -> None:
    hidden = torch.ones(2, 3, 4, requires_grad=True)
    assert objective([hidden * 2], [torch.ones(2, 3, 4)]) is None


def test_several_roots_are_one_objective(net) -> None:
    a, b = loss_of(net), 3 * loss_of(net, 2)
    assert objective([a, b], None) == pytest.approx((a + b).item())


def test_a_backward_that_reaches_no_parameter_of_the_watch_is_not_counted(net) -> None:
    watched = TrainedLoss.of(net.parameters())
    backward(watched, loss_of(nn.Linear(4, 2)))
    assert watched.take() is None


def test_many_parameters_are_sampled_and_frozen_ones_left_out() -> None:
    many = nn.ModuleList(nn.Linear(1, 1) for _ in range(400))
    for frozen in many[:10]:
        frozen.requires_grad_(False)
    watched = TrainedLoss.of(many.parameters())
    assert 0 < len(watched.parameters) <= MOST
    assert all(p.requires_grad for p in watched.parameters)
