"""Gradients that do not arrive: parts that are cut off, not registered, or in no optimizer."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import all_of, fact, loss_hurt
from benchmarks.reports.data import (
    Assembled,
    TextModel,
    draw_digits,
    draw_images,
    draw_text,
    mlp,
    plain_loop,
    token_loss,
)


def _moved(module: nn.Module, before: list[Tensor]) -> float:
    """Largest change of a module's parameters since `before`."""
    return max(float((p.detach() - q).abs().max()) for p, q in zip(module.parameters(), before, strict=True))


@report(
    source="https://github.com/huggingface/pytorch-openai-transformer-lm/pull/6, "
    "https://github.com/adapter-hub/adapters/issues/260",
    mechanism="The optimizer is made before the head is replaced: the new head gets gradients and is never updated.",
    causes=("ParametersNotInOptimizer",),
    check=all_of(loss_hurt, fact("moved", (0, 0), (1e-3, 1e3))),
    where=("head",),
    shown_by="known when the watch is attached: trainable parameters that are in no param group; "
    "layer_gradient_norm is never measured for `head`",
)
def head_not_in_optimizer(trial: Trial) -> None:
    model = Assembled(lambda m, x: m["head"](m["body"](x).relu()), body=mlp(64, 24, 24), head=nn.Linear(24, 2))
    early = torch.optim.Adam(model.parameters(), lr=2e-3)
    model["head"] = nn.Linear(24, 10)
    nn.init.normal_(model["head"].weight, 0, 0.02)
    optimizer = early if trial.broken else torch.optim.Adam(model.parameters(), lr=2e-3)
    before = [p.detach().clone() for p in model["head"].parameters()]
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, y = draw_digits(trial)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        trial.log(loss, moved=_moved(model["head"], before))


class _Listed(nn.Module):
    """A deep network whose middle layers are in a list."""

    def __init__(self, plain: bool) -> None:
        super().__init__()
        middle = [nn.Linear(48, 48) for _ in range(3)]
        self.first, self.last = nn.Linear(64, 48), nn.Linear(48, 10)
        self.middle = middle if plain else nn.ModuleList(middle)
        for layer in middle:
            nn.init.normal_(layer.weight, 0, 0.08)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.middle:
            x = layer(x).relu()
        return self.last(x)


@report(
    source="https://github.com/pytorch/pytorch/issues/715, https://github.com/pytorch/pytorch/issues/1053, "
    "https://github.com/kanezaki/pytorch-unsupervised-segmentation/pull/6",
    mechanism="Layers are kept in a plain list: the model does not know their parameters, and nothing trains them.",
    causes=("ParametersNotRegistered",),
    check=loss_hurt,
    where=("middle",),
    shown_by="a module that is called in the forward and is no submodule of the model",
)
def layers_in_plain_list(trial: Trial) -> None:
    model = _Listed(plain=trial.broken)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(step: int) -> Tensor:
        x, y = draw_digits(trial)
        return F.cross_entropy(model(x), y)

    plain_loop(trial, model, optimizer, loss)


class _Adapted(nn.Module):
    """A frozen linear layer with a low-rank adapter."""

    def __init__(self, base: nn.Linear, zero: bool, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features) * (0.0 if zero else 0.2))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.lora_a.T @ self.lora_b.T


@report(
    source="https://github.com/huggingface/peft/issues/1402, https://github.com/tloen/alpaca-lora/issues/357",
    mechanism="Both factors of the adapters begin at zero: their gradients are exactly zero, and B stays zero "
    "for ever.",
    causes=("PartWithoutGradient", "ZeroGradients"),
    check=all_of(loss_hurt, fact("b", (0, 0), (1e-3, 1e3))),
    where=("0", "2"),
    shown_by="gradient_norm exactly 0 at 9 of 9 points, gradient_zero_ratio 1 at its only point: ZeroGradients "
    "reads the one that is measured once",
)
def adapters_stay_zero(trial: Trial) -> None:
    layers = mlp(64, 64, 10)
    model = nn.Sequential(_Adapted(layers[0], trial.broken), layers[1], _Adapted(layers[2], trial.broken))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, y = draw_digits(trial)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        trial.log(loss, b=model[2].lora_b.detach().norm())


@report(
    source="https://github.com/locuslab/open-unlearning/issues/178, https://github.com/ostris/ai-toolkit/issues/1054",
    mechanism="Re-entrant checkpointing of blocks whose input needs no gradient: the adapters inside never get one.",
    causes=("PartWithoutGradient",),
    check=fact("b", (0, 0), (1e-2, 1e3)),
    where=("text.blocks",),
    steps=150,
    shown_by="gradient_rms, update_rms and all others are absent for blocks.*.feed.0, which the coverage does not "
    "mention",
)
def checkpoint_cuts_adapters(trial: Trial) -> None:
    text = TextModel()

    def forward(parts: Assembled, tokens: Tensor) -> Tensor:
        hidden = parts["text"].embed(tokens)
        for block in parts["text"].blocks:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of just this
                hidden = checkpoint(block, hidden, use_reentrant=trial.broken)
        return parts["text"].head(parts["text"].norm(hidden))

    text.requires_grad_(False)
    text.head.requires_grad_(True)
    for block in text.blocks:
        block.feed[0] = _Adapted(block.feed[0], zero=False)
    model = Assembled(forward, text=text)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, y = draw_text(trial)
        optimizer.zero_grad()
        loss = token_loss(model(x), y)
        loss.backward()
        optimizer.step()
        trial.log(loss, b=text.blocks[0].feed[0].lora_b.detach().norm())


@report(
    source="https://github.com/myscience/open-genie/issues/6, https://github.com/NVlabs/DG-Net/issues/59",
    mechanism="Features are detached before the loss: the encoder that makes them never gets a gradient.",
    causes=("PartWithoutGradient",),
    check=loss_hurt,
    where=("encoder",),
    shown_by="layer_gradient_norm is absent for the encoder, which is trainable and in the optimizer",
)
def features_detached(trial: Trial) -> None:
    encoder = nn.Sequential(nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 6))

    def forward(parts: Assembled, x: Tensor) -> Tensor:
        features = parts["encoder"](x)
        return parts["head"](features.detach() if trial.broken else features)

    model = Assembled(forward, encoder=encoder, head=mlp(6, 32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(step: int) -> Tensor:
        x, y = draw_images(trial)
        return F.cross_entropy(model(x), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/wangle53/CSA-CDGAN/issues/5",
    mechanism="The generator's loss is computed from detached images: the generator never learns.",
    causes=("PartWithoutGradient",),
    check=fact("distance", (0.8, 9), (0, 0.6)),
    where=("",),
    steps=400,
    shown_by="gradient_norm has no point in 400 steps; the coverage notes that no step updated these parameters; "
    "the loss recorded (1.83) is not the generator's (0.61)",
)
def generator_detached(trial: Trial) -> None:
    generator, judge = mlp(4, 32, 2), mlp(2, 32, 1)
    of_g = torch.optim.Adam(generator.parameters(), lr=2e-3)
    of_d = torch.optim.Adam(judge.parameters(), lr=2e-3)
    trial.attach(generator, of_g)
    ones = torch.ones(64, 1)
    for _ in range(trial.steps):
        real, fake = 1.5 + 0.3 * trial.randn(64, 2), generator(trial.randn(64, 4))
        of_d.zero_grad()
        bce = F.binary_cross_entropy_with_logits
        (bce(judge(real), ones) + bce(judge(fake.detach()), 0 * ones)).backward()
        of_d.step()
        of_g.zero_grad()
        loss = bce(judge(fake.detach() if trial.broken else fake), ones)
        loss.backward()
        of_g.step()
        trial.log(loss, distance=(fake.mean(0) - 1.5).detach().abs().max())


@report(
    source="https://discuss.pytorch.org, thread 84911 (as told in a public collection of silent bugs)",
    mechanism="The wrong part is frozen: the optimizer holds only frozen parameters, the trainable ones are in none.",
    causes=("ParametersNotInOptimizer",),
    check=loss_hurt,
    where=("1", "4"),
    shown_by="known when the watch is attached; today no record is written, and `analyze` says that nothing has "
    "been recorded yet",
)
def optimizer_of_frozen(trial: Trial) -> None:
    model = nn.Sequential(
        nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(),
        nn.Linear(48, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 10),
    )  # fmt: skip
    for name, p in model.named_parameters():
        p.requires_grad = name[0] in ("14" if trial.broken else "6")
    optimizer = torch.optim.Adam(model[6].parameters(), lr=3e-3)

    def loss(step: int) -> Tensor:
        x, y = draw_digits(trial)
        return F.cross_entropy(model(x), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/soumith/ganhacks/issues/36, https://github.com/iwtw/pytorch-TP-GAN/issues/6",
    mechanism="The generator minimises ln(1 - D): once the discriminator is sure, its gradient is zero.",
    causes=("VanishingGradients", "ZeroGradients", "DiscriminatorCollapse"),
    check=fact("distance", (2, 90), (0, 1)),
    where=("",),
    steps=400,
    shown_by="gradient_norm 0.23 -> 0.0003 in 18 points; the recorded loss is that of binary_cross_entropy and not"
    " its negative, which is trained",
)
def generator_saturates(trial: Trial) -> None:
    generator, judge = mlp(4, 32, 2), mlp(2, 64, 1)
    of_g = torch.optim.SGD(generator.parameters(), lr=0.05)
    of_d = torch.optim.Adam(judge.parameters(), lr=3e-3)
    trial.attach(generator, of_g)
    ones, bce = torch.ones(64, 1), F.binary_cross_entropy_with_logits
    for _ in range(trial.steps):
        fake = generator(trial.randn(64, 4))
        for _ in range(5):
            of_d.zero_grad()
            real = 6 + 0.3 * trial.randn(64, 2)
            (bce(judge(real), ones) + bce(judge(fake.detach()), 0 * ones)).backward()
            of_d.step()
        of_g.zero_grad()
        loss = -bce(judge(fake), 0 * ones) if trial.broken else bce(judge(fake), ones)
        loss.backward()
        of_g.step()
        trial.log(loss, distance=(fake.mean(0) - 6).detach().abs().max())
