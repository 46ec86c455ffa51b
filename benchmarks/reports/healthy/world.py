"""Healthy workloads in the manner of programs that people publish: games, forecasts and detection."""

from __future__ import annotations

import copy
import math
import random
from collections import deque

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from benchmarks.reports.case import Trial, healthy
from benchmarks.reports.checks import falls, reaches
from benchmarks.reports.data import mlp

SIDE = 6


class _Snake:
    """A worm of one cell on a small board looks for food; a state is what it sees around it."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.at, self.heading, self.turns = [SIDE // 2, SIDE // 2], 0, 0
        self.food = [random.randrange(SIDE), random.randrange(SIDE)]

    def _ahead(self, turn: int) -> list[int]:
        step = ((1, 0), (0, 1), (-1, 0), (0, -1))[(self.heading + turn) % 4]
        return [self.at[0] + step[0], self.at[1] + step[1]]

    def state(self) -> np.ndarray:
        walls = [not all(0 <= v < SIDE for v in self._ahead(turn)) for turn in (0, 1, -1)]
        way = [self.heading == i for i in range(4)]
        food = [self.food[0] < self.at[0], self.food[0] > self.at[0], self.food[1] < self.at[1],
                self.food[1] > self.at[1]]  # fmt: skip
        return np.array([*walls, *way, *food], dtype=int)

    def play(self, action: int) -> tuple[float, bool]:
        self.heading = (self.heading + (0, 1, -1)[action]) % 4
        self.at, self.turns = self._ahead(0), self.turns + 1
        if not all(0 <= v < SIDE for v in self.at) or self.turns > 60:
            return -10.0, True
        if self.at == self.food:
            self.food, self.turns = [random.randrange(SIDE), random.randrange(SIDE)], 0
            return 10.0, False
        return 0.0, False


@healthy(learns=reaches("reward", 0.3), steps=1500)
def snake_for_beginners(trial: Trial) -> None:
    """Deep Q-learning of a video course: each move is learned at once, each game's end from memory."""
    game, memory, games = _Snake(), deque[tuple[np.ndarray, int, float, np.ndarray, bool]](maxlen=10_000), 0
    model = nn.Sequential(nn.Linear(11, 128), nn.ReLU(), nn.Linear(128, 3))
    optimizer, criterion = torch.optim.Adam(model.parameters(), lr=1e-3), nn.MSELoss()
    trial.attach(model, optimizer)
    recent: deque[float] = deque([0.0] * 150, maxlen=150)

    def train_step(rows: list[tuple[np.ndarray, int, float, np.ndarray, bool]]) -> None:
        states, actions, rewards, following, over = zip(*rows, strict=True)
        state = torch.tensor(np.array(states), dtype=torch.float)
        after = torch.tensor(np.array(following), dtype=torch.float)
        pred = model(state)
        target = pred.clone()
        for i in range(len(over)):
            goal = rewards[i]
            if not over[i]:
                goal = rewards[i] + 0.9 * torch.max(model(after[i])).item()
            target[i][actions[i]] = goal
        optimizer.zero_grad()
        loss = criterion(target.detach(), pred)
        loss.backward()
        optimizer.step()
        trial.log(loss, reward=sum(recent) / len(recent))

    for _ in range(trial.steps):
        state = game.state()
        if random.randint(0, 200) < 80 - games:
            action = random.randint(0, 2)
        else:
            with torch.no_grad():
                action = int(model(torch.tensor(state, dtype=torch.float)).argmax())
        reward, over = game.play(action)
        recent.append(reward)
        row = (state, action, reward, game.state(), over)
        memory.append(row)
        train_step([row])
        if over:
            games += 1
            game.reset()
            train_step(random.sample(memory, min(len(memory), 200)))


@healthy(learns=falls(0.3, "valid"), steps=900)
def share_prices(trial: Trial) -> None:
    """Prices scaled to [0, 1], windows of 20 days, an LSTM with dropout, epochs, early stopping on a held-out year."""
    days = torch.arange(900.0)
    price = 60 + 0.04 * days + 8 * torch.sin(days / 37) + 1.2 * trial.randn(900).cumsum(0)
    price = (price - price[:720].min()) / (price[:720].max() - price[:720].min())
    windows = price.unfold(0, 21, 1)
    train, valid = windows[:700], windows[700:]
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(train[:, :20, None], train[:, 20:]), 32, shuffle=True
    )

    class Forecast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(1, 32, 2, batch_first=True, dropout=0.2)
            self.fc = nn.Linear(32, 1)

        def forward(self, x: Tensor) -> Tensor:
            out, _ = self.lstm(x)
            return self.fc(out[:, -1])

    model = Forecast()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    trial.attach(model, optimizer)
    best, kept, waited, step, error = math.inf, copy.deepcopy(model.state_dict()), 0, 0, 1.0
    while step < trial.steps and waited < 15:
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            trial.log(loss, valid=error)
        model.eval()
        with torch.no_grad():
            error = float(F.mse_loss(model(valid[:, :20, None]), valid[:, 20:]))
        waited = 0 if error < best else waited + 1
        if error < best:
            best, kept = error, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)


LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))


class _Board(nn.Module):
    """A residual network of a noughts-and-crosses board with a policy head and a value head."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.res = nn.ModuleList(
            nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
                          nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32))
            for _ in range(2)
        )  # fmt: skip
        self.policy = nn.Sequential(nn.Conv2d(32, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 9))
        self.value = nn.Sequential(nn.Conv2d(32, 1, 1), nn.BatchNorm2d(1), nn.ReLU(), nn.Flatten(), nn.Linear(9, 32),
                                   nn.ReLU(), nn.Linear(32, 1), nn.Tanh())  # fmt: skip

    def forward(self, board: Tensor) -> tuple[Tensor, Tensor]:
        board = board.view(-1, 3, 3)
        x = self.start(torch.stack((board == 1, board == -1, board == 0), 1).float())
        for block in self.res:
            x = F.relu(x + block(x))
        return self.policy(x), self.value(x)[:, 0]


def _won(board: Tensor) -> Tensor:
    """Whether the player 1 of each board has a line."""
    return torch.stack([(board[:, list(line)] == 1).all(1) for line in LINES], 1).any(1)


def _self_play(net: _Board, games: int) -> tuple[Tensor, Tensor, Tensor]:
    """Games against itself; the policy to learn looks one move ahead with the value head."""
    net.eval()
    boards = torch.zeros(games, 9)
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    done = torch.zeros(games, dtype=torch.bool)
    result, mover = torch.zeros(games), 1
    for turn in range(9):
        with torch.no_grad():
            logits, _ = net(boards)
            moved = boards[:, None] + torch.eye(9)
            free = boards == 0
            _, reply = net(-moved.flatten(0, 1))
            gain = torch.where(_won(moved.flatten(0, 1)), 1.0, -reply).view(games, 9)
            pi = (logits + 4 * gain).masked_fill(~free, -torch.inf).softmax(-1)
        pi = torch.where(done[:, None], torch.ones(9) / 9, pi)
        rows.append((boards.clone(), pi, torch.where(done, torch.nan, float(mover))))
        move = torch.multinomial(pi, 1)
        boards = torch.where(done[:, None], boards, boards.scatter(1, move, 1.0))
        just = _won(boards) & ~done
        result[just] = mover
        done = done | just | (turn == 8)
        boards, mover = -boards, -mover
    board, pi, who = (torch.cat(parts) for parts in zip(*rows, strict=True))
    kept = ~who.isnan()
    return board[kept], pi[kept], (who * result.repeat(9))[kept]


@healthy(learns=falls(0.85), steps=600)
def self_play(trial: Trial) -> None:
    """AlphaZero of noughts and crosses: rounds of self-play, then epochs over the last games, SGD with rate drops."""
    net = _Board()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [250, 450], 0.2)
    trial.attach(net, optimizer)
    window: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=4)
    for step in range(trial.steps):
        if step % 30 == 0:
            window.append(_self_play(net, 64))
            boards, policies, results = (torch.cat(parts) for parts in zip(*window, strict=True))
            net.train()
        at = trial.randint(len(boards), 64)
        logits, value = net(boards[at])
        policy_loss = -(policies[at] * logits.log_softmax(-1)).sum(-1).mean()
        loss = policy_loss + F.mse_loss(value, results[at])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        trial.log(loss)


def _squares(trial: Trial, size: int, canvas: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures with one square of three colours each: images, boxes (x, y, side in [0, 1]), classes."""
    side = 5 + trial.randint(4, size)
    at = (torch.rand(size, 2, generator=trial.generator) * (canvas - side[:, None])).long()
    colour = trial.randint(3, size)
    x = 0.1 * torch.rand(size, 3, canvas, canvas, generator=trial.generator)
    for i in range(size):
        x[i, colour[i], at[i, 1] : at[i, 1] + side[i], at[i, 0] : at[i, 0] + side[i]] = 1
    box = torch.cat((at + side[:, None] / 2, side[:, None]), 1) / canvas
    return x, box, colour


@healthy(learns=falls(0.2), steps=500)
def grid_of_boxes(trial: Trial) -> None:
    """YOLO from scratch on coloured squares: sums of squares with the weights 5 and 0.5, SGD with momentum."""

    def conv(inner: int, outer: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.LeakyReLU(0.1)]

    model = nn.Sequential(*conv(3, 16, 2), *conv(16, 32, 2), *conv(32, 32, 2), nn.Flatten(), nn.Linear(288, 128),
                          nn.LeakyReLU(0.1), nn.Dropout(0.2), nn.Linear(128, 9 * 7))  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, box, colour = _squares(trial, 16, 24)
        cell = (box[:, :2] * 3).long()
        target = torch.zeros(16, 9, 7)
        rows = torch.cat((box[:, :2] * 3 - cell, box[:, 2:].sqrt(), torch.ones(16, 1), F.one_hot(colour, 3)), 1)
        target[torch.arange(16), cell[:, 1] * 3 + cell[:, 0]] = rows
        out = model(x).view(16, 9, 7)
        there = target[..., 3] == 1
        place = F.mse_loss(out[there][:, :3], target[there][:, :3], reduction="sum")
        seen = F.mse_loss(out[there][:, 3], target[there][:, 3], reduction="sum")
        empty = F.mse_loss(out[~there][:, 3], target[~there][:, 3], reduction="sum")
        kind = F.mse_loss(out[there][:, 4:], target[there][:, 4:], reduction="sum")
        loss = (5 * place + seen + 0.5 * empty + kind) / 16
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trial.log(loss)


class _Detr(nn.Module):
    """A convolutional stem, a transformer, queries, a class and a box for each query of each decoder layer."""

    def __init__(self, queries: int = 6, width: int = 32) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.ReLU(), nn.Conv2d(16, width, 1))
        self.places = nn.Parameter(torch.rand(36, width))
        self.queries = nn.Parameter(torch.rand(queries, width))
        encoder = nn.TransformerEncoderLayer(width, 4, 64, 0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(encoder, 1, enable_nested_tensor=False)
        self.decoder = nn.ModuleList(nn.TransformerDecoderLayer(width, 4, 64, 0.1, batch_first=True) for _ in range(2))
        self.kind, self.box = nn.Linear(width, 4), mlp(width, width, 3)

    def forward(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        memory = self.encoder(self.backbone(x).flatten(2).mT + self.places)
        out, each = self.queries.expand(len(x), -1, -1), []
        for layer in self.decoder:
            out = layer(out, memory)
            each.append((self.kind(out), self.box(out).sigmoid()))
        return each


@healthy(learns=falls(0.5), steps=600)
def boxes_by_matching(trial: Trial) -> None:
    """DETR in small: Hungarian matching, a weight of 0.1 for no object, auxiliary losses, clipping to 0.1."""
    model, weights = _Detr(), torch.tensor([1.0, 1.0, 1.0, 0.1])
    backbone = [p for n, p in model.named_parameters() if "backbone" in n]
    others = [p for n, p in model.named_parameters() if "backbone" not in n]
    groups = [{"params": others, "lr": 2e-3}, {"params": backbone, "lr": 3e-4}]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 450)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        (x1, b1, k1), (x2, b2, k2) = _squares(trial, 16, 24), _squares(trial, 16, 24)
        x, boxes, kinds = torch.maximum(x1, x2), torch.stack((b1, b2), 1), torch.stack((k1, k2), 1)
        loss = torch.zeros(())
        for logits, found in model(x):
            with torch.no_grad():
                cost = 5 * torch.cdist(found, boxes, p=1) - logits.softmax(-1).gather(
                    2, kinds[:, None].expand(-1, 6, -1)
                )
            rows = torch.stack([torch.tensor(linear_sum_assignment(c.T)[1]) for c in cost])
            target = torch.full((16, 6), 3).scatter(1, rows, kinds)
            loss = loss + F.cross_entropy(logits.transpose(1, 2), target, weights)
            loss = loss + 5 * F.l1_loss(found.gather(1, rows[..., None].expand(-1, -1, 3)), boxes, reduction="sum") / 32
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        schedule.step()
        trial.log(loss)
