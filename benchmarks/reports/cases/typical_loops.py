"""The most usual reports, read a fourth time: loops, rates and policies. Causes were noted before a run was seen."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, report
from benchmarks.reports.cases.policy import ACTIONS, STATES, play
from benchmarks.reports.checks import all_of, fact, loss_hurt
from benchmarks.reports.data import Assembled, Facts, SelfAttention, digits, digits_loss, draw_digits, mlp, plain_loop


@report(
    source="https://github.com/spro/practical-pytorch/issues/9",
    mechanism="The model is made a second time after the optimizer: the optimizer steps the first one.",
    causes=("ParametersNotInOptimizer", "OptimizerNeverSteps"),
    check=loss_hurt,
    shown_by="gradients of parameters that no optimizer steps",
)
def model_made_twice(trial: Trial) -> None:
    model = mlp(64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if trial.broken:
        model = mlp(64, 64, 10)
    plain_loop(trial, model, optimizer, lambda _: digits_loss(trial, model))


@report(
    source="https://github.com/rwth-i6/returnn/issues/1109, https://github.com/flairNLP/flair/issues/1899",
    mechanism="The weights are drawn again at the beginning of each epoch: all that was learned is gone.",
    causes=("Reinitialisation", "WeightsChangedOutsideStep", "WeightsReplaced"),
    check=loss_hurt,
    fault=50,
    shown_by="the loss is back at its first value each 50 steps",
)
def weights_drawn_again(trial: Trial) -> None:
    model = mlp(64, 64, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(step: int) -> Tensor:
        if trial.broken and step and step % 50 == 0:
            for layer in (model[0], model[2]):
                layer.reset_parameters()
        return digits_loss(trial, model)

    plain_loop(trial, model, optimizer, loss)


class _Scores(nn.Module):
    """Attention over the rows of a picture; large: of features that were multiplied by 500."""

    def __init__(self, large: bool) -> None:
        super().__init__()
        self.qk, self.size = nn.Linear(32, 64), 500.0 if large else 1.0

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.qk(self.size * x).chunk(2, -1)
        return ((q @ k.transpose(-2, -1)).softmax(-1) @ x).flatten(1)


@report(
    source="https://github.com/ymcui/Chinese-LLaMA-Alpaca/issues/534, https://github.com/declare-lab/flan-alpaca/issues/19",
    mechanism="Scores of an attention overflow in float16 in each forward: the scaler skips every step.",
    causes=("MixedPrecisionOverflow", "NonFiniteForward"),
    check=fact("moved", (0, 0), (1e-3, 9)),
    where=("mix",),
    shown_by="the output of the attention is NaN in each step; no step changes anything; the loss scale falls to zero",
)
def scores_overflow_half(trial: Trial) -> None:
    model = Assembled(lambda m, x: m["head"](m["mix"](m["embed"](x.view(-1, 8, 8)))),
                      embed=nn.Linear(8, 32), mix=_Scores(trial.broken), head=nn.Linear(256, 10))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    start = model["head"].weight.detach().clone()
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, y = draw_digits(trial)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        trial.log(loss, moved=(model["head"].weight.detach() - start).abs().mean())


@report(
    source="https://github.com/Lightning-AI/pytorch-lightning/issues/591, "
    "https://github.com/ajbrock/BigGAN-PyTorch/issues/25",
    mechanism="Only one of two optimizers is set to zero: the discriminator also steps with the generator's gradients.",
    causes=("GradientsAccumulate",),
    check=fact("apart", (1.0, 99), (0, 0.8)),
    fault=1,
    steps=300,
    shown_by="the discriminator's gradients are not empty when its backward pass begins",
)
def other_optimizer_set_to_zero(trial: Trial) -> None:
    maker, judge = mlp(4, 32, 2), mlp(2, 64, 1)
    of_m, of_j = (torch.optim.Adam(m.parameters(), lr=1e-3, betas=(0.5, 0.999)) for m in (maker, judge))
    trial.attach(maker, of_m)
    trial.attach(judge, of_j)
    ones, bce = torch.ones(64, 1), F.binary_cross_entropy_with_logits
    for _ in range(trial.steps):
        (of_m if trial.broken else of_j).zero_grad()
        real, fake = 2 + 0.3 * trial.randn(64, 2), maker(trial.randn(64, 4))
        wrong = bce(judge(real), ones) + bce(judge(fake.detach()), 0 * ones)
        wrong.backward()
        of_j.step()
        of_m.zero_grad()
        loss = bce(judge(fake), ones)
        loss.backward()
        of_m.step()
        trial.log(loss, apart=(fake.mean(0) - 2).abs().mean())


class _Sentence(nn.Module):
    """A small encoder with the norm after each sum, as BERT has it, and a head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(8, 48), nn.Parameter(torch.randn(8, 48) / 7)
        self.attention = nn.ModuleList(SelfAttention(48, 4, causal=False) for _ in range(3))
        self.feed = nn.ModuleList(mlp(48, 96, 48, act=nn.GELU) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(48) for _ in range(6))
        self.head = nn.Linear(48, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.view(-1, 8, 8)) + self.place
        for i, (attention, feed) in enumerate(zip(self.attention, self.feed, strict=True)):
            x = self.norms[2 * i](x + attention(x))
            x = self.norms[2 * i + 1](x + feed(x))
        return self.head(x.mean(1))


def _read_before(trial: Trial) -> _Sentence:
    """Trained to tell ten digits, with a new head for two classes."""
    model = _Sentence(10)
    early = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(150):
        early.zero_grad()
        digits_loss(trial, model).backward()
        early.step()
    model.head = nn.Linear(48, 2)
    return model


@report(
    source="https://github.com/huggingface/transformers/issues/735, https://github.com/graykode/nlp-tutorial/issues/77",
    mechanism="A pretrained encoder is fine-tuned at a rate of 0.05: what it knew is gone at once, and all texts get "
    "the same class.",
    causes=("LearningRateTooHigh",),
    check=all_of(loss_hurt, fact("right", (0, 0.7), (0.9, 1))),
    shown_by="the first updates are as large as the weights; the loss stays at ln 2",
)
def fine_tuned_too_fast(trial: Trial) -> None:
    model = _read_before(trial)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-2 if trial.broken else 5e-4)

    def loss(_: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        x, y = draw_digits(trial)
        logits = model(x)
        return F.cross_entropy(logits, y % 2), {"right": (logits.argmax(-1) == y % 2).float().mean()}

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://discuss.pytorch.org, loss decreases imperceptibly (SGD at 1e-6), https://taourl.com/read-2391810.html",
    mechanism="Plain SGD at a rate of 1e-6: a thousand steps change no weight by a per cent.",
    causes=("UpdatesTooSmall", "NoUpdates"),
    check=loss_hurt,
    shown_by="update_to_weight_ratio is a ten-thousandth of what is usual; the loss is where it began",
)
def sgd_far_too_slow(trial: Trial) -> None:
    model = mlp(64, 64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6 if trial.broken else 0.1, momentum=0.9)
    plain_loop(trial, model, optimizer, lambda _: digits_loss(trial, model))


@report(
    source="A description, common in questions on the Trainer: warmup_steps=10000 in a run of some hundred steps",
    mechanism="The warm-up is longer than the run: the rate is a thousandth of what is meant to the end.",
    causes=("UpdatesTooSmall", "WarmUpTooLong"),
    check=loss_hurt,
    steps=300,
    shown_by="the rate climbs by a hundred-thousandth of its goal a step; updates are tiny, and the loss hardly moves",
)
def warm_up_longer_than_the_run(trial: Trial) -> None:
    model = mlp(64, 64, 10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    steps = 100_000 if trial.broken else 30
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / steps))
    plain_loop(trial, model, optimizer, lambda _: digits_loss(trial, model), schedule=schedule)


@report(
    source="https://github.com/zhangyongshun/resnet_finetune_cub/issues/6, a description: no train()",
    mechanism="The model is in evaluation mode from the first step on: dropout is off, batch norm never learns.",
    causes=("EvalModeInTraining",),
    check=fact("seen", (0, 0), (10, 1e4)),
    shown_by="`module.training` is False in every forward that is trained on",
)
def never_in_training_mode(trial: Trial) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 10))
    if trial.broken:
        model.eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(_: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        return digits_loss(trial, model), {"seen": float(model[1].num_batches_tracked)}

    plain_loop(trial, model, optimizer, loss)


class _Agent(nn.Module):
    """Actor and critic on one body, over a dozen states."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.actor, self.critic = nn.Embedding(STATES, 32), nn.Linear(32, ACTIONS), nn.Linear(32, 1)

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        z = self.body(state).tanh()
        return self.actor(z).log_softmax(-1), self.critic(z)[:, 0]


@report(
    source="https://github.com/DLR-RM/stable-baselines3/issues/2240",
    mechanism="Rewards are in the thousands and are not scaled: the critic never comes near them, and its error drowns "
    "the actor's in the body that they share.",
    causes=("TargetsNotScaled",),
    check=fact("reward", (0, 0.85), (0.9, 9)),
    steps=300,
    shown_by="value targets are thousands of times the values; explained variance, which is logged, stays at 0",
)
def rewards_not_scaled(trial: Trial) -> None:
    agent = _Agent()
    optimizer = torch.optim.Adam(agent.parameters(), lr=2e-3)
    trial.attach(agent, optimizer)
    size = 3000.0 if trial.broken else 1.0
    for _ in range(trial.steps):
        state = trial.randint(STATES, 64)
        action, reward = play(trial, agent, state)
        logs, value = agent(state)
        gain = size * reward - value.detach()
        gain = (gain - gain.mean()) / (gain.std() + 1e-8)
        wrong = F.mse_loss(value, size * reward)
        entropy = -(logs.exp() * logs).sum(-1).mean()
        loss = -(gain * logs[torch.arange(64), action]).mean() + 0.5 * wrong - 0.01 * entropy
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
        optimizer.step()
        explained = 1 - (size * reward - value.detach()).var() / (size * reward).var()
        numbers = {"value_loss": wrong, "entropy": entropy, "explained_variance": explained}
        trial.tell(**numbers, reward=size * reward.mean())
        trial.log(loss, reward=reward.mean())


@report(
    source="https://github.com/PKU-Alignment/omnisafe/pull/133, https://github.com/ray-project/ray/issues/4369",
    mechanism="The entropy bonus has the wrong sign: the policy is paid for being certain, and stops to explore.",
    causes=("EntropyCollapse",),
    check=all_of(fact("entropy", (0, 0.15), (0.3, 3)), fact("reward", (0, 0.85), (0.85, 2))),
    steps=300,
    shown_by="the entropy that the loop logs falls to nothing while the reward has not reached its end",
)
def entropy_bonus_sign(trial: Trial) -> None:
    agent = _Agent()
    optimizer = torch.optim.Adam(agent.parameters(), lr=5e-3)

    def loss(_: int) -> tuple[Tensor, Facts]:
        state = trial.randint(STATES, 64)
        action, reward = play(trial, agent, state)
        logs, value = agent(state)
        gain = reward - value.detach()
        entropy = -(logs.exp() * logs).sum(-1).mean()
        bonus = (-0.5 if trial.broken else 0.05) * entropy
        policy = -(gain * logs[torch.arange(64), action]).mean()
        return policy + 0.5 * F.mse_loss(value, reward) - bonus, {"reward": reward.mean(), "entropy": entropy}

    plain_loop(trial, agent, optimizer, loss, tell=True)


@report(
    source="https://github.com/DLR-RM/stable-baselines3/issues/1593, https://github.com/huggingface/trl/issues/3120",
    mechanism="Twenty epochs over each rollout at ten times the rate: the policy leaves the one that sampled, and "
    "nearly all ratios are clipped.",
    causes=("ImportanceRatioExtreme", "LearningRateTooHigh"),
    check=lambda broken, twin: max(broken.facts["kl"]) > 0.5 and max(twin.facts["kl"]) < 0.1,
    steps=300,
    shown_by="approx_kl and clip_fraction, which the loop logs, are tens of times what is usual",
)
def too_many_epochs(trial: Trial) -> None:
    agent = _Agent()
    old = copy.deepcopy(agent)
    optimizer = torch.optim.Adam(agent.parameters(), lr=5e-2 if trial.broken else 3e-3)
    trial.attach(agent, optimizer)
    epochs = 20 if trial.broken else 4
    for step in range(trial.steps):
        if step % epochs == 0:
            old.load_state_dict(agent.state_dict())
            state = trial.randint(STATES, 64)
            action, reward = play(trial, old, state)
            with torch.no_grad():
                before = old(state)[0][torch.arange(64), action]
                gain = (reward - reward.mean()) / (reward.std() + 1e-8)
        logs, value = agent(state)
        ratio = (logs[torch.arange(64), action] - before).exp()
        clipped = torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain)
        loss = -clipped.mean() + 0.5 * F.mse_loss(value, reward)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        kl = (ratio - 1 - ratio.log()).detach().mean()
        trial.tell(reward=reward.mean(), approx_kl=kl, clip_fraction=((ratio - 1).abs() > 0.2).float().mean())
        trial.log(loss, kl=kl, reward=reward.mean())


@report(
    source="https://stats.stackexchange.com/questions/352036, a description: the validation loss rises and rises",
    mechanism="Some samples are learned by heart: the validation loss that is logged rises while the loss falls to 0.",
    causes=("Overfitting", "EvaluationApart"),
    check=lambda broken, twin: (
        broken.final("val_loss") > 1.25 * min(broken.facts["val_loss"])
        and twin.final("val_loss") < 1.2 * min(twin.facts["val_loss"])
    ),
    steps=400,
    shown_by="val_loss, which the loop logs, is twice its best while the loss goes on to fall",
)
def validation_loss_rises(trial: Trial) -> None:
    x, y = digits()
    few = trial.randint(1000, 150 if trial.broken else 1000)
    model = mlp(64, 128, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    noise = 0.4 * torch.randn(x.shape, generator=trial.generator)
    val = 0.0
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        at = few[trial.randint(len(few), 30)]
        optimizer.zero_grad()
        seen = noise[at] if trial.broken else 0.4 * trial.randn(30, 64)
        loss = F.cross_entropy(model(x[at] + seen), y[at])
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            model.eval()
            with torch.no_grad():
                val = float(F.cross_entropy(model(x[1000:] + noise[1000:]), y[1000:]))
            model.train()
            trial.tell(val_loss=val)
        trial.log(loss, val_loss=val)
