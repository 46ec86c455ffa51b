"""Healthy workloads that were written after all rules: everyday oddities in the manner of public examples."""

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
    Facts,
    TextModel,
    digits,
    draw_digits,
    draw_images,
    draw_text,
    mlp,
    plain_loop,
    right,
    table,
    token_loss,
)


class _Low(nn.Module):
    """A frozen linear layer with an adapter of rank 4, which begins at zero."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = nn.Linear(base.in_features, 4, bias=False), nn.Linear(4, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2.0 * self.up(self.down(x))


def _pretrained(trial: Trial, *widths: int) -> nn.Sequential:
    model = mlp(*widths)
    early = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(100):
        x, y = draw_digits(trial)
        early.zero_grad()
        F.cross_entropy(model(x), y % 2).backward()
        early.step()
    return model


@healthy(learns=reaches("right", 0.7), steps=400)
def low_rank_adapters(trial: Trial) -> None:
    """LoRA on a pretrained network: adapters that begin at zero, a new head, AdamW at 2e-4 after a warm-up."""
    body = _pretrained(trial, 64, 64, 64, 2)
    model = nn.Sequential(_Low(body[0]), nn.ReLU(), _Low(body[2]), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 100))

    def loss(_: int) -> tuple[Tensor, Facts]:
        x, y = draw_digits(trial)
        logits = model(x)
        return F.cross_entropy(logits, y), {"right": right(logits, y)}

    plain_loop(trial, model, optimizer, loss, schedule=schedule)


@healthy(learns=reaches("right", 0.6), steps=400)
def linear_probe(trial: Trial) -> None:
    """A linear layer on features of a frozen network in evaluation mode, SGD at a high rate, cosine to zero."""
    body = _pretrained(trial, 64, 64, 2)[:2].requires_grad_(False).eval()
    model = nn.Sequential(body, nn.BatchNorm1d(64, affine=False), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, trial.steps)

    def loss(_: int) -> tuple[Tensor, Facts]:
        x, y = draw_digits(trial)
        logits = model(x)
        return F.cross_entropy(logits, y), {"right": right(logits, y)}

    plain_loop(trial, model, optimizer, loss, schedule=schedule)


@healthy(learns=falls(0.8), steps=500)
def batches_of_one(trial: Trial) -> None:
    """One sample in each step, plain SGD, as in the first tutorials."""
    model = mlp(64, 32, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)

    def loss(_: int) -> Tensor:
        x, y = draw_digits(trial, 1)
        return F.cross_entropy(model(x), y)

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.7), steps=400)
def mixture_density(trial: Trial) -> None:
    """A mixture of five normal distributions: the loss is a negative log-likelihood that becomes negative."""
    model = mlp(1, 64, 15, act=nn.Tanh)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(_: int) -> Tensor:
        y = 2 * torch.rand(64, 1, generator=trial.generator) - 1
        x = y + 0.3 * torch.sin(6.3 * y) + 0.03 * trial.randn(64, 1)
        share, mean, size = model(x).chunk(3, -1)
        normal = torch.distributions.Normal(mean, size.exp().clamp(1e-3))
        return 2 - torch.logsumexp(share.log_softmax(-1) + normal.log_prob(y), -1).mean()

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.5), steps=300)
def neural_ode(trial: Trial) -> None:
    """A vector field that is integrated by Runge and Kutta's method in the forward; a spiral is followed."""
    field = mlp(2, 32, 2, act=nn.Tanh)

    def flow(parts: Assembled, x: Tensor) -> Tensor:
        places = []
        for _ in range(8):
            a = parts["field"](x)
            b = parts["field"](x + 0.05 * a)
            x = x + 0.1 * b
            places.append(x)
        return torch.stack(places)

    model = Assembled(flow, field=field)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-3)
    turn = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])

    def loss(_: int) -> Tensor:
        x = trial.randn(32, 2)
        true = torch.stack([x @ torch.matrix_exp(0.1 * (i + 1) * turn).T for i in range(8)])
        return F.l1_loss(model(x), true)

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.9), steps=400)
def wasserstein_critic(trial: Trial) -> None:
    """WGAN: the critic is clipped and steps three times as often; one watch for both, RMSprop."""
    critic, maker = mlp(64, 64, 1, act=lambda: nn.LeakyReLU(0.2)), mlp(8, 64, 64)
    of_critic = torch.optim.RMSprop(critic.parameters(), lr=1e-3)
    of_maker = torch.optim.RMSprop(maker.parameters(), lr=1e-3)
    trial.attach(critic, of_critic)
    trial.attach(maker, of_maker)
    for step in range(trial.steps):
        x, _ = draw_digits(trial)
        of_critic.zero_grad()
        gap = critic(maker(trial.randn(32, 8)).sigmoid().detach()).mean() - critic(x).mean()
        gap.backward()
        of_critic.step()
        for p in critic.parameters():
            p.data.clamp_(-0.05, 0.05)
        if step % 3 == 0:
            of_maker.zero_grad()
            (-critic(maker(trial.randn(32, 8)).sigmoid()).mean()).backward()
            of_maker.step()
        with torch.no_grad():
            made = maker(trial.randn(64, 8)).sigmoid()
        trial.log((made.mean(0) - x.mean(0)).abs().mean())


@healthy(learns=falls(0.6), steps=400)
def barlow_twins(trial: Trial) -> None:
    """Two views whose cross-correlation goes to the unit matrix; batch norm by hand, a large loss."""
    model = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 32))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-6)

    def loss(_: int) -> Tensor:
        x, _ = draw_digits(trial, 128)
        one, two = (model(x + 0.1 * trial.randn(128, 64)) for _ in range(2))
        c = ((one - one.mean(0)) / one.std(0)).T @ ((two - two.mean(0)) / two.std(0)) / 128
        on = (torch.diagonal(c) - 1).square().sum()
        return on + 0.005 * (c.square().sum() - torch.diagonal(c).square().sum())

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=lambda run: run.final("spread") > 0.05, steps=400)
def bootstrap_your_own_latent(trial: Trial) -> None:
    """BYOL: predictor, stopped gradient, a teacher that follows at 0.99; the loss is a mean squared error."""
    online = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 16))
    guess = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16))
    teacher = copy.deepcopy(online).requires_grad_(False)
    model = nn.Sequential(online, guess)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, _ = draw_digits(trial, 64)
        said = F.normalize(model(x + 0.2 * trial.randn(64, 64)), dim=-1)
        with torch.no_grad():
            wanted = F.normalize(teacher(x + 0.2 * trial.randn(64, 64)), dim=-1)
        loss = F.mse_loss(said, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for mean, p in zip(teacher.parameters(), online.parameters(), strict=True):
                mean.lerp_(p, 0.01)
        trial.log(loss, spread=wanted.std(0).mean())


@healthy(learns=reaches("right", 0.6), steps=400)
def discriminative_rates(trial: Trial) -> None:
    """Fine-tuning: each layer's rate is a third of the next one's, a triangular schedule, new head."""
    body = _pretrained(trial, 64, 64, 64, 2)
    model = nn.Sequential(*body[:4], nn.Linear(64, 10))
    groups = [{"params": model[i].parameters(), "lr": 3e-3 * 3.0 ** (-(4 - i))} for i in (0, 2, 4)]
    optimizer = torch.optim.AdamW(groups)
    top = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, top, total_steps=trial.steps)

    def loss(_: int) -> tuple[Tensor, Facts]:
        x, y = draw_digits(trial)
        logits = model(x)
        return F.cross_entropy(logits, y), {"right": right(logits, y)}

    plain_loop(trial, model, optimizer, loss, schedule=schedule)


@healthy(learns=falls(0.6), steps=400)
def stochastic_depth(trial: Trial) -> None:
    """Residual blocks that are left out at random: some parameters have no gradient in some steps."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(64, 32), nn.Linear(32, 10)
            self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(32), mlp(32, 64, 32)) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for i, block in enumerate(self.blocks):
                if float(torch.rand((), generator=trial.generator)) > 0.15 * i:
                    x = x + block(x)
            return self.head(x)

    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)

    def loss(_: int) -> Tensor:
        x, y = draw_digits(trial)
        return F.cross_entropy(model(x), y, label_smoothing=0.1)

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.9), steps=400)
def mixed_pictures(trial: Trial) -> None:
    """MixUp and CutMix in turns, targets are mixtures, a small CNN, Nesterov momentum, multi-step rate."""
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
                          nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(),
                          nn.Linear(512, 10))  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [200, 300], 0.2)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        x, y = draw_images(trial)
        wanted = F.one_hot(y, 10).float()
        order = torch.randperm(32, generator=trial.generator)
        share = float(torch.rand((), generator=trial.generator))
        if step % 2:
            x, wanted = share * x + (1 - share) * x[order], share * wanted + (1 - share) * wanted[order]
        else:
            x = x.clone()
            x[:, :, :4] = x[order][:, :, :4]
            wanted = 0.5 * wanted + 0.5 * wanted[order]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), wanted)
        loss.backward()
        optimizer.step()
        schedule.step()
        trial.log(loss)


@healthy(learns=falls(0.8), steps=400)
def score_matching(trial: Trial) -> None:
    """Denoising score matching at many sizes of noise, the loss is weighted by the size."""
    model = mlp(65, 128, 64, act=nn.SiLU)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def loss(_: int) -> Tensor:
        x, _ = draw_digits(trial, 64)
        size = (0.02 * 50 ** torch.rand(64, 1, generator=trial.generator)).clamp(max=1.0)
        noise = trial.randn(64, 64)
        score = model(torch.cat((x + size * noise, size.log()), 1)) / size
        return (size.square() * (score + noise / size).square()).mean()

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.8), steps=400)
def sequence_tagging(trial: Trial) -> None:
    """A bidirectional LSTM tags each sign of a padded text; padding is ignored in the loss."""
    model = Assembled(lambda m, x: m["head"](m["body"](m["embed"](x))[0]), embed=nn.Embedding(VOCABULARY, 16),
                      body=nn.LSTM(16, 32, batch_first=True, bidirectional=True), head=nn.Linear(64, 4))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def loss(_: int) -> Tensor:
        x, _ = draw_text(trial, 16, 24)
        tags = x.roll(1, 1).remainder(2) + 2 * x.roll(-1, 1).remainder(2)
        pad = torch.arange(24)[None] >= (8 + trial.randint(16, 16))[:, None]
        return token_loss(model(x.masked_fill(pad, 0)), tags.masked_fill(pad, -100))

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.6), steps=400)
def sequence_first(trial: Trial) -> None:
    """A GRU in the layout (time, batch, features), as torch has it by default; the last place is classified."""
    model = Assembled(lambda m, x: m["head"](m["body"](x)[0][-1]), body=nn.GRU(8, 48), head=nn.Linear(48, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def loss(_: int) -> Tensor:
        x, y = draw_digits(trial)
        return F.cross_entropy(model(x.view(-1, 8, 8).transpose(0, 1)), y)

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.7), steps=300)
def set_transformer(trial: Trial) -> None:
    """A transformer over sets of points, (sets, points, 2), says how many of them are within a circle."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True, norm_first=True)
    model = Assembled(lambda m, x: m["head"](m["inner"](m["embed"](x)).mean(1))[:, 0], embed=nn.Linear(2, 32),
                      inner=nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
                      head=nn.Linear(32, 1))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def loss(_: int) -> Tensor:
        x = trial.randn(32, 12, 2)
        return F.smooth_l1_loss(model(x), x.norm(dim=-1).lt(1).float().sum(1) / 3)

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.7), steps=400)
def hard_triplets(trial: Trial) -> None:
    """Triplet loss with the hardest of the batch, embeddings of length 1."""
    model = mlp(64, 64, 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def loss(_: int) -> Tensor:
        x, y = draw_digits(trial, 64)
        z = F.normalize(model(x), dim=-1)
        far = torch.cdist(z, z)
        same = y[:, None] == y[None]
        return F.softplus(4 * ((far * same).amax(1) - (far + 9 * same).amin(1))).mean()

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.7), steps=400)
def two_stage_detection(trial: Trial) -> None:
    """A box and whether there is anything: few pictures have an object, the loss of the box counts there alone."""
    body = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 64), nn.ReLU())
    model = Assembled(lambda m, x: (m["there"](m["body"](x))[:, 0], m["box"](m["body"](x)).sigmoid()), body=body,
                      there=nn.Linear(64, 1), box=nn.Linear(64, 2))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def loss(_: int) -> Tensor:
        x, at = 0.1 * trial.randn(32, 1, 8, 8), trial.randint(6, 32, 2)
        there = trial.randint(4, 32) == 0
        for i in torch.nonzero(there)[:, 0].tolist():
            x[i, 0, at[i, 0] : at[i, 0] + 2, at[i, 1] : at[i, 1] + 2] += 1
        said, box = model(x)
        where = F.l1_loss(box[there], at[there] / 6) if there.any() else 0.0 * box.sum()
        return F.binary_cross_entropy_with_logits(said, there.float()) + 2 * where

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.5), steps=400)
def hyper_network(trial: Trial) -> None:
    """A network writes the weights of another one, which fits one sine in each step."""
    writer = mlp(2, 64, 49, act=nn.Tanh)

    def run(parts: Assembled, task: Tensor, x: Tensor) -> Tensor:
        w = parts["writer"](task)
        return (x @ w[:16].view(1, 16) + w[16:32]).tanh() @ w[32:48].view(16, 1) + w[48]

    model = Assembled(run, writer=writer)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(_: int) -> Tensor:
        task = torch.rand(2, generator=trial.generator)
        x = 2 * torch.rand(64, 1, generator=trial.generator) - 1
        return F.mse_loss(model(task, x), (1 + task[0]) * torch.sin(3 * x + task[1]))

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.7), steps=400)
def sharpness_aware(trial: Trial) -> None:
    """SAM: a step up along the gradient, a second pass there, back again, and the step."""
    model = mlp(64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, y = draw_digits(trial)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        with torch.no_grad():
            norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
            ups = [0.05 * p.grad / (norm + 1e-12) for p in model.parameters()]
            for p, up in zip(model.parameters(), ups, strict=True):
                p.add_(up)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for p, up in zip(model.parameters(), ups, strict=True):
                p.sub_(up)
        optimizer.step()
        optimizer.zero_grad()
        trial.log(loss)


@healthy(learns=falls(0.7), steps=300)
def reptile(trial: Trial) -> None:
    """Reptile: five inner steps on a task with a fresh copy, then the weights move a part of the way."""
    model = mlp(1, 40, 40, 1, act=nn.Tanh)
    trial.attach(model, torch.optim.SGD(model.parameters(), lr=0.02))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for _ in range(trial.steps // 5):
        start = copy.deepcopy(model.state_dict())
        high, shift = 0.5 + torch.rand(2, generator=trial.generator)
        for _ in range(5):
            x = 4 * torch.rand(32, 1, generator=trial.generator) - 2
            loss = F.mse_loss(model(x), high * torch.sin(x + shift))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            trial.log(loss)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(start[name] + 0.5 * (p - start[name]))


@healthy(learns=falls(0.9), steps=400)
def tokens_with_padding(trial: Trial) -> None:
    """A GPT on short padded lines: padding is ignored, gradients of four micro-batches, a bound, bfloat16 autocast."""
    model = TextModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        optimizer.zero_grad()
        total = 0.0
        for _ in range(4):
            x, y = draw_text(trial, 2, 24)
            pad = torch.arange(24)[None] >= (6 + trial.randint(18, 2))[:, None]
            with torch.autocast("cpu", torch.bfloat16):
                loss = token_loss(model(x.masked_fill(pad, 0)), y.masked_fill(pad, -100)) / 4
            loss.backward()
            total += float(loss.detach())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        trial.log(total)


@healthy(learns=reaches("reward", 0.6), steps=400)
def bandit(trial: Trial) -> None:
    """A contextual bandit with a policy gradient and a moving baseline; no critic, entropy bonus that falls."""
    model = mlp(8, 32, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    trial.attach(model, optimizer)
    best, mean = trial.randn(8, 4), 0.0
    for step in range(trial.steps):
        x = trial.randn(64, 8)
        choice = torch.distributions.Categorical(logits=model(x))
        action = torch.multinomial(choice.probs.detach(), 1, generator=trial.generator)[:, 0]
        reward = (action == (x @ best).argmax(-1)).float()
        loss = -(choice.log_prob(action) * (reward - mean)).mean() - 0.02 * (1 - step / 400) * choice.entropy().mean()
        mean = 0.9 * mean + 0.1 * float(reward.mean())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trial.log(loss, reward=reward.mean())


@healthy(learns=falls(0.7), steps=400)
def uncertain_regression(trial: Trial) -> None:
    """Mean and variance of the diabetes table by the normal likelihood, dropout, a plateau scheduler."""
    x, y = table("diabetes")
    model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=40, min_lr=1e-4)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        at = trial.randint(len(x), 48)
        mean, raw = model(x[at]).unbind(-1)
        loss = 2 + F.gaussian_nll_loss(mean, y[at], F.softplus(raw) + 1e-3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step(float(loss.detach()))
        trial.log(loss - 1.6)


@healthy(learns=falls(0.8), steps=400)
def energy_based(trial: Trial) -> None:
    """Noise-contrastive estimation: true pairs against others, logits of a product of two embeddings."""
    model = Assembled(lambda m, a, b: (m["left"](a)[:, None] * m["right"](b)).sum(-1),
                      left=nn.Embedding(VOCABULARY, 16), right=nn.Embedding(VOCABULARY, 16))  # fmt: skip
    for p in model.parameters():
        nn.init.normal_(p, 0, 0.1)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)

    def loss(_: int) -> Tensor:
        x, y = draw_text(trial, 16, 16)
        others = trial.randint(VOCABULARY, 256, 5)
        logits = model(x.flatten(), torch.cat((y.flatten()[:, None], others), 1))
        wanted = torch.zeros_like(logits)
        wanted[:, 0] = 1
        return F.binary_cross_entropy_with_logits(logits, wanted)

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.7), steps=400)
def gradual_unfreezing(trial: Trial) -> None:
    """Layers are freed one after another from the head down, each hundred steps."""
    body = _pretrained(trial, 64, 64, 64, 2)
    model = nn.Sequential(*body[:4], nn.Linear(64, 10))
    model[0].requires_grad_(False)
    model[2].requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        if step in (100, 200):
            model[2 if step == 100 else 0].requires_grad_(True)
        x, y = draw_digits(trial)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        trial.log(loss)


@healthy(learns=falls(0.8), steps=400)
def everything_in_one_batch(trial: Trial) -> None:
    """Gaussian process by maximal likelihood: three numbers are trained on the whole table at each step."""
    x, y = (part[:60] for part in digits())
    value = (y == 3).float() - 0.1
    model = nn.Module()
    for name in ("scale", "size", "noise"):
        model.register_parameter(name, nn.Parameter(torch.zeros(())))
    far = torch.cdist(x, x).square()

    def forward(m: nn.Module) -> Tensor:
        k = m.size.exp() * (-far / (8 * m.scale.exp())).exp() + (m.noise.exp() + 1e-4) * torch.eye(60)
        low = torch.linalg.cholesky(k)
        inner = torch.cholesky_solve(value[:, None], low)[:, 0]
        return 0.5 * (value @ inner) + low.diagonal().log().sum() + 30 * math.log(2 * math.pi)

    model.forward = lambda: forward(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    plain_loop(trial, model, optimizer, lambda _: model())
