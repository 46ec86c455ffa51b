"""Reports that were written again after the rules: none of these faults was known when the rules were made."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import fact, loss_hurt
from benchmarks.reports.data import (
    VOCABULARY,
    Assembled,
    TextModel,
    draw_digits,
    draw_text,
    mlp,
    plain_loop,
    token_loss,
)


@report(
    source="https://github.com/patrickloeber/pytorchTutorial/issues/19",
    mechanism="Gradients are set to zero between backward and step: no step changes anything.",
    causes=("NoUpdates", "ZeroGradients", "PartWithoutGradient"),
    check=loss_hurt,
    shown_by="gradients are seen in backward and are gone when the optimizer steps",
)
def zero_grad_before_step(trial: Trial) -> None:
    model = mlp(64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, y = draw_digits(trial)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        if trial.broken:
            optimizer.zero_grad()
        optimizer.step()
        trial.log(loss)


@report(
    source="https://github.com/isayev/ReLeaSE/issues/39, https://github.com/roman-vygon/triplet_loss_kws/issues/6",
    mechanism="The loss is computed again from a number, so that backward runs: no parameter gets a gradient.",
    causes=("NoUpdates", "ZeroGradients", "PartWithoutGradient"),
    check=loss_hurt,
    shown_by="no backward pass reaches the parameters",
)
def loss_from_a_number(trial: Trial) -> None:
    model = mlp(64, 64, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(_: int) -> Tensor:
        x, y = draw_digits(trial)
        found = F.cross_entropy(model(x), y)
        return torch.tensor(found.item(), requires_grad=True) if trial.broken else found

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/timoschick/pet/issues/36, https://github.com/microsoft/Swin-Transformer/issues/185",
    mechanism="Gradients are accumulated over more batches than an epoch has, counted from zero in each epoch: "
    "the optimizer never steps.",
    causes=("OptimizerNeverSteps",),
    check=loss_hurt,
    shown_by="250 forwards and backward passes without a step: nothing is recorded",
)
def step_never_reached(trial: Trial) -> None:
    model = mlp(64, 64, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    trial.attach(model, optimizer)
    epoch, every = 12, 16 if trial.broken else 4
    for step in range(trial.steps):
        x, y = draw_digits(trial)
        loss = F.cross_entropy(model(x), y)
        (loss / every).backward()
        if (step % epoch + 1) % every == 0:
            optimizer.step()
            optimizer.zero_grad()
        trial.log(loss)


@report(
    source="https://github.com/YXNTU/GeneralDyG/issues/6, https://github.com/avBuffer/UNet3plus_pth/issues/23",
    mechanism="A sigmoid before a loss that takes logits: the chance of a positive is never below a half.",
    causes=("DoubleSigmoid", "DoubleSoftmax"),
    check=loss_hurt,
    shown_by="all that the loss is given as logits is between 0 and 1; the loss stays at ln 2",
)
def double_sigmoid(trial: Trial) -> None:
    model = mlp(64, 64, 1)
    if trial.broken:
        model.append(nn.Sigmoid())
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(_: int) -> Tensor:
        x, y = draw_digits(trial)
        return F.binary_cross_entropy_with_logits(model(x)[:, 0], (y == 3).float())

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/DeepReinforcementLearning/DeepReinforcementLearningInAction/issues/32, "
    "https://github.com/ctallec/world-models/issues/10",
    mechanism="The softmax goes over the batch and not over the classes: probabilities of a sample do not add to one.",
    causes=("NotLogProbabilities",),
    check=loss_hurt,
    steps=300,
    shown_by="what nll_loss is given does not add up to 1 over the classes",
)
def softmax_over_batch(trial: Trial) -> None:
    model = mlp(64, 64, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, y = draw_digits(trial, 64)
        optimizer.zero_grad()
        logits = model(x)
        loss = F.nll_loss(logits.log_softmax(0 if trial.broken else 1), y)
        loss.backward()
        optimizer.step()
        trial.log(loss, accuracy=(logits.argmax(1) == y).float().mean())


@report(
    source="https://github.com/huggingface/transformers/pull/3519, https://github.com/huggingface/transformers/pull/3532",
    mechanism="The embedding is made larger after the optimizer got its parameters: the new one is in no optimizer.",
    causes=("ParametersNotInOptimizer",),
    check=lambda broken, twin: broken.final("moved") == 0 < twin.final("moved"),
    where=("embed",),
    shown_by="gradients of parameters that no optimizer steps",
)
def embedding_replaced(trial: Trial) -> None:
    model = TextModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.embed = nn.Embedding(VOCABULARY + 8, model.embed.embedding_dim)
    nn.init.normal_(model.embed.weight, std=0.02)
    if not trial.broken:
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    start = model.embed.weight.detach().clone()
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, y = draw_text(trial)
        optimizer.zero_grad()
        loss = token_loss(model(x), y)
        loss.backward()
        optimizer.step()
        trial.log(loss, moved=(model.embed.weight.detach() - start).abs().max())


@report(
    source="https://github.com/keras-team/keras/issues/255",
    mechanism="Pixels are divided as whole numbers: each input is zero.",
    causes=("InputsConstant", "NotLearning"),
    check=loss_hurt,
    shown_by="all samples of a batch are the same",
)
def inputs_all_zero(trial: Trial) -> None:
    model = mlp(64, 64, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(_: int) -> Tensor:
        x, y = draw_digits(trial)
        pixels = (x * 254).to(torch.uint8)
        return F.cross_entropy(model((pixels // 255 if trial.broken else pixels / 255).float()), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/nlpyang/PreSumm/issues/184, https://github.com/yl4579/PL-BERT/issues/55",
    mechanism="The tokenizer does not know the language: each token is the unknown one.",
    causes=("InputsConstant", "NotLearning"),
    check=loss_hurt,
    shown_by="all samples of a batch are the same",
)
def tokens_all_unknown(trial: Trial) -> None:
    model = Assembled(
        lambda m, x: m["head"](m["lstm"](m["embed"](x))[0][:, -1]),
        embed=nn.Embedding(VOCABULARY, 16), lstm=nn.LSTM(16, 32, batch_first=True), head=nn.Linear(32, 2),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def loss(_: int) -> Tensor:
        x, _ahead = draw_text(trial, 32, 16)
        y = (x == ord(" ")).sum(1).gt(2).long()
        return F.cross_entropy(model(torch.ones_like(x) if trial.broken else x), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/01-ai/Yi/issues/110, https://github.com/saahiluppal/catr/issues/12",
    mechanism="Padding counts in the loss: nine targets in ten are the padding, and the loss is low while nothing "
    "is learned of the text.",
    causes=("TargetsMostlyOne",),
    check=lambda broken, twin: broken.final("token") > 1.08 * twin.final("token"),
    steps=300,
    shown_by="the labels are mostly one; how frequent the most frequent one is is not measured",
)
def padding_counted(trial: Trial) -> None:
    model = TextModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, y = draw_text(trial, 8, 48)
        longest = 2 + trial.randint(6, 8)
        pad = torch.arange(48)[None] >= longest[:, None]
        x, y = x.masked_fill(pad, 0), y.masked_fill(pad, 0)
        optimizer.zero_grad()
        logits = model(x)
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-100 if trial.broken else 0)
        loss.backward()
        optimizer.step()
        trial.log(loss, token=F.cross_entropy(logits.detach().flatten(0, 1), y.flatten(), ignore_index=0))


@report(
    source="https://github.com/usr922/FST/issues/1",
    mechanism="The average goes the wrong way: the student is drawn to its teacher after each step.",
    causes=("WeightsChangedOutsideStep",),
    check=loss_hurt,
    shown_by="weights differ between the end of a step and the next forward, at each step",
)
def average_into_student(trial: Trial) -> None:
    model = mlp(64, 64, 10)
    teacher = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, y = draw_digits(trial)
        optimizer.zero_grad()
        logits = model(x)
        loss = F.cross_entropy(logits, y) + F.mse_loss(logits.softmax(-1), teacher(x).softmax(-1))
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for mean, p in zip(teacher.parameters(), model.parameters(), strict=True):
                p.lerp_(mean, 0.05) if trial.broken else mean.lerp_(p, 0.05)
        trial.log(loss)


@report(
    source="https://github.com/facebookresearch/SparseConvNet/issues/190, https://github.com/pytorch/pytorch/issues/1206",
    mechanism="One batch makes a running statistic of a normalisation NaN: training goes on, and the model can never "
    "be used in evaluation mode.",
    causes=("NonFiniteBuffer", "NonFiniteData"),
    check=lambda broken, twin: math.isnan(broken.final("evaluated")) and math.isfinite(twin.final("evaluated")),
    fault=83,
    shown_by="a buffer holds NaN; buffers are not measured",
)
def running_statistic_nan(trial: Trial) -> None:
    model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        x, y = draw_digits(trial)
        if step == 83 and trial.broken:
            with torch.no_grad():
                model(x.masked_fill(x > 0.9, torch.nan))  # a look at a batch that is not trained on
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.eval()
            evaluated = F.cross_entropy(model(x), y)
            model.train()
        trial.log(loss, evaluated=evaluated)


@report(
    source="https://github.com/huangzongmou/yolov8_Distillation/issues/16, "
    "https://github.com/haitongli/knowledge-distillation-pytorch/issues/25",
    mechanism="The teacher is trained with its student: both say the same of every sample.",
    causes=("EmbeddingCollapse", "LossConstant"),
    check=fact("spread", (0, 0.03), (0.05, 9)),
    steps=300,
    shown_by="outputs lose their spread; it is not measured for outputs (batch, features)",
)
def teacher_trained_too(trial: Trial) -> None:
    student = mlp(64, 64, 16)
    teacher = mlp(64, 64, 16)
    model = nn.ModuleDict({"student": student, "teacher": teacher})
    optimizer = torch.optim.Adam(model.parameters() if trial.broken else student.parameters(), lr=3e-3)
    if not trial.broken:
        teacher.requires_grad_(False)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, _ = draw_digits(trial, 64)
        optimizer.zero_grad()
        mine = student(x + 0.1 * trial.randn(64, 64))
        loss = F.mse_loss(mine, teacher(x))
        loss.backward()
        optimizer.step()
        trial.log(loss, spread=mine.detach().std(0).mean())
