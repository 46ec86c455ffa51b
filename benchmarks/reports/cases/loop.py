"""Mistakes of the training loop: what is called, when, and what is forgotten."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import StepLR

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import all_of, fact, loss_hurt
from benchmarks.reports.data import Assembled, draw_digits, draw_images, draw_text, mlp, plain_loop, token_loss
from benchmarks.reports.data import TextModel as Text


@report(
    source="https://github.com/pytorch/pytorch/issues/47175, https://github.com/IDEA-Research/DN-DETR/issues/19",
    mechanism="zero_grad is never called: each step uses the sum of all gradients so far.",
    causes=("GradientsAccumulate",),
    check=loss_hurt,
    fault=1,
    shown_by="gradient_norm 0.25 -> 55 in its 9 points at default settings, silent; `.grad` is not empty when the "
    "first backward of a step begins (not measured)",
)
def zero_grad_missing(trial: Trial) -> None:
    model = mlp(64, 64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, y = draw_digits(trial)
        if not trial.broken:
            optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        trial.log(loss)


@report(
    source="https://github.com/FreedomIntelligence/TextClassificationBenchmark/issues/20, "
    "https://github.com/salesforce/corr_based_prediction/issues/1",
    mechanism="zero_grad is called once an epoch: within an epoch each step uses the sum of all gradients since.",
    causes=("GradientsAccumulate",),
    check=loss_hurt,
    fault=1,
    shown_by="as zero_grad_missing, in saw teeth of one epoch; attention logits are what is named today",
)
def zero_grad_by_epoch(trial: Trial) -> None:
    model = Text()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        x, y = draw_text(trial)
        if step % (50 if trial.broken else 1) == 0:
            optimizer.zero_grad()
        loss = token_loss(model(x), y)
        loss.backward()
        optimizer.step()
        trial.log(loss)


@report(
    source="https://github.com/agokrani/distillKitPlus/issues/5, https://github.com/hirofumi0810/neural_sp/issues/168",
    mechanism="The losses of 16 micro-batches are summed and not averaged: the gradient is 16 times too large.",
    causes=("AccumulationNotAveraged", "LearningRateTooHigh", "UpdateTooLarge"),
    check=loss_hurt,
    steps=150,
    shown_by="gradient_norm 166 and update_to_weight_ratio 0.62 at step 8, weight_rms 0.07 -> 11; silent, as no "
    "rule may judge so early a point; 16 equal backward passes for a step",
)
def accumulation_not_averaged(trial: Trial) -> None:
    model = mlp(64, 64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        optimizer.zero_grad()
        total = 0.0
        for _ in range(16):
            x, y = draw_digits(trial, 8)
            loss = F.cross_entropy(model(x), y)
            (loss if trial.broken else loss / 16).backward()
            total += float(loss) / 16
        optimizer.step()
        trial.log(total)


@report(
    source="https://github.com/fartashf/vsepp/issues/4, https://github.com/ermongroup/ncsn/issues/2, "
    "https://github.com/wkentaro/pytorch-fcn/issues/57",
    mechanism="The first validation leaves the model in eval mode: dropout is off and batch norm uses old statistics.",
    causes=("EvalModeInTraining",),
    check=fact("training", (0, 0), (1, 1)),
    fault=60,
    shown_by="`module.training` is False in a forward whose loss is backpropagated; worse, after eval() no loss is"
    " recorded any more (last at step 50), and nothing says so",
)
def eval_for_good(trial: Trial) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(512, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        if step % 60 == 59:
            model.eval()
            with torch.no_grad():
                model(draw_images(trial)[0])
            if not trial.broken:
                model.train()
        x, y = draw_images(trial)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        trial.log(loss, training=model.training)


def _scheduled(trial: Trial, gamma: float, epoch: int) -> None:
    """A text model; the scheduler steps each `epoch` steps."""
    model = Text()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = StepLR(optimizer, step_size=2, gamma=gamma)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        x, y = draw_text(trial)
        optimizer.zero_grad()
        loss = token_loss(model(x), y)
        loss.backward()
        optimizer.step()
        trial.log(loss, rate=optimizer.param_groups[0]["lr"])
        if step % epoch == epoch - 1:
            scheduler.step()


@report(
    source="https://github.com/ivadomed/ivadomed/pull/55",
    mechanism="The scheduler steps once a batch where once an epoch is meant: the learning rate is nearly "
    "zero at once.",
    causes=("LearningRateZero",),
    check=all_of(loss_hurt, fact("rate", (0, 1e-9), (1e-4, 1))),
    shown_by="learning_rate 3e-3 -> 2e-39 over 25 points, loss flat at 4.4 of 4.9: no rule reads a rate that vanishes",
)
def scheduler_by_batch(trial: Trial) -> None:
    _scheduled(trial, gamma=0.5, epoch=1 if trial.broken else 60)


@report(
    source="https://github.com/LINCellularNeuroscience/VAME/issues/26",
    mechanism="The scheduler that should change nothing has gamma 0: the learning rate is exactly zero from "
    "its step on.",
    causes=("LearningRateZero",),
    check=all_of(loss_hurt, fact("rate", (0, 0), (1e-4, 1))),
    fault=100,
    shown_by="learning_rate exactly 0 in 10 of 25 points, update_rms exactly 0 at the only layer point after it "
    "(step 128)",
)
def scheduler_gamma_zero(trial: Trial) -> None:
    _scheduled(trial, gamma=0.0 if trial.broken else 1.0, epoch=50)


@report(
    source="https://github.com/IntelLabs/distiller/issues/145",
    mechanism="Resuming sets the learning rate back to its first value, a hundred times what it had decayed to.",
    causes=("LearningRateSpike",),
    check=loss_hurt,
    fault=150,
    shown_by="learning_rate 0.008 -> 0.8 (a jump of 100) and loss 0.11 -> 2.4 in 7 points; LearningRateSpike waits"
    " for another alarm, and LossDivergence for more points",
)
def rate_reset_at_resume(trial: Trial) -> None:
    model = mlp(64, 64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.8, momentum=0.9)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        resumed = trial.broken and step >= 150
        optimizer.param_groups[0]["lr"] = 0.8 * (1.0 if resumed else 0.01 ** min(1.0, step / 120)) * min(1, step / 20)
        x, y = draw_digits(trial)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        trial.log(loss)


@report(
    source="https://github.com/EvolvingLMMs-Lab/OneVision-Encoder/pull/65, "
    "https://github.com/NVlabs/stylegan2-ada-pytorch/issues/108",
    mechanism="Resuming does not load the optimizer's state: Adam's moments are empty, its next steps far too large.",
    causes=("OptimizerStateLost",),
    check=lambda broken, twin: max(broken.losses[150:165]) > 3 * max(twin.losses[150:165]),
    fault=150,
    steps=220,
    shown_by="the optimizer's step counter goes back to 1 (not measured); the spike of 1.4 lies between two "
    "recorded steps, and no layer is measured between steps 128 and 256",
)
def resume_without_state(trial: Trial) -> None:
    model = mlp(64, 128, 128, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        if step == 150 and trial.broken:
            optimizer.state.clear()
        x, y = draw_digits(trial, 384)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        trial.log(loss)


@report(
    source="https://github.com/PKU-YuanGroup/Open-Sora-Plan/issues/186, "
    "https://github.com/MultimediaTechLab/YOLO/issues/97",
    mechanism="After a validation the model keeps the averaged weights of long ago: training is set back.",
    causes=("WeightsChangedOutsideStep", "WeightsReplaced"),
    check=lambda broken, twin: broken.losses[100] > 1.3 * twin.losses[100],
    fault=100,
    steps=200,
    shown_by="weights differ between the end of step 99 and the forward of step 100; no layer is measured between "
    "steps 64 and 128",
)
def average_left_in(trial: Trial) -> None:
    model = Text()
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        if step == 100:
            kept = copy.deepcopy(model.state_dict())
            model.load_state_dict(average.state_dict())
            if not trial.broken:
                model.load_state_dict(kept)
        x, y = draw_text(trial)
        optimizer.zero_grad()
        loss = token_loss(model(x), y)
        loss.backward()
        optimizer.step()
        trial.log(loss)
        for mean, weight in zip(average.parameters(), model.parameters(), strict=True):
            mean.data.lerp_(weight.data, 0.005)


@report(
    source="https://github.com/deeplearning4j/deeplearning4j/issues/8737, "
    "https://github.com/JulianKlug/PerfusionCT-Net/issues/34",
    mechanism="Weight decay outweighs the gradient: the weights go to zero and the loss to that of a uniform guess.",
    causes=("WeightsDecayAway", "WeightDecayTooLarge"),
    check=all_of(loss_hurt, fact("norm", (0, 1), (5, 1e9))),
    steps=300,
    shown_by="weight_rms 0.07 -> 1e-13 in every layer at 10 points, update_to_weight_ratio 0.1 = rate x decay at "
    "each of them",
)
def weights_decay_away(trial: Trial) -> None:
    model = mlp(64, 64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1.0 if trial.broken else 1e-4)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, y = draw_digits(trial)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        trial.log(loss, norm=sum(float(p.square().sum()) for p in model.parameters()) ** 0.5)


@report(
    source="https://github.com/keras-team/keras/issues/7057",
    mechanism="The learning rate is far too high: one step kills all ReLUs, and the output is constant ever after.",
    causes=("DeadUnits", "LearningRateTooHigh", "UpdateTooLarge"),
    check=loss_hurt,
    where=("0", "2", "4"),
    shown_by="dead_units_ratio; the loss settles at that of a constant guess",
)
def relus_die(trial: Trial) -> None:
    model = mlp(64, 96, 96, 10)
    rate = 3.0 if trial.broken else 0.1
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)

    def loss(step: int) -> torch.Tensor:
        x, y = draw_digits(trial)
        return F.cross_entropy(model(x), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/pytorch/pytorch/issues/2769, https://github.com/oxwhirl/pymarl/issues/161",
    mechanism="Gradients of a plain recurrent network over 60 steps explode, and nothing clips them.",
    causes=("ExplodingRecurrentGradients", "GradientNormExplosion"),
    check=loss_hurt,
    where=("rnn",),
    steps=200,
    shown_by="gradient_norm of step 0 is many times the clipping bound; the data are blamed (NonFiniteData), wrongly",
)
def recurrent_explosion(trial: Trial) -> None:
    rnn, head = nn.RNN(2, 48, batch_first=True, nonlinearity="relu"), nn.Linear(48, 1)
    model = Assembled(lambda m, x: m["head"](m["rnn"](x)[0][:, -1]), rnn=rnn, head=head)
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(1.02 * torch.eye(48))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x = torch.rand(16, 60, 2, generator=trial.generator)
        y = (x[..., 0] * x[..., 1]).mean(1, keepdim=True)
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        if not trial.broken:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        trial.log(loss)
