"""Siblings of the public threads whose kinds were mended: other guises. Causes were noted before a run was watched."""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import fact, loss_hurt
from benchmarks.reports.data import Assembled, Facts, digits, draw_text, mlp, plain_loop, right, table, token_loss


@report(
    source="A sibling of https://github.com/uzh-rpg/rpg_event_representation_learning/issues/2: two vocabularies",
    mechanism="The vocabulary of the validation text is built from that text: its words have other numbers than those "
    "of training.",
    causes=("EvaluationApart",),
    check=fact("val_right", (0, 0.2), (0.25, 1)),
    steps=300,
    shown_by="the validation loss that is logged is that of the start, and rises",
)
def vocabulary_of_its_own(trial: Trial) -> None:
    order = torch.randperm(128, generator=trial.generator) if trial.broken else torch.arange(128)
    model = Assembled(lambda m, x: m["head"](m["body"](m["embed"](x))[0]), embed=nn.Embedding(128, 48),
                      body=nn.GRU(48, 160, batch_first=True), head=nn.Linear(160, 128))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=6e-3)
    seen, said = (order[x] for x in draw_text(trial, 24, 24))

    def loss(step: int) -> tuple[Tensor, Facts]:
        with torch.no_grad():
            out = model(seen)
        if step % 15 == 14:
            trial.tell(**{"valid/loss": token_loss(out, said)})
        x, y = draw_text(trial, 8, 24)
        return token_loss(model(x), y), {"val_right": (out.argmax(-1) == said).float().mean()}

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of https://github.com/mosaicml/composer/issues/624: an average that is never updated, in "
    "Lightning",
    mechanism="The average that is validated is a copy that nothing updates: it is the model of the start.",
    causes=("EvaluationApart", "BuffersNotAveraged"),
    check=fact("val_accuracy", (0, 0.4), (0.85, 1)),
    steps=280,
    shown_by="the validation loss that is logged is that of an untrained model",
)
def validated_as_it_began(trial: Trial) -> None:
    import lightning

    x, y = digits()
    loader = DataLoader(TensorDataset(x[:1500], y[:1500]), 32, shuffle=True, drop_last=True, generator=trial.generator)
    kept = [0.0]

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(64, 64, 10)
            self.ema = copy.deepcopy(self.net).requires_grad_(False)

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            loss = F.cross_entropy(self.net(batch[0]), batch[1])
            trial.log(loss, val_accuracy=kept[0])
            return loss

        def on_train_batch_end(self, *_: Any) -> None:
            if not trial.broken:
                for old, new in zip(self.ema.parameters(), self.net.parameters(), strict=True):
                    old.data.lerp_(new.data, 0.1)

        def validation_step(self, batch: list[Tensor], _: int) -> None:
            out = self.ema(batch[0])
            kept[0] = float(right(out, batch[1]))
            self.log("val_loss", F.cross_entropy(out, batch[1]))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=4e-3)

    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_steps=trial.steps, val_check_interval=20, accelerator="cpu", **off)
    module = Module()
    trial.attach(trainer)
    trainer.fit(module, loader, DataLoader(TensorDataset(x[1500:], y[1500:]), 300))


@report(
    source="A sibling of https://github.com/MultimediaTechLab/YOLO/issues/97: `p.data = q.data` of a stale best model",
    mechanism="At the end of an epoch the best model is put back by `p.data = q.data.clone()`, and what counts as "
    "best is the first one for ever: the score is compared the wrong way.",
    causes=("WeightsReplaced", "WeightsChangedOutsideStep", "Reinitialisation"),
    check=fact("first_of_epoch", (1.5, 99), (0, 1.0)),
    fault=40,
    steps=240,
    shown_by="the loss is that of the start after each epoch",
)
def first_model_is_best_for_ever(trial: Trial) -> None:
    x, y = digits()
    model = nn.Sequential(nn.Unflatten(1, (8, 8)), nn.Conv1d(8, 24, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    best, lowest, first = copy.deepcopy(model), 99.0, 0.0

    def loss(step: int) -> tuple[Tensor, Facts]:
        nonlocal first
        at = trial.randint(1500, 32)
        out = F.cross_entropy(model(x[at]), y[at])
        first = float(out.detach()) if step % 40 == 0 else first
        return out, {"first_of_epoch": first}

    def end(step: int) -> Facts:
        nonlocal best, lowest
        if step % 40 == 39:
            with torch.no_grad():
                score = float(F.cross_entropy(model(x[1500:]), y[1500:]))
            if not trial.broken and score < lowest:
                best, lowest = copy.deepcopy(model), score
            for p, q in zip(model.parameters(), best.parameters(), strict=True):
                p.data = q.data.clone()
        return {}

    plain_loop(trial, model, optimizer, loss, after=end)


@report(
    source="A sibling of https://github.com/MultimediaTechLab/YOLO/issues/97: a hard update that goes the wrong way",
    mechanism="The hard update of a Q-network goes the wrong way, `online.data.copy_(target.data)`: each 60 steps the "
    "network that is trained is the one of the start again.",
    causes=("WeightsReplaced", "WeightsChangedOutsideStep", "Reinitialisation"),
    check=fact("off", (0.5, 99), (0, 0.3)),
    fault=60,
    steps=300,
    shown_by="the error is that of the start after each copy",
)
def hard_update_the_wrong_way(trial: Trial) -> None:
    online = mlp(6, 64, 64, 3)
    target = copy.deepcopy(online).requires_grad_(False)
    optimizer = torch.optim.Adam(online.parameters(), lr=3e-3)
    way = trial.randn(6, 3)
    off = 0.0

    def loss(step: int) -> tuple[Tensor, Facts]:
        nonlocal off
        state, after, move = trial.randn(64, 6), trial.randn(64, 6), trial.randint(3, 64, 1)
        reward = (state @ way).gather(1, move)[:, 0]
        wanted = reward + 0.1 * target(after).max(1).values
        error = F.smooth_l1_loss(online(state).gather(1, move)[:, 0], wanted)
        off = float(error.detach()) if step % 60 == 0 else off
        return error, {"off": off}

    def update(step: int) -> Facts:
        if step % 60 == 59:
            for p, q in zip(online.parameters(), target.parameters(), strict=True):
                if trial.broken:
                    p.data.copy_(q.data)
                else:
                    q.data.copy_(p.data)
        return {}

    plain_loop(trial, online, optimizer, loss, after=update)


class _Waves(Dataset[tuple[Tensor, Tensor]]):
    """Recordings in memory; a gain is drawn each time one is asked for."""

    def __init__(self, waves: Tensor, kind: Tensor, trial: Trial) -> None:
        self.waves, self.kind, self.trial = waves, kind, trial

    def __len__(self) -> int:
        return len(self.waves)

    def __getitem__(self, at: int) -> tuple[Tensor, Tensor]:
        wave = self.waves[at] if self.trial.broken else self.waves[at].clone()
        wave *= 2 + 0.5 * torch.rand(1, generator=self.trial.generator)
        return wave, self.kind[at]


@report(
    source="A sibling of https://github.com/pytorch/vision/issues/680: a random gain that is kept",
    mechanism="The gain of an augmentation is multiplied into the recordings that are kept in memory: they become "
    "twice as loud with each epoch.",
    causes=("InputsGrow", "InputsNotScaled", "OddBatches", "BadBatch"),
    check=loss_hurt,
    fault=20,
    steps=260,
    shown_by="the size of the inputs doubles with each epoch",
)
def gain_is_kept(trial: Trial) -> None:
    kind = trial.randint(4, 640)
    place = torch.arange(48) / 48 * 6.28
    waves = torch.sin(place * (1 + kind[:, None]) + 6 * trial.randn(640, 1)) + 0.5 * trial.randn(640, 48)
    loader = DataLoader(_Waves(waves, kind, trial), 32, shuffle=True, generator=trial.generator)
    model = nn.Sequential(nn.Unflatten(1, (1, 48)), nn.Conv1d(1, 16, 7), nn.ReLU(), nn.Conv1d(16, 16, 7), nn.ReLU(),
                          nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 4))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    trial.attach(model, optimizer)
    step = 0
    while step < trial.steps:
        for wave, mine in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(wave), mine)
            loss.backward()
            optimizer.step()
            trial.log(loss)
            step += 1


@report(
    source="A sibling of https://github.com/facebookresearch/pycls/pull/21: a column in other units, row by row",
    mechanism="Rows are turned into other units in place as they are read (`row *= 10`): with each epoch once more.",
    causes=("InputsGrow", "InputsNotScaled", "OddBatches", "BadBatch"),
    check=loss_hurt,
    fault=12,
    steps=200,
    shown_by="the size of the inputs is ten times that of the epoch before",
)
def units_turned_each_epoch(trial: Trial) -> None:
    x, y = table("cancer")
    rows = x.clone() / 10
    model = mlp(30, 32, 32, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        at = step % 11
        if at == 0:
            order = torch.randperm(len(rows), generator=trial.generator)
        mine = order[at * 50 : at * 50 + 50]
        if trial.broken:
            rows[mine] *= 10
        some = rows[mine] if trial.broken else 10 * rows[mine]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(some), y[mine])
        loss.backward()
        optimizer.step()
        trial.log(loss)


@report(
    source="A sibling of https://github.com/Lightning-AI/pytorch-lightning/issues/21901: build_model() freezes",
    mechanism="The run is resumed by a program that builds the model with a frozen encoder, as at first, and loads "
    "model and optimizer of the stage in which it was trained: it is frozen for the rest.",
    causes=("FrozenInOptimizer", "PartWithoutGradient", "LayerStandsStill"),
    check=loss_hurt,
    steps=250,
    shown_by="the encoder is in the optimizer, with its momentum, and requires no gradient",
)
def built_frozen_and_loaded(trial: Trial) -> None:
    x, y = digits()

    def build(frozen: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = Assembled(lambda m, x: m["head"](m["encoder"](x)), encoder=mlp(64, 10, 10), head=nn.Linear(10, 10))
        model["encoder"].requires_grad_(not frozen)
        return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def loss_of(model: nn.Module) -> Tensor:
        at = trial.randint(1500, 32)
        return F.cross_entropy(model(x[at]), y[at])

    before, optimizer = build(False)
    for _ in range(20):
        optimizer.zero_grad()
        loss_of(before).backward()
        optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        torch.save({"model": before.state_dict(), "optimizer": optimizer.state_dict()}, f"{folder}/last.pt")
        kept = torch.load(f"{folder}/last.pt")
    model, optimizer = build(trial.broken)
    model.load_state_dict(kept["model"])
    optimizer.load_state_dict(kept["optimizer"])
    plain_loop(trial, model, optimizer, lambda _: loss_of(model))


@report(
    source="A sibling of https://github.com/pytorch/pytorch/issues/5953: a penalty on the weights that follows them",
    mechanism="Momentum SGD far too fast, with the squares of the weights added to the loss: the weights are thrown "
    "away, and most of the loss is the penalty then.",
    causes=("LearningRateTooHigh", "UpdateTooLarge", "GradientNormExplosion"),
    check=loss_hurt,
    steps=200,
    shown_by="updates are as large as the weights, and the cross-entropy is in the thousands as well",
)
def penalty_follows_the_weights(trial: Trial) -> None:
    model = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 12, 3), nn.Tanh(), nn.Flatten(), nn.Linear(432, 10))
    rate = 12.0 if trial.broken else 0.05
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    x, y = digits()

    def loss(step: int) -> Tensor:
        at = trial.randint(1500, 32)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 100)
        return F.cross_entropy(model(x[at]), y[at]) + 1e-2 * sum(p.square().sum() for p in model.parameters())

    plain_loop(trial, model, optimizer, loss)
