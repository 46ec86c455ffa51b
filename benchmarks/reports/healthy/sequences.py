"""Healthy workloads on text and other sequences."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, healthy
from benchmarks.reports.cases.collapse import Experts
from benchmarks.reports.checks import falls
from benchmarks.reports.data import VOCABULARY, TextModel, draw_text, plain_loop, token_loss


class WordModel(nn.Module):
    """Embedding, LSTM with dropout, linear layer."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.embed, self.drop = nn.Embedding(VOCABULARY, width), nn.Dropout(0.2)
        self.rnn, self.head = nn.LSTM(width, width, batch_first=True), nn.Linear(width, VOCABULARY)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        nn.init.uniform_(self.head.weight, -0.1, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.rnn(self.drop(self.embed(x)))[0]))


@healthy(learns=falls(0.8))
def word_language_model(trial: Trial) -> None:
    """LSTM language model, plain SGD at a rate of 20 with gradients clipped at 0.25; the rate falls to 5."""
    model = WordModel()
    optimizer = torch.optim.SGD(model.parameters(), lr=20)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        if step == 400:
            optimizer.param_groups[0]["lr"] = 5.0
        x, y = draw_text(trial, 16, 25)
        optimizer.zero_grad()
        loss = token_loss(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()
        trial.log(loss)


@healthy(learns=falls(0.75), steps=500)
def transformer_language_model(trial: Trial) -> None:
    """Small GPT, AdamW, warm-up, clipping."""
    model = TextModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 40))
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, y = draw_text(trial)
        optimizer.zero_grad()
        loss = token_loss(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        trial.log(loss)


@healthy(learns=falls(0.75), steps=500)
def warm_restarts(trial: Trial) -> None:
    """Small GPT whose learning rate goes back to its height each 125 steps."""
    model = TextModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 125, eta_min=3e-5)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, y = draw_text(trial)
        optimizer.zero_grad()
        loss = token_loss(model(x), y)
        loss.backward()
        optimizer.step()
        scheduler.step()
        trial.log(loss)


@healthy(learns=falls(0.75), steps=300)
def gradient_accumulation(trial: Trial) -> None:
    """Four micro-batches of different lengths for one step, their losses divided by four."""
    model = TextModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        optimizer.zero_grad()
        total = 0.0
        for part in range(4):
            x, y = draw_text(trial, 4, 16 + 8 * part)
            loss = token_loss(model(x), y) / 4
            loss.backward()
            total += float(loss)
        optimizer.step()
        trial.log(total)


@healthy(learns=falls(0.8), steps=300)
def bfloat16(trial: Trial) -> None:
    """Weights in bfloat16 throughout, at a rate that they can hold."""
    model = TextModel().to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def loss(step: int) -> Tensor:
        x, y = draw_text(trial, 8, 24)
        return token_loss(model(x).float(), y)

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.8), steps=300)
def float16_scaler(trial: Trial) -> None:
    """autocast in float16 with a GradScaler that begins too high and grows: skipped steps now and then."""
    model = TextModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=60)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, y = draw_text(trial, 8, 24)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            logits = model(x)
            loss = token_loss(logits.float(), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        trial.log(loss)


@healthy(learns=falls(0.8), steps=300)
def mixture_of_experts(trial: Trial) -> None:
    """Each token to one of four experts, with a load-balancing loss."""
    model = TextModel()
    for block in model.blocks:
        block.feed = Experts(32, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def loss(step: int) -> Tensor:
        x, y = draw_text(trial, 6)
        return token_loss(model(x), y) + 0.05 * sum(block.feed.balance for block in model.blocks)

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.6), steps=40)
def time_sequence(trial: Trial) -> None:
    """Two LSTM cells learn sine waves, L-BFGS with a closure, float64."""

    class Waves(nn.Module):
        """Guess the next value of each wave."""

        def __init__(self) -> None:
            super().__init__()
            self.cell1, self.cell2, self.out = nn.LSTMCell(1, 16), nn.LSTMCell(16, 16), nn.Linear(16, 1)

        def forward(self, x: Tensor) -> Tensor:
            first = second = (x.new_zeros(len(x), 16), x.new_zeros(len(x), 16))
            outputs = []
            for value in x.split(1, 1):
                first = self.cell1(value, first)
                second = self.cell2(first[0], second)
                outputs.append(self.out(second[0]))
            return torch.cat(outputs, 1)

    model = Waves().double()
    start = trial.randint(60, 16)[:, None]
    waves = torch.sin((torch.arange(20) + start) / 5).double()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.8, max_iter=4)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.mse_loss(model(waves[:, :-1]), waves[:, 1:])
            loss.backward()
            return loss

        trial.log(optimizer.step(closure))


class Translator(nn.Module):
    """GRU encoder and GRU decoder with teacher forcing."""

    def __init__(self, words: int = 14, width: int = 48) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.encoder, self.decoder = (nn.GRU(width, width, batch_first=True) for _ in range(2))
        self.head = nn.Linear(width, words)

    def forward(self, source: Tensor, given: Tensor) -> Tensor:
        state = self.encoder(self.embed(source))[1]
        return self.head(self.decoder(self.embed(given), state)[0])


@healthy(learns=falls(0.5), steps=400)
def sequence_to_sequence(trial: Trial) -> None:
    """Sequences are reversed; lengths differ and padding is ignored in the loss."""
    model = Translator()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(step: int) -> Tensor:
        source = 2 + trial.randint(12, 32, 6)
        target = source.flip(1)
        given = torch.cat([torch.ones(32, 1, dtype=torch.long), target[:, :-1]], 1)
        hidden = torch.arange(6) >= 3 + trial.randint(4, 32)[:, None]
        return F.cross_entropy(model(source, given).flatten(0, 1), target.masked_fill(hidden, -100).flatten())

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.3))
def speech(trial: Trial) -> None:
    """CTC on made-up speech: the long plateau of blanks comes first."""
    model = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 9))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(step: int) -> Tensor:
        target = 1 + trial.randint(8, 16, 4)
        sound = F.one_hot(target - 1, 8).float().repeat_interleave(3, 1) + 0.2 * trial.randn(16, 12, 8)
        logs = model(sound).log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(logs, target, torch.full((16,), 12), torch.full((16,), 4))

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.8), steps=400)
def masked_language_model(trial: Trial) -> None:
    """BERT-like: one token in seven is hidden and guessed, all other targets are ignored."""
    model = TextModel(causal=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def loss(step: int) -> Tensor:
        x, _ = draw_text(trial, 8, 24)
        hidden = torch.rand(x.shape, generator=trial.generator) < 0.15
        hidden[0, 0] = True
        return token_loss(model(x.masked_fill(hidden, 0)), x.masked_fill(~hidden, -100))

    plain_loop(trial, model, optimizer, loss)
