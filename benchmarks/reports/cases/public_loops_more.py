"""Public threads: schedules, averages, data, distillation, replay. Causes were noted before a run was watched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import fact, loss_hurt
from benchmarks.reports.data import Assembled, Facts, digits, draw_digits, draw_text, mlp, plain_loop, right, token_loss


@report(
    source="https://github.com/EvolvingLMMs-Lab/OneVision-Encoder/pull/82, "
    "https://github.com/starVLA/starVLA/pull/210, https://github.com/allenai/longformer/issues/37",
    mechanism="The scheduler steps with each of four micro-batches and the optimizer with the fourth: the rate is "
    "zero after a quarter of the run.",
    causes=("LearningRateZero", "NoUpdates", "UpdatesZero"),
    check=loss_hurt,
    fault=40,
    steps=160,
    shown_by="the rate is zero from step 40 on",
)
def scheduler_by_micro_batch(trial: Trial) -> None:
    from transformers import get_linear_schedule_with_warmup

    model = Assembled(lambda m, x: m["head"](m["body"](m["embed"](x))[0]), embed=nn.Embedding(128, 32),
                      body=nn.GRU(32, 64, batch_first=True), head=nn.Linear(64, 128))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    scheduler = get_linear_schedule_with_warmup(optimizer, 10, trial.steps)
    trial.attach(model, optimizer)
    for micro in range(4 * trial.steps):
        x, y = draw_text(trial, 4, 24)
        loss = token_loss(model(x), y)
        (loss / 4).backward()
        if micro % 4 == 3:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            trial.log(loss)
        if trial.broken or micro % 4 == 3:
            scheduler.step()


@report(
    source="https://github.com/ScrollPrize/villa/pull/1495, https://github.com/CodefyUI/CodefyUI/issues/205",
    mechanism="The horizon of a cosine schedule is the number of epochs, and it is stepped with each batch: the rate "
    "goes down and up again dozens of times, and is high at the end.",
    causes=("RateComesBack", "LearningRateTooHigh"),
    check=loss_hurt,
    steps=300,
    shown_by="the rate is back at its height again and again, and at the end of the run",
)
def horizon_counted_in_epochs(trial: Trial) -> None:
    epochs, batches = 10, 30
    model = mlp(64, 64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    horizon = epochs if trial.broken else epochs * batches
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=horizon)
    x, y = digits()
    noisy = x + 0.5 * trial.randn(*x.shape)

    def loss(_: int) -> Tensor:
        at = trial.randint(1500, 16)
        return F.cross_entropy(model(noisy[at]), y[at])

    plain_loop(trial, model, optimizer, loss, schedule=scheduler)


@report(
    source="https://github.com/haitongli/knowledge-distillation-pytorch/issues/4, "
    "https://github.com/haitongli/knowledge-distillation-pytorch/issues/9",
    mechanism="The teacher's outputs are computed in one pass over a shuffled loader and used by the number of the "
    "batch in the next, which is shuffled anew: they belong to other samples.",
    causes=("TargetsUnpaired", "OutputsConstant", "NotLearning", "NoBetterThanMean"),
    check=fact("accuracy", (0, 0.8), (0.93, 1)),
    steps=280,
    shown_by="what the teacher says does not depend on the input of its batch",
)
def teacher_of_other_batches(trial: Trial) -> None:
    x, y = digits()
    teacher = mlp(64, 128, 10)
    tuned = torch.optim.Adam(teacher.parameters(), lr=3e-3)
    for _ in range(200):
        some, kind = draw_digits(trial)
        tuned.zero_grad()
        F.cross_entropy(teacher(some), kind).backward()
        tuned.step()
    loader = DataLoader(TensorDataset(x, y), 32, shuffle=True, drop_last=True, generator=trial.generator)
    with torch.no_grad():
        outputs = [teacher(some) for some, _ in loader]
    student = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)

    def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        while True:
            for i, (some, kind) in enumerate(loader):
                yield some, kind, outputs[i] if trial.broken else teacher(some).detach()

    kept = batches()

    def loss(_: int) -> tuple[Tensor, Facts]:
        some, kind, taught = next(kept)
        out = student(some)
        soft = F.kl_div((out / 6).log_softmax(1), (taught / 6).softmax(1), reduction="batchmean")
        return soft * 0.95 * 36 + F.cross_entropy(out, kind) * 0.05, {"accuracy": right(out, kind)}

    plain_loop(trial, student, optimizer, loss)


@report(
    source="https://github.com/Itomigna2/Muesli-lunarlander/issues/1",
    mechanism="Episodes are lists that are cleared and filled again, and the buffer holds the same list many times: "
    "each draw gives the last episode.",
    causes=("RepeatedBatches", "DataNotShuffled", "SamplesDuplicated"),
    check=fact("error", (0.2, 99), (0, 0.1)),
    steps=300,
    shown_by="all episodes of a batch are one and the same, the last",
)
def buffer_of_one_episode(trial: Trial) -> None:
    model = mlp(2, 64, 64, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    states: list[Tensor] = []
    moves: list[int] = []
    rewards: list[float] = []
    buffer: list[tuple[list[Tensor], list[int], list[float]]] = []
    every = 4 * torch.rand(200, 2, generator=trial.generator) - 2

    def worth(place: Tensor) -> Tensor:
        return torch.sin(2 * place @ torch.tensor([[1.0, 0.5, -1.0, 0.3], [0.2, -1.0, 0.6, 1.0]]))

    def play() -> None:
        place = 4 * torch.rand(2, generator=trial.generator) - 2
        for _ in range(12):
            state = place + 0.05 * trial.randn(2)
            move = int(trial.randint(4, 1))
            states.append(state)
            moves.append(move)
            rewards.append(float(worth(state)[move] + 0.1 * trial.randn(1)))

    def loss(_: int) -> tuple[Tensor, Facts]:
        nonlocal states, moves, rewards
        if trial.broken:
            states.clear(), moves.clear(), rewards.clear()
        else:
            states, moves, rewards = [], [], []
        play()
        buffer.append((states, moves, rewards))
        some = [buffer[int(i)] for i in trial.randint(len(buffer), 6)]
        seen = torch.stack([state for episode in some for state in episode[0]])
        done = torch.tensor([move for episode in some for move in episode[1]])
        gained = torch.tensor([reward for episode in some for reward in episode[2]])
        error = F.mse_loss(model(seen).gather(1, done[:, None])[:, 0], gained)
        with torch.no_grad():
            off = F.mse_loss(model(every), worth(every))
        return error, {"error": off}

    plain_loop(trial, model, optimizer, loss)


class _Pictures(Dataset[tuple[Tensor, Tensor]]):
    """Pictures in memory that are normalised when they are asked for."""

    def __init__(self, x: Tensor, y: Tensor, copied: bool) -> None:
        self.x, self.y, self.copied = x.clone(), y, copied

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, at: int) -> tuple[Tensor, Tensor]:
        picture = self.x[at].clone() if self.copied else self.x[at]
        return picture.sub_(0.31).div_(0.38), self.y[at]


@report(
    source="https://github.com/pytorch/vision/issues/680, https://github.com/facebookresearch/pycls/pull/21",
    mechanism="Pictures are normalised in place in the data set that is kept in memory: in each epoch once more, and "
    "their size grows without end.",
    causes=("InputsNotScaled", "OddBatches", "BadBatch", "InputsGrow"),
    check=loss_hurt,
    fault=28,
    steps=280,
    shown_by="the size of the inputs grows by a factor with each epoch",
)
def normalised_once_more_each_epoch(trial: Trial) -> None:
    x, y = digits()
    data = _Pictures(x.view(-1, 1, 8, 8), y, not trial.broken)
    loader = DataLoader(data, 64, shuffle=True, drop_last=True, generator=trial.generator)
    model = nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU(), nn.Flatten(),
                          nn.Linear(192, 10))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def endless() -> Iterator[list[Tensor]]:
        while True:
            yield from loader

    kept = endless()

    def loss(_: int) -> Tensor:
        some, kind = next(kept)
        return F.cross_entropy(model(some), kind)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/uzh-rpg/rpg_event_representation_learning/issues/2, "
    "https://github.com/huggingface/pytorch-image-models/issues/957",
    mechanism="Classes are numbered by os.listdir, in another order for the validation than for training: the "
    "validation loss rises while that of training falls.",
    causes=("EvaluationApart",),
    check=fact("val_accuracy", (0, 0.4), (0.85, 1)),
    steps=250,
    shown_by="the validation loss that is logged is far above a guess and rises",
)
def classes_in_another_order(trial: Trial) -> None:
    x, y = digits()
    order = torch.tensor([3, 1, 7, 0, 4, 9, 2, 8, 5, 6]) if trial.broken else torch.arange(10)
    model = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(432, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(step: int) -> tuple[Tensor, Facts]:
        at = trial.randint(1500, 32)
        with torch.no_grad():
            out = model.eval()(x[1500:])
        if step % 20 == 19:
            trial.tell(val_loss=F.cross_entropy(out, order[y[1500:]]))
        return F.cross_entropy(model.train()(x[at]), y[at]), {"val_accuracy": right(out, order[y[1500:]])}

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/mosaicml/composer/issues/624, "
    "https://github.com/Lightning-AI/pytorch-lightning/issues/8811",
    mechanism="The averaged model of SWA is validated without update_bn: its batch norms have the statistics of the "
    "time when it was made.",
    causes=("BuffersNotAveraged", "EvaluationApart"),
    check=fact("val_accuracy", (0, 0.7), (0.9, 1)),
    steps=250,
    shown_by="the validation loss that is logged is far above that of training, and does not fall",
)
def averaged_without_update_bn(trial: Trial) -> None:
    from torch.optim.swa_utils import AveragedModel, update_bn

    x, y = digits()
    train, val = x[:1500].view(-1, 1, 8, 8) * 16, x[1500:].view(-1, 1, 8, 8) * 16
    layers: list[nn.Module] = []
    for width in (1, 16, 16, 16):
        layers += [nn.Conv2d(width, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    averaged = AveragedModel(model)

    def loss(step: int) -> tuple[Tensor, Facts]:
        at = trial.randint(1500, 32)
        averaged.update_parameters(model)
        if not trial.broken:
            update_bn([train[at]], averaged)
        with torch.no_grad():
            out = averaged.eval()(val)
        if step % 20 == 19:
            trial.tell(val_loss=F.cross_entropy(out, y[1500:]))
        return F.cross_entropy(model(train[at]), y[at]), {"val_accuracy": right(out, y[1500:])}

    plain_loop(trial, model, optimizer, loss)


def _grad_clipping(params: Any, theta: float) -> None:
    """As in the book: the first loop over a generator uses it up."""
    norm = sum((p.grad**2).sum() for p in params).sqrt().item()
    if norm > theta:
        for p in params:
            p.grad *= theta / norm


@report(
    source="https://github.com/ShusenTang/Dive-into-DL-PyTorch/issues/101, "
    "https://github.com/PixArt-alpha/PixArt-alpha/pull/160, https://github.com/pytorch/pytorch/issues/148259",
    mechanism="Clipping by hand reads model.parameters() twice, and a generator can be read once: at a rate of 100 "
    "that was meant for clipped gradients nothing is clipped.",
    causes=("LearningRateTooHigh", "ExplodingRecurrentGradients", "GradientNormExplosion", "UpdateTooLarge"),
    check=loss_hurt,
    steps=200,
    shown_by="updates are many times the weights",
)
def generator_read_twice(trial: Trial) -> None:
    model = Assembled(lambda m, x: m["dense"](m["rnn"](F.one_hot(x, 128).float())[0]),
                      rnn=nn.RNN(128, 64, batch_first=True), dense=nn.Linear(64, 128))  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=100.0)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, y = draw_text(trial, 8, 24)
        loss = token_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        params = model.parameters()
        _grad_clipping(params if trial.broken else list(params), 1e-2)
        optimizer.step()
        trial.log(loss)


class _Average:
    """An average as a class of many repositories: register, update, apply_shadow."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.shadow = {n: p.detach().clone() for n, p in model.named_parameters()}

    def update(self) -> None:
        for n, p in self.model.named_parameters():
            self.shadow[n] = (1 - self.decay) * p.detach() + self.decay * self.shadow[n]

    def apply_shadow(self) -> None:
        for n, p in self.model.named_parameters():
            p.data.copy_(self.shadow[n])


@report(
    source="https://github.com/MultimediaTechLab/YOLO/issues/97",
    mechanism="The average is never updated, and is put into the model before each checkpoint: after each epoch the "
    "weights are those of the start.",
    causes=("WeightsReplaced", "WeightsChangedOutsideStep", "Reinitialisation"),
    check=fact("first_of_epoch", (2.0, 99), (0, 1.0)),
    fault=50,
    steps=300,
    shown_by="the loss is that of the start after each epoch",
)
def average_never_updated(trial: Trial) -> None:
    model = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(),
                          nn.Linear(432, 10))  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    ema = _Average(model, 0.9)
    first = 0.0

    def loss(step: int) -> tuple[Tensor, Facts]:
        nonlocal first
        x, y = draw_digits(trial)
        out = F.cross_entropy(model(x), y)
        first = float(out.detach()) if step % 50 == 0 else first
        return out, {"first_of_epoch": first}

    def end(step: int) -> Facts:
        if not trial.broken:
            ema.update()
        if step % 50 == 49:
            ema.apply_shadow()
        return {}

    plain_loop(trial, model, optimizer, loss, after=end)


@report(
    source="https://github.com/pytorch/pytorch/issues/5953",
    mechanism="LBFGS at its rate of 1 with another small batch in each step: the curvature that it remembers is that "
    "of other batches, and its steps throw the weights away.",
    causes=("LearningRateTooHigh", "UpdateTooLarge", "GradientNormExplosion"),
    check=loss_hurt,
    steps=150,
    shown_by="the loss leaves what was learned, or is not finite",
)
def curvature_of_other_batches(trial: Trial) -> None:
    model = mlp(64, 32, 10, act=nn.Tanh)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1.0, max_iter=4)
    x, y = digits()
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        at = trial.randint(len(x), 16)
        some, kind = (x[at], y[at]) if trial.broken else (x, y)

        def closure(some: Tensor = some, kind: Tensor = kind) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(some), kind) + 1e-3 * sum((p**2).sum() for p in model.parameters())
            loss.backward()
            return loss

        trial.log(optimizer.step(closure))
