"""Healthy workloads in the manner of programs that people publish: fine-tuning, few labels, adversaries."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, healthy
from benchmarks.reports.checks import falls, reaches
from benchmarks.reports.data import (
    VOCABULARY,
    Assembled,
    Block,
    TextModel,
    digits,
    draw_digits,
    draw_images,
    right,
)


def _questions(trial: Trial, size: int) -> tuple[Tensor, Tensor]:
    """Sums of two digits as text with padding on the right; labels on the answers alone."""
    a, b = trial.randint(10, size), trial.randint(10, size)
    rows = torch.full((size, 16), 0)
    labels = torch.full((size, 16), -100)
    for i in range(size):
        ask, answer = f"add {a[i]} {b[i]} = ".encode(), f"{a[i] + b[i]}.".encode()
        ask = ask[: 15 - len(answer)]
        row = torch.tensor([*ask, *answer])
        rows[i, : len(row)] = row
        labels[i, len(ask) : len(row)] = row[len(ask) :]
    return rows, labels


@healthy(learns=falls(0.8), steps=400)
def adapters_learn_to_add(trial: Trial) -> None:
    """Supervised fine-tuning of a small Llama with LoRA: padding, answers alone, accumulation over 2, linear decay."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=VOCABULARY, hidden_size=48, intermediate_size=96, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32)  # fmt: skip
    base = LlamaForCausalLM(config)
    before = torch.optim.AdamW(base.parameters(), lr=3e-3)
    for _ in range(60):
        rows, _labels = _questions(trial, 16)
        base(input_ids=rows, labels=rows).loss.backward()
        before.step()
        before.zero_grad()
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules="all-linear"))
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min((n + 1) / 12, 1 - n / trial.steps))
    trial.attach(model, optimizer)
    model.train()
    for _ in range(trial.steps):
        total = 0.0
        for _ in range(2):
            rows, labels = _questions(trial, 8)
            out = model(input_ids=rows, attention_mask=(rows != 0).long(), labels=labels)
            (out.loss / 2).backward()
            total += out.loss.item() / 2
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        trial.log(total)


@healthy(learns=reaches("score", 0.5), steps=480)
def answers_rewarded(trial: Trial) -> None:
    """PPO of a language model: a value head, a divergence that is paid for token by token, an adaptive coefficient."""

    class Actor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.value = TextModel(width=32, depth=1), nn.Linear(32, 1)

        def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
            x = self.body.embed(tokens) + self.body.place(torch.arange(tokens.shape[1]))
            h = self.body.norm(self.body.blocks[0](x))
            return self.body.head(h), self.value(h)[..., 0]

    actor = Actor()
    reference = copy.deepcopy(actor).requires_grad_(False)
    optimizer = torch.optim.Adam(actor.parameters(), lr=1e-3)
    trial.attach(actor, optimizer)
    price = 0.05
    for step in range(trial.steps):
        if step % 4 == 0:
            rows = 97 + trial.randint(26, 32, 4)
            with torch.no_grad():
                for _ in range(8):
                    logits, _v = actor(rows)
                    rows = torch.cat((rows, torch.multinomial(logits[:, -1].softmax(-1), 1)), 1)
                logits, values = actor(rows)
                taken = rows[:, 4:, None]
                old = logits[:, 3:-1].log_softmax(-1).gather(2, taken)[..., 0]
                apart = old - reference(rows)[0][:, 3:-1].log_softmax(-1).gather(2, taken)[..., 0]
                score = (rows[:, 4:] == 32).float().mean(1) - (rows[:, 4:] > 122).float().mean(1) + 0.5
                reward = -price * apart
                reward[:, -1] += score
                values = values[:, 3:-1]
                gain, gains = torch.zeros(32), list[Tensor]()
                for i in reversed(range(8)):
                    later = values[:, i + 1] if i < 7 else 0.0
                    gain = reward[:, i] + later - values[:, i] + 0.95 * gain
                    gains.append(gain)
                advantage = torch.stack(gains[::-1], 1)
                returns = advantage + values
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            price *= 1 + 0.1 * max(-0.2, min(0.2, float(apart.sum(1).mean()) / 6 - 1))
        logits, value = actor(rows)
        logp = logits[:, 3:-1].log_softmax(-1).gather(2, rows[:, 4:, None])[..., 0]
        ratio = (logp - old).exp()
        policy = torch.max(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2)).mean()
        value = value[:, 3:-1]
        near = values + (value - values).clamp(-0.2, 0.2)
        critic = 0.5 * torch.max((value - returns) ** 2, (near - returns) ** 2).mean()
        loss = policy + 0.1 * critic
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(actor.parameters(), 1.0)
        optimizer.step()
        trial.log(loss, score=score.mean(), divergence=apart.sum(1).mean())
        trial.tell(score=score.mean())


@healthy(learns=lambda run: run.final("spread") > 0.05 and run.final("right") > 0.4, steps=600)
def guesses_of_hidden_patches(trial: Trial) -> None:
    """I-JEPA: a predictor guesses what a slow copy of the encoder says of hidden patches; a probe beside it."""

    class Encoder(nn.Module):
        def __init__(self, width: int = 32) -> None:
            super().__init__()
            self.embed, self.place = nn.Linear(4, width), nn.Parameter(0.7 * torch.randn(16, width))
            self.blocks = nn.ModuleList(Block(width, 4, causal=False) for _ in range(2))
            self.norm = nn.LayerNorm(width)

        def forward(self, x: Tensor, kept: Tensor) -> Tensor:
            h = (self.embed(x) + self.place)[:, kept]
            for block in self.blocks:
                h = block(h)
            return self.norm(h)

    class Predictor(nn.Module):
        def __init__(self, width: int = 32) -> None:
            super().__init__()
            self.hidden, self.place = nn.Parameter(torch.zeros(width)), nn.Parameter(0.7 * torch.randn(16, width))
            self.blocks, self.out = nn.ModuleList([Block(width, 4, causal=False)]), nn.Linear(width, width)

        def forward(self, seen: Tensor, kept: Tensor, wanted: Tensor) -> Tensor:
            guess = (self.hidden + self.place[wanted]).expand(len(seen), -1, -1)
            h = torch.cat((seen + self.place[kept], guess), 1)
            for block in self.blocks:
                h = block(h)
            return self.out(h[:, len(kept) :])

    model = nn.ModuleDict({"encoder": Encoder(), "predictor": Predictor()})
    target = copy.deepcopy(model["encoder"]).requires_grad_(False)
    probe = nn.Linear(32, 10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.04)
    of_probe = torch.optim.Adam(probe.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, trial.steps, pct_start=0.1)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        x, y = draw_digits(trial, 64)
        patches = F.unfold((2 * x - 1).view(-1, 1, 8, 8), 2, stride=2).mT
        order = torch.randperm(16, generator=trial.generator)
        kept, wanted = order[:12], order[12:]
        with torch.no_grad():
            whole = target(patches, torch.arange(16))
            goal = F.layer_norm(whole[:, wanted], (32,))
        loss = F.smooth_l1_loss(model["predictor"](model["encoder"](patches, kept), kept, wanted), goal)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        slow = 0.996 + 0.004 * step / trial.steps
        with torch.no_grad():
            for old, p in zip(target.parameters(), model["encoder"].parameters(), strict=True):
                old.mul_(slow).add_(p, alpha=1 - slow)
        logits = probe(whole.mean(1))
        of_probe.zero_grad()
        F.cross_entropy(logits, y).backward()
        of_probe.step()
        trial.log(loss, spread=whole.mean(1).std(0).mean(), right=right(logits, y))


@healthy(learns=falls(0.5, "distance"), steps=500)
def pictures_from_outlines(trial: Trial) -> None:
    """pix2pix: digits from their outlines, an adversary of patches and 100 times the absolute error, two watches."""

    def down(inner: int, outer: int, norm: bool = True) -> nn.Sequential:
        layers: list[nn.Module] = [nn.Conv2d(inner, outer, 4, 2, 1), nn.LeakyReLU(0.2)]
        return nn.Sequential(*layers[:1], nn.BatchNorm2d(outer), *layers[1:]) if norm else nn.Sequential(*layers)

    def up(inner: int, outer: int, drop: float) -> nn.Sequential:
        return nn.Sequential(
            nn.ConvTranspose2d(inner, outer, 4, 2, 1), nn.BatchNorm2d(outer), nn.Dropout(drop), nn.ReLU()
        )

    def forward(m: Assembled, x: Tensor) -> Tensor:
        d1 = m["down1"](x)
        d2 = m["down2"](d1)
        u1 = m["up1"](d2)
        return torch.tanh(m["last"](torch.cat((u1, d1), 1)))

    maker = Assembled(forward, down1=down(1, 16, norm=False), down2=down(16, 32), up1=up(32, 16, 0.5),
                      last=nn.ConvTranspose2d(32, 1, 4, 2, 1))  # fmt: skip
    judge = nn.Sequential(down(2, 16, norm=False), nn.Conv2d(16, 32, 3, 1, 1), nn.BatchNorm2d(32), nn.LeakyReLU(0.2),
                          nn.Conv2d(32, 1, 3, 1, 1))  # fmt: skip
    for m in (*maker.modules(), *judge.modules()):
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(m.weight, 0.0, 0.02)
    of_maker, of_judge = (torch.optim.Adam(m.parameters(), lr=1e-3, betas=(0.5, 0.999)) for m in (maker, judge))
    criterion = nn.BCEWithLogitsLoss()
    trial.attach(maker, of_maker)
    trial.attach(judge, of_judge)
    for _ in range(trial.steps):
        x = 2 * draw_images(trial, 8)[0] - 1
        line = (F.max_pool2d(x, 3, 1, 1) - x > 0.8).float() * 2 - 1
        made = maker(line)
        judge.requires_grad_(True)
        of_judge.zero_grad()
        fake, real = judge(torch.cat((line, made.detach()), 1)), judge(torch.cat((line, x), 1))
        loss_d = 0.5 * (criterion(fake, torch.zeros_like(fake)) + criterion(real, torch.ones_like(real)))
        loss_d.backward()
        of_judge.step()
        judge.requires_grad_(False)
        of_maker.zero_grad()
        fake = judge(torch.cat((line, made), 1))
        distance = F.l1_loss(made, x)
        loss = criterion(fake, torch.ones_like(fake)) + 100 * distance
        loss.backward()
        of_maker.step()
        trial.log(loss, distance=distance, judge=loss_d)


@healthy(learns=reaches("right", 0.75), steps=600)
def few_labels(trial: Trial) -> None:
    """FixMatch: 40 labelled digits, others count where the guess is surer than 0.95, Nesterov, cosine, an average."""
    x, y = digits()
    order = torch.randperm(len(x), generator=trial.generator)
    few = torch.cat([order[y[order] == k][:4] for k in range(10)])
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.LeakyReLU(0.1),
                          nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.LeakyReLU(0.1), nn.Flatten(),
                          nn.Linear(512, 10))  # fmt: skip
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99), use_buffers=True
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: math.cos(7 * math.pi * n / (16 * trial.steps)))
    trial.attach(model, optimizer)

    def weak(pictures: Tensor) -> Tensor:
        return pictures.roll(int(trial.randint(3, 1)) - 1, 3)

    def strong(pictures: Tensor) -> Tensor:
        noisy = weak(pictures) + 0.3 * trial.randn(*pictures.shape)
        at = trial.randint(6, 2)
        noisy[:, :, at[0] : at[0] + 3, at[1] : at[1] + 3] = 0.5
        return noisy

    seen = 0.0
    for step in range(trial.steps):
        known = few[trial.randint(40, 16)]
        others = x[trial.randint(len(x), 64)].view(-1, 1, 8, 8)
        logits = model(torch.cat((weak(x[known].view(-1, 1, 8, 8)), weak(others), strong(others))))
        labelled, weakly, strongly = logits.split((16, 64, 64))
        chance, guess = weakly.detach().softmax(-1).max(-1)
        sure = (chance > 0.95).float()
        guessed = (F.cross_entropy(strongly, guess, reduction="none") * sure).mean()
        loss = F.cross_entropy(labelled, y[known]) + guessed
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
        if step % 50 == 49:
            average.eval()
            with torch.no_grad():
                seen = float(right(average(x.view(-1, 1, 8, 8)), y))
        trial.log(loss, right=seen, sure=sure.mean())


@healthy(learns=lambda run: run.final() < run.first() - 0.3, steps=600)
def day_ahead(trial: Trial) -> None:
    """Sales by a recurrent network whose outputs are parameters of Student's t: series of all sizes, some days mad."""
    series, days = 40, 200
    size = torch.exp(trial.randn(series, 1))
    week = 1 + 0.5 * torch.sin(2 * math.pi * (torch.arange(days) + trial.randint(7, series)[:, None]) / 7)
    sales = size * week * torch.exp(0.1 * trial.randn(series, days))
    mad = torch.rand(series, days, generator=trial.generator) < 0.01
    sales = torch.where(mad, 8 * sales, sales)

    class Forecast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.which, self.lstm, self.out = (
                nn.Embedding(series, 8),
                nn.LSTM(10, 32, batch_first=True),
                nn.Linear(32, 3),
            )

        def forward(self, x: Tensor, of: Tensor) -> torch.distributions.StudentT:
            h, _ = self.lstm(torch.cat((x, self.which(of)[:, None].expand(-1, x.shape[1], -1)), 2))
            degrees, place, scale = self.out(h).unbind(-1)
            return torch.distributions.StudentT(2 + F.softplus(degrees), place, F.softplus(scale) + 1e-4)

    model = Forecast()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=5)
    trial.attach(model, optimizer)
    recent = 0.0
    for step in range(trial.steps):
        of, start = trial.randint(series, 32), trial.randint(days - 29, 32)
        window = sales[of[:, None], start[:, None] + torch.arange(29)]
        scale = 1 + window[:, :14].mean(1, keepdim=True)
        window = window / scale
        day = ((start[:, None] + torch.arange(28)) % 7) / 7
        given = torch.stack((window[:, :-1], day), 2)
        loss = -model(given, of).log_prob(window[:, 1:]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        recent += loss.item() / 50
        if step % 50 == 49:
            schedule.step(recent)
            recent = 0.0
        trial.log(loss)


@healthy(learns=reaches("right", 0.6), steps=900)
def news_of_a_tutorial(trial: Trial) -> None:
    """News of a tutorial: EmbeddingBag with offsets, SGD at a rate of 5, clipping, a tenth when worse."""
    mean = trial.randn(4, 300).mul(1.5).softmax(-1)

    def batch(size: int) -> tuple[Tensor, Tensor, Tensor]:
        y = trial.randint(4, size)
        lengths = 10 + trial.randint(30, size)
        words = [
            torch.multinomial(mean[k], int(n), True, generator=trial.generator) for k, n in zip(y, lengths, strict=True)
        ]
        return torch.cat(words), torch.cat((torch.zeros(1, dtype=torch.long), lengths.cumsum(0)[:-1])), y

    model = Assembled(lambda m, words, offsets: m["fc"](m["embedding"](words, offsets)),
                      embedding=nn.EmbeddingBag(300, 32, sparse=False), fc=nn.Linear(32, 4))  # fmt: skip
    for p in model.parameters():
        nn.init.uniform_(p, -0.5, 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    trial.attach(model, optimizer)
    best, held = 0.0, [batch(64) for _ in range(4)]
    for step in range(trial.steps):
        model.train()
        words, offsets, y = batch(16)
        optimizer.zero_grad()
        logits = model(words, offsets)
        loss = F.cross_entropy(logits, y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        trial.log(loss, right=right(logits, y))
        if step % 150 == 149:
            model.eval()
            with torch.no_grad():
                now = sum(float(right(model(w, o), k)) for w, o, k in held) / 4
            if now < best:
                schedule.step()
            best = max(best, now)
