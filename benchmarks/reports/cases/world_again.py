"""Siblings of what the threads of `world_values` had shown to be missed, in other guises. Causes came before a run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import loss_hurt, not_finite
from benchmarks.reports.data import Assembled, Facts, draw_digits, draw_images, draw_text, plain_loop, right


@report(
    source="Sibling: the output of a regression is clamped, and a step leaves the range for good",
    mechanism="A steering angle is clamped to -1 to 1, and the rate is far too high: soon all outputs are beyond, "
    "where no gradient comes from.",
    causes=("ZeroGradients", "SaturatedUnits", "DeadUnits", "LearningRateTooHigh", "UpdateTooLarge"),
    check=loss_hurt,
    steps=250,
    shown_by="gradients are exactly zero from some step on, and the loss is not",
)
def angle_is_clamped(trial: Trial) -> None:
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ELU(), nn.Flatten(), nn.Linear(576, 64), nn.ELU(), nn.Linear(64, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0 if trial.broken else 0.05, momentum=0.9)

    def loss(_: int) -> Tensor:
        shift = 2 * torch.rand(32, generator=trial.generator) - 1
        road = (torch.arange(8) - 3.5 - 3 * shift[:, None]).abs() < 1
        images = road[:, None, None].float().expand(-1, 1, 8, -1) + 0.1 * trial.randn(32, 1, 8, 8)
        return F.mse_loss(model(images)[:, 0].clamp(-1, 1), shift)

    plain_loop(trial, model, optimizer, loss)


class _Spike(torch.autograd.Function):
    """A step whose slope is taken to be 1 within half of the threshold, and 0 beyond."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).float()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradients[0] * (x.abs() < 0.5)


@report(
    source="Sibling: a spiking network falls silent",
    mechanism="A penalty on the number of spikes is far too heavy: soon no unit spikes, nor is one near its threshold, "
    "and no gradient is left.",
    causes=("ZeroGradients", "DeadUnits", "LossConstant", "PartWithZeroGradient"),
    check=loss_hurt,
    steps=250,
    shown_by="gradients of all layers before the last are exactly zero, and the loss is that of a guess",
)
def spikes_fall_silent(trial: Trial) -> None:
    parts = {"first": nn.Linear(64, 96), "second": nn.Linear(96, 96), "head": nn.Linear(96, 10, bias=False)}
    weight = 50.0 if trial.broken else 0.01

    def forward(m: Assembled, x: Tensor) -> tuple[Tensor, Tensor]:
        one = two = torch.zeros(len(x), 96)
        out, spikes = torch.zeros(len(x), 10), torch.zeros(())
        for _ in range(4):
            one = 0.8 * one + m["first"](x)
            s = _Spike.apply(one - 0.5)
            two = 0.8 * two + m["second"](s)
            t = _Spike.apply(two - 0.5)
            one, two = one * (1 - s), two * (1 - t)
            out, spikes = out + m["head"](t), spikes + s.mean() + t.mean()
        return out, spikes

    model = Assembled(forward, **parts)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def loss(_: int) -> Tensor:
        x, y = draw_digits(trial)
        logits, spikes = model(x)
        return F.cross_entropy(logits, y) + weight * spikes

    plain_loop(trial, model, optimizer, loss)


@report(
    source="Sibling: a Llama in float16 is NaN after some hundred steps",
    mechanism="What the second feed-forward layer of a Llama adds is large, and in float16 it passes 65,504.",
    causes=("NonFiniteForward", "MixedPrecisionOverflow"),
    check=not_finite,
    where=("model.layers.1",),
    steps=150,
    shown_by="the down projection of the second layer gives infinity",
)
def llama_in_half(trial: Trial) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
                    max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    )  # fmt: skip
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(6e5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    kind = torch.float16 if trial.broken else torch.bfloat16

    def loss(_: int) -> Tensor:
        words, _y = draw_text(trial)
        with torch.autocast("cpu", kind):
            return model(input_ids=words, labels=words).loss

    plain_loop(trial, model, optimizer, loss)


@report(
    source="Sibling: boxes are learned and classes are not",
    mechanism="A detector's classes come from another file than its boxes: boxes are learned, and classes stay a "
    "guess.",
    causes=("NotLearning", "TargetsUnpaired"),
    check=loss_hurt,
    steps=400,
    shown_by="the cross-entropy stays at ln 10 after the boxes' loss has fallen",
)
def classes_of_another_file(trial: Trial) -> None:
    body = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                         nn.Linear(16 * 36, 64), nn.ReLU())  # fmt: skip
    model = Assembled(lambda m, x: (m["kind"](h := m["body"](x)), m["box"](h)), body=body, kind=nn.Linear(64, 10),
                      box=nn.Linear(64, 2))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(_: int) -> tuple[Tensor, Facts]:
        x, y = draw_images(trial)
        corner = trial.randint(5, 32, 2)
        canvas = torch.zeros(32, 1, 12, 12)
        for place, image, (top, left) in zip(canvas, x, corner.tolist(), strict=True):
            place[:, top : top + 8, left : left + 8] = image
        kind, box = model(canvas)
        y = trial.randint(10, 32) if trial.broken else y
        return F.cross_entropy(kind, y) + F.l1_loss(box, corner.float()), {"right": right(kind, y)}

    plain_loop(trial, model, optimizer, loss)
