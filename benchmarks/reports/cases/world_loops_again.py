"""Siblings of the reports of `world_loops.py` and `world_loops_more.py`, in other guises, noted before a run."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Outcome, Trial, report
from benchmarks.reports.checks import fact, loss_hurt
from benchmarks.reports.data import Assembled, Facts, draw_images, draw_text, mlp, plain_loop, token_loss


def _lower(broken: Outcome, twin: Outcome) -> bool:
    return broken.final() < 0.7 * twin.final()


@report(
    source="A sibling of https://github.com/huggingface/transformers/issues/20797: proteins, nn.TransformerEncoder",
    mechanism="Of a sequence of amino acids every sixth is hidden, and all of them count in the loss.",
    causes=("TargetsNotHidden", "TooGood", "LossTooGood"),
    check=_lower,
    steps=300,
    shown_by="most targets are the input at the same place",
)
def residues_that_are_seen_count(trial: Trial) -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True)
    model = Assembled(lambda m, x: m["head"](m["body"](m["embed"](x) + m["place"].weight)), embed=nn.Embedding(24, 32),
                      place=nn.Embedding(30, 32), body=nn.TransformerEncoder(layer, 2),
                      head=nn.Linear(32, 22))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(_: int) -> Tensor:
        chain = (trial.randint(22, 16, 1) + torch.cumsum(1 + (trial.randint(4, 16, 30) == 0), 1)) % 22
        hidden = torch.rand(16, 30, generator=trial.generator) < 1 / 6
        wanted = chain if trial.broken else chain.masked_fill(~hidden, -100)
        return token_loss(model(chain.masked_fill(hidden, 23)), wanted)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of https://github.com/huggingface/trl/issues/976: a Llama, padded on the left, a loop by hand",
    mechanism="Padding on the left is the token that ends a text, and labels of that token are ignored.",
    causes=("EndNeverTaught",),
    check=fact("ends", (0, 0.3), (0.7, 1)),
    steps=200,
    shown_by="the token that ends each text is never a target",
)
def padding_on_the_left_is_the_end(trial: Trial) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=2, max_position_embeddings=32, bos_token_id=1, eos_token_id=2)  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    pad = 2 if trial.broken else 0
    place = torch.arange(16)

    def loss(_: int) -> tuple[Tensor, Facts]:
        length = 4 + trial.randint(9, 16, 1)
        letter = 4 + trial.randint(30, 16, 1)
        back = 15 - place
        text = torch.where(back == 0, 2, 4 + (letter + length - back) % 30)
        rows = torch.where(back == 4, 3, torch.where(back > length, pad, text))
        out = model(input_ids=rows, attention_mask=(back <= length).long(), labels=rows.masked_fill(rows == pad, -100))
        return out.loss, {"ends": out.logits[:, -2].detach().softmax(-1)[:, 2].mean()}

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of https://github.com/Lightning-AI/pytorch-lightning/issues/6379: a warm-up from zero, by hand",
    mechanism="A cosine schedule with a warm-up is made and never stepped: its first rate is zero.",
    causes=("ScheduleStandsStill", "LearningRateZero", "NoUpdates", "UpdatesZero"),
    check=loss_hurt,
    steps=250,
    shown_by="the rate is zero in each step",
)
def cosine_that_never_begins(trial: Trial) -> None:
    from transformers import get_cosine_schedule_with_warmup

    model = Assembled(lambda m, x: m["head"](m["body"](m["embed"](x))[0]), embed=nn.Embedding(128, 24),
                      body=nn.GRU(24, 48, batch_first=True), head=nn.Linear(48, 128))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = get_cosine_schedule_with_warmup(optimizer, 20, trial.steps)

    def loss(_: int) -> Tensor:
        x, y = draw_text(trial, 8, 24)
        return token_loss(model(x), y)

    plain_loop(trial, model, optimizer, loss, schedule=None if trial.broken else schedule)


@report(
    source="A sibling of https://github.com/Lightning-AI/pytorch-lightning/issues/20105: a RegNet in a loop by hand",
    mechanism="The body comes in evaluation mode, and the loop never calls model.train().",
    causes=("EvalModeInTraining",),
    check=loss_hurt,
    steps=200,
    shown_by="the body is in evaluation mode while it is trained",
)
def loop_that_never_says_train(trial: Trial) -> None:
    from transformers import RegNetConfig, RegNetModel

    config = RegNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], groups_width=4)
    model = Assembled(lambda m, x: m["head"](m["body"](F.interpolate(x, size=16)).pooler_output.flatten(1)),
                      body=RegNetModel(config).eval(), head=nn.Linear(16, 10))  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if not trial.broken:
        model.train()

    def loss(_: int) -> Tensor:
        x, y = draw_images(trial)
        return F.cross_entropy(model(x), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of https://github.com/huggingface/trl/issues/6700: adversarial training, parts frozen by name",
    mechanism="All parameters whose names do not begin with `model.` are frozen, and none begins so: none is trained, "
    "and the gradient in the pictures lets backward pass.",
    causes=("UpdatesZero", "NoUpdates", "PartWithoutGradient", "OptimizerNeverSteps"),
    check=loss_hurt,
    steps=200,
    shown_by="no parameter has a gradient",
)
def frozen_by_a_wrong_name(trial: Trial) -> None:
    model = nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU(), nn.Flatten(),
                          nn.Linear(192, 10))  # fmt: skip
    kept = "model." if trial.broken else ""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(kept))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def loss(_: int) -> Tensor:
        x, y = draw_images(trial)
        x = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
        seen = (x + 0.02 * grad.sign()).detach().requires_grad_()
        return F.cross_entropy(model(seen), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of https://github.com/thu-ml/tianshou/issues/40: a forecast of twelve hours by one number",
    mechanism="The last layer gives one number, and the targets are twelve hours: each is compared with all.",
    causes=("LossBroadcast",),
    check=loss_hurt,
    steps=300,
    shown_by="the loss compares each output with twelve targets",
)
def one_number_for_twelve_hours(trial: Trial) -> None:
    model = mlp(24, 48, 1 if trial.broken else 12)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    hours = torch.arange(36) * 2 * math.pi / 12

    def loss(_: int) -> Tensor:
        wave = torch.sin(hours + 6 * trial.randn(32, 1)) * (1 + trial.randn(32, 1).abs()) + 0.1 * trial.randn(32, 36)
        return F.smooth_l1_loss(model(wave[:, :24]), wave[:, 24:])

    plain_loop(trial, model, optimizer, loss)
