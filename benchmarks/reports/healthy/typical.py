"""Healthy workloads of the most usual kinds, which were written before the rules of their day were changed."""

from __future__ import annotations

import copy
from collections.abc import Callable

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


def _digits(trial: Trial, model: nn.Module, size: int = 32) -> Callable[[int], tuple[Tensor, Facts]]:
    """The cross-entropy of a batch of digits, and how many are right."""

    def loss(_: int) -> tuple[Tensor, Facts]:
        x, y = draw_digits(trial, size)
        logits = model(x)
        return F.cross_entropy(logits, y), {"right": right(logits, y)}

    return loss


@healthy(learns=reaches("right", 0.75), steps=400)
def adadelta_convolutions(trial: Trial) -> None:
    """The first example of many: convolutions, dropout, log_softmax and nll_loss, Adadelta at 1, a rate in steps."""
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.MaxPool2d(2),
                          nn.Dropout(0.25), nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5),
                          nn.Linear(64, 10), nn.LogSoftmax(1))  # fmt: skip
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)

    def loss(_: int) -> tuple[Tensor, Facts]:
        x, y = draw_images(trial, 64)
        logs = model(x)
        return F.nll_loss(logs, y), {"right": right(logs, y)}

    plain_loop(trial, model, optimizer, loss, schedule=torch.optim.lr_scheduler.StepLR(optimizer, 80, 0.7))


@healthy(learns=reaches("right", 0.8), steps=400)
def cyclic_rate(trial: Trial) -> None:
    """SGD with momentum, batches of 16, a rate that goes up and down between 1e-4 and 0.1 four times."""
    model = mlp(64, 64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CyclicLR(optimizer, 1e-4, 0.1, step_size_up=50)
    plain_loop(trial, model, optimizer, _digits(trial, model, 16), schedule=schedule)


@healthy(learns=falls(0.85), steps=300)
def pairs_accumulated(trial: Trial) -> None:
    """A small GPT, batches of two, eight of them for a step, clipped at 1, cosine with a warm-up."""
    model = TextModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=trial.steps, pct_start=0.1)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        total = 0.0
        for _micro in range(8):
            x, y = draw_text(trial, 2)
            loss = token_loss(model(x), y) / 8
            loss.backward()
            total += float(loss.detach())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        trial.log(total)


class _Encoder(nn.Module):
    """A transformer over the rows of a picture, with the norm after each sum and dropout."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.inner = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.embed, self.place = nn.Linear(8, 32), nn.Parameter(torch.randn(8, 32) / 6)
        self.head = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.embed(x.view(-1, 8, 8)) + self.place).mean(1))


@healthy(learns=reaches("right", 0.75), steps=400)
def fine_tuned_encoder(trial: Trial) -> None:
    """A pretrained encoder gets a new head; no decay for biases and norms, linear warm-up and decay to zero."""
    model = _Encoder(10)
    early = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(150):
        x, y = draw_digits(trial)
        early.zero_grad()
        F.cross_entropy(model(x), y).backward()
        early.step()
    model.head = nn.Linear(32, 2)
    flat = [p for p in model.parameters() if p.dim() < 2]
    rest = [p for p in model.parameters() if p.dim() >= 2]
    optimizer = torch.optim.AdamW([{"params": rest, "weight_decay": 0.01}, {"params": flat, "weight_decay": 0.0}], 2e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 40, (trial.steps - step) / (trial.steps - 40))
    )

    def loss(_: int) -> tuple[Tensor, Facts]:
        x, y = draw_digits(trial, 16)
        logits = model(x)
        return F.cross_entropy(logits, y % 2), {"right": right(logits, y % 2)}

    plain_loop(trial, model, optimizer, loss, schedule=schedule)


class _Agent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.actor, self.critic = mlp(8, 48), nn.Linear(48, 5), nn.Linear(48, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.body(x).tanh()
        return self.actor(z).log_softmax(-1), self.critic(z)[:, 0]


def _reward(x: Tensor, action: Tensor, trial: Trial) -> Tensor:
    """Best is the action of the largest of the first five numbers."""
    return (x[:, :5].argmax(-1) == action).float() + 0.1 * trial.randn(len(x))


@torch.no_grad()
def _rollout(policy: nn.Module, trial: Trial) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States, what a policy did in them, the logarithms of their probabilities, and rewards; 128 of each."""
    x = trial.randn(128, 8)
    logs, _ = policy(x)
    action = torch.multinomial(logs.exp(), 1, generator=trial.generator)[:, 0]
    return x, action, logs[torch.arange(128), action], _reward(x, action, trial)


@healthy(learns=reaches("reward", 0.5), steps=480)
def proximal_epochs(trial: Trial) -> None:
    """PPO in the way of a library: a copy acts, six epochs over each rollout, all the usual numbers are logged."""
    agent = _Agent()
    old = copy.deepcopy(agent)
    optimizer = torch.optim.Adam(agent.parameters(), lr=2e-3, eps=1e-5)
    trial.attach(agent, optimizer)
    for step in range(trial.steps):
        if step % 6 == 0:
            old.load_state_dict(agent.state_dict())
            x, action, before, reward = _rollout(old, trial)
        logs, value = agent(x)
        gain = reward - value.detach()
        gain = (gain - gain.mean()) / (gain.std() + 1e-8)
        ratio = (logs[torch.arange(128), action] - before).exp()
        policy = -torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()
        entropy = -(logs.exp() * logs).sum(-1).mean()
        wrong = F.mse_loss(value, reward)
        loss = policy + 0.5 * wrong - 0.01 * entropy
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
        optimizer.step()
        kl = (ratio - 1 - ratio.log()).detach().mean()
        explained = 1 - (reward - value.detach()).var() / reward.var()
        clipped = ((ratio - 1).abs() > 0.2).float().mean()
        trial.tell(reward=reward.mean(), approx_kl=kl, clip_fraction=clipped, entropy=entropy, value_loss=wrong,
                   explained_variance=explained)  # fmt: skip
        trial.log(loss, reward=reward.mean())


@healthy(learns=reaches("reward", 0.5), steps=400)
def silent_proximal_epochs(trial: Trial) -> None:
    """The same loop in a script that logs nothing: four epochs over the samples of a copy of the policy."""
    agent = _Agent()
    old = copy.deepcopy(agent)
    optimizer = torch.optim.Adam(agent.parameters(), lr=2e-3)
    trial.attach(agent, optimizer)
    for step in range(trial.steps):
        if step % 4 == 0:
            old.load_state_dict(agent.state_dict())
            x, action, before, reward = _rollout(old, trial)
        logs, value = agent(x)
        gain = reward - value.detach()
        ratio = (logs[torch.arange(128), action] - before).exp()
        policy = -torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()
        loss = policy + 0.5 * F.mse_loss(value, reward)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trial.log(loss, reward=reward.mean())


@healthy(learns=lambda run: run.final("reward") > run.first("reward") + 0.2, steps=600)
def deterministic_policy(trial: Trial) -> None:
    """DDPG: actor and critic, two watches, averaged targets, a memory, noise on actions."""
    actor = nn.Sequential(mlp(4, 48, 2), nn.Tanh())
    critic = Assembled(lambda m, x, a: m["net"](torch.cat((x, a), 1)), net=mlp(6, 48, 1))
    targets = copy.deepcopy(actor), copy.deepcopy(critic)
    of_actor = torch.optim.Adam(actor.parameters(), lr=1e-3)
    of_critic = torch.optim.Adam(critic.parameters(), lr=2e-3)
    memory: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    trial.attach(actor, of_actor)
    trial.attach(critic, of_critic)
    for _ in range(trial.steps):
        x = trial.randn(16, 4)
        with torch.no_grad():
            action = (actor(x) + 0.2 * trial.randn(16, 2)).clamp(-1, 1)
        reward = -((action - 0.5 * x[:, :2].tanh()) ** 2).sum(1, keepdim=True)
        now = reward.mean()
        memory.append((x, action, reward, trial.randn(16, 4)))
        old = [memory[int(i)] for i in trial.randint(len(memory), 4)]
        x, action, reward, after = (torch.cat(part) for part in zip(*old, strict=True))
        with torch.no_grad():
            goal = reward + 0.5 * targets[1](after, targets[0](after))
        wrong = F.mse_loss(critic(x, action), goal)
        of_critic.zero_grad()
        wrong.backward()
        of_critic.step()
        of_actor.zero_grad()
        (-critic(x, actor(x)).mean()).backward()
        of_actor.step()
        with torch.no_grad():
            for mean, net in zip(targets, (actor, critic), strict=True):
                for a, b in zip(mean.parameters(), net.parameters(), strict=True):
                    a.lerp_(b, 0.02)
        trial.log(wrong, reward=now)


@healthy(learns=lambda run: run.final("apart") < 0.6, steps=400)
def least_squares_game(trial: Trial) -> None:
    """LSGAN on two moons of points: mean squared errors in place of cross-entropies, two watches."""
    maker, judge = mlp(4, 48, 2), mlp(2, 48, 1, act=lambda: nn.LeakyReLU(0.2))
    of_m, of_j = (torch.optim.Adam(m.parameters(), lr=1e-3, betas=(0.5, 0.999)) for m in (maker, judge))
    trial.attach(maker, of_m)
    trial.attach(judge, of_j)
    for _ in range(trial.steps):
        real = 1 + 0.5 * trial.randn(64, 2)
        fake = maker(trial.randn(64, 4))
        of_j.zero_grad()
        wrong = 0.5 * (judge(real) - 1).square().mean() + 0.5 * judge(fake.detach()).square().mean()
        wrong.backward()
        of_j.step()
        of_m.zero_grad()
        loss = 0.5 * (judge(fake) - 1).square().mean()
        loss.backward()
        of_m.step()
        trial.log(loss, apart=(fake.mean(0) - 1).abs().max())


@healthy(learns=falls(0.9), steps=400)
def two_views(trial: Trial) -> None:
    """SimCLR: two views of each picture, a projection, similarities over 0.5, LARS-like warm-up."""
    model = nn.Sequential(nn.Linear(64, 96), nn.BatchNorm1d(96), nn.ReLU(), nn.Linear(96, 24))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 50))

    def loss(_: int) -> Tensor:
        x, _y = draw_digits(trial, 48)
        both = torch.cat([x + 0.15 * trial.randn(48, 64) for _ in range(2)])
        z = F.normalize(model(both), dim=1)
        similar = (z @ z.T / 0.5).masked_fill(torch.eye(96, dtype=torch.bool), -1e9)
        return F.cross_entropy(similar, torch.arange(96).roll(48))

    plain_loop(trial, model, optimizer, loss, schedule=schedule)


@healthy(learns=falls(0.8), steps=400)
def divergence_annealed(trial: Trial) -> None:
    """A beta-VAE whose divergence is weighted from 0 to 4 over half of the run: the loss rises on purpose."""
    encoder, decoder = mlp(64, 64, 16), mlp(8, 64, 64)

    def forward(m: Assembled, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = m["encoder"](x).chunk(2, -1)
        kl = 0.5 * (mean.square() + logvar.exp() - logvar - 1).sum(-1).mean()
        return m["decoder"](mean + noise * (0.5 * logvar).exp()), kl

    model = Assembled(forward, encoder=encoder, decoder=decoder)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(step: int) -> tuple[Tensor, Facts]:
        x, _ = draw_digits(trial, 64)
        out, kl = model(x, trial.randn(64, 8))
        error = F.mse_loss(out, x, reduction="sum") / 64
        return error + 4 * min(1.0, step / 200) * 0.1 * kl, {"error": error}

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=reaches("right", 0.6), steps=400)
def whole_graph(trial: Trial) -> None:
    """A graph network on all nodes at once, as with citation graphs: few labels, dropout, the same batch each step."""
    x, y = (part[:400] for part in digits())
    links = torch.zeros(400, 400).scatter_(1, torch.cdist(x, x).topk(6, largest=False).indices, 1.0)
    near = (links + links.T).clamp(max=1)
    near = near / near.sum(1, keepdim=True)
    model = Assembled(lambda m, x: m["b"](near @ F.dropout(m["a"](near @ x).relu(), 0.5, m.training)),
                      a=nn.Linear(64, 16), b=nn.Linear(16, 10))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
    labelled = torch.arange(60)

    def loss(_: int) -> tuple[Tensor, Facts]:
        logits = model(x)
        return F.cross_entropy(logits[labelled], y[labelled]), {"right": right(logits[60:], y[60:])}

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.99), steps=500)
def mostly_noise(trial: Trial) -> None:
    """A forecast of returns: nine tenths of the target's variance are noise, the loss hardly falls, MSE."""
    rule = torch.randn(12, generator=trial.generator) / 12**0.5
    model = mlp(12, 32, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(_: int) -> Tensor:
        x = trial.randn(64, 12)
        return F.mse_loss(model(x)[:, 0], 0.35 * (x @ rule) + trial.randn(64))

    plain_loop(trial, model, optimizer, loss)


class _Low(nn.Module):
    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a, self.lora_b = nn.Linear(base.in_features, rank, False), nn.Linear(rank, base.out_features, False)
        nn.init.zeros_(self.lora_b.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2 * self.lora_b(self.lora_a(x))


@healthy(learns=falls(0.95), steps=300)
def adapters_of_a_language_model(trial: Trial) -> None:
    """LoRA in a small GPT that was trained for some steps; the head is trained as well, AdamW, cosine to zero."""
    model = TextModel()
    early = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(25):
        x, y = draw_text(trial, 8)
        early.zero_grad()
        token_loss(model(x), y).backward()
        early.step()
    model.requires_grad_(False)
    for block in model.blocks:
        block.attention.qkv, block.attention.out = _Low(block.attention.qkv), _Low(block.attention.out)
        block.feed[0], block.feed[2] = _Low(block.feed[0]), _Low(block.feed[2])
    model.head.requires_grad_(True)
    mine = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(mine, lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, trial.steps)

    def loss(_: int) -> Tensor:
        x, y = draw_text(trial, 8)
        return token_loss(model(x), y)

    plain_loop(trial, model, optimizer, loss, schedule=schedule)


@healthy(learns=falls(0.85), steps=300)
def brain_float_autocast(trial: Trial) -> None:
    """A small GPT in autocast with bfloat16, label smoothing, a rate in steps."""
    model = TextModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def loss(_: int) -> Tensor:
        x, y = draw_text(trial, 8)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        return F.cross_entropy(logits.float().flatten(0, 1), y.flatten(), label_smoothing=0.1)

    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [150, 250], 0.3)
    plain_loop(trial, model, optimizer, loss, schedule=schedule)


@healthy(learns=reaches("right", 0.85), steps=400)
def averaged_weights(trial: Trial) -> None:
    """SWA: from the middle on a constant high rate, an average each 20 steps, which is evaluated after its batch norm
    has seen the data; the trained weights stay."""
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
    mean = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    swing = torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.05, anneal_epochs=10)
    loss_of = _digits(trial, model)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        optimizer.zero_grad()
        loss, facts = loss_of(step)
        loss.backward()
        optimizer.step()
        (cosine if step < 200 else swing).step()
        if step >= 200 and step % 20 == 0:
            mean.update_parameters(model)
            torch.optim.swa_utils.update_bn([draw_digits(trial, 64)[0] for _ in range(4)], mean)
        trial.log(loss, **facts)


@healthy(learns=reaches("right", 0.7), steps=400)
def attacked_inputs(trial: Trial) -> None:
    """Adversarial training: three steps on the inputs, by gradients of the model in training mode, before each step."""
    model = mlp(64, 96, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)

    def loss(_: int) -> tuple[Tensor, Facts]:
        x, y = draw_digits(trial)
        moved = torch.zeros_like(x)
        for _ in range(3):
            moved.requires_grad_(True)
            (slope,) = torch.autograd.grad(F.cross_entropy(model(x + moved), y), moved)
            moved = (moved + 0.02 * slope.sign()).clamp(-0.05, 0.05).detach()
        logits = model(x + moved)
        return F.cross_entropy(logits, y), {"right": right(logits, y)}

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.95), steps=400)
def weighted_tasks(trial: Trial) -> None:
    """Two tasks whose weights are learned as log-variances: the sum goes through zero and below."""
    x, y = table("diabetes")
    model = Assembled(lambda m, x: (m["one"](z := m["body"](x).relu()), m["two"](z)), body=nn.Linear(10, 32),
                      one=nn.Linear(32, 1), two=nn.Linear(32, 2))  # fmt: skip
    sizes = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([*model.parameters(), sizes], lr=3e-3)

    def loss(_: int) -> Tensor:
        at = trial.randint(len(x), 32)
        one, two = model(x[at])
        errors = torch.stack((F.mse_loss(one[:, 0], y[at]), F.cross_entropy(two, (y[at] > 0).long())))
        return 2 + (errors * (-sizes).exp() + sizes).sum()

    plain_loop(trial, model, optimizer, loss)


@healthy(learns=falls(0.9), steps=400)
def hidden_state_carried(trial: Trial) -> None:
    """A GRU language model, truncated backpropagation: the state of the text goes on, detached, RMSprop, clipping."""
    model = Assembled(lambda m, x, h: m["body"](m["embed"](x), h), embed=nn.Embedding(VOCABULARY, 24),
                      body=nn.GRU(24, 48, batch_first=True), head=nn.Linear(48, VOCABULARY))  # fmt: skip
    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-3)
    state = torch.zeros(1, 8, 48)
    rows, _ = draw_text(trial, 8, 32 * 100)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        at = 31 * (step % 100)
        part = rows[:, at : at + 32]
        state = torch.zeros_like(state) if at == 0 else state.detach()
        out, state = model(part[:, :-1], state)
        optimizer.zero_grad()
        loss = token_loss(model["head"](out), part[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        trial.log(loss)
