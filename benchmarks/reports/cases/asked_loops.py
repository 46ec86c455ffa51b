"""What is asked most often, a fifth time: loops and policies. Causes were noted before a run."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, report
from benchmarks.reports.cases.policy import ACTIONS, GROUP, STATES, hits, play
from benchmarks.reports.checks import all_of, fact, loss_hurt
from benchmarks.reports.data import Assembled, Facts, digits, digits_loss, draw_digits, draw_images, mlp, plain_loop


@report(
    source="https://github.com/pytorch/pytorch/issues/65417, https://github.com/ageron/handson-mlp/issues/28",
    mechanism="OneCycleLR is stepped once an epoch and not once a batch: the rate stays at a twenty-fifth of its peak.",
    causes=("WarmUpTooLong", "UpdatesTooSmall"),
    check=loss_hurt,
    shown_by="the rate climbs by a ten-thousandth of itself an epoch",
)
def one_cycle_by_epoch(trial: Trial) -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=trial.steps + 1, cycle_momentum=False)

    def loss(_: int) -> Tensor:
        x, y = draw_images(trial)
        return F.cross_entropy(model(x), y)

    def after(step: int) -> Facts:
        if not trial.broken or step % 50 == 49:
            schedule.step()
        return {}

    plain_loop(trial, model, optimizer, loss, after=after)


@report(
    source="https://github.com/md-mohaiminul/ViS4mer/issues/4, https://github.com/Lightning-AI/pytorch-lightning/issues/673",
    mechanism="ReduceLROnPlateau is given the accuracy and waits for it to fall: the rate is divided by ten until "
    "nothing is left of it.",
    causes=("LearningRateZero", "UpdatesTooSmall", "NoUpdates"),
    check=loss_hurt,
    fault=30,
    steps=400,
    shown_by="the rate falls to a hundred-thousandth while the loss goes on to fall; then nothing moves",
)
def plateau_of_accuracy(trial: Trial) -> None:
    model = mlp(64, 48, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    mode = "min" if trial.broken else "max"
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode, 0.1, 1 if trial.broken else 4)
    x, y = digits()

    def after(step: int) -> Facts:
        if step % 15 == 14:
            with torch.no_grad():
                schedule.step(float((model(x).argmax(-1) == y).float().mean()))
        return {}

    plain_loop(trial, model, optimizer, lambda _: digits_loss(trial, model), after=after)


@report(
    source="https://github.com/chemprop/chemprop/issues/607, https://github.com/pytorch/pytorch/issues/4741",
    mechanism="The momentum of batch norm is Keras' 0.999 turned round: in evaluation it uses statistics that have not "
    "left their first values.",
    causes=("EvaluationApart",),
    check=lambda broken, twin: broken.final("val") > 3 * broken.final() and twin.final("val") < 2 * twin.final(),
    steps=150,
    shown_by="val_loss, which the loop logs each 20 steps, is many times the loss of the same data",
)
def running_statistics_behind(trial: Trial) -> None:
    rate = 0.001 if trial.broken else 0.1
    model = nn.Sequential(nn.BatchNorm1d(64, momentum=rate), nn.Linear(64, 64), nn.BatchNorm1d(64, momentum=rate),
                          nn.ReLU(), nn.Linear(64, 10))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x, y = digits()
    x, worst = 16 * x + 50, 2.3

    def loss(_: int) -> Tensor:
        at = trial.randint(len(x), 32)
        return F.cross_entropy(model(x[at]), y[at])

    def after(step: int) -> Facts:
        nonlocal worst
        if step % 20 == 19:
            model.eval()
            with torch.no_grad():
                worst = float(F.cross_entropy(model(x), y))
            model.train()
            trial.tell(val_loss=worst)
        return {"val": worst}

    plain_loop(trial, model, optimizer, loss, after=after)


@report(
    source="https://github.com/soumith/ganhacks/issues/36, https://github.com/eriklindernoren/PyTorch-GAN/issues/132",
    mechanism="The discriminator learns a hundred times as fast as the generator and wins: its loss is 0, "
    "the generator's grows.",
    causes=("DiscriminatorCollapse",),
    check=all_of(fact("judge", (0, 0.05), (0.2, 2)), fact("apart", (1.0, 99), (0, 1.0))),
    steps=400,
    shown_by="loss_d, which the loop logs, goes to 0 and stays there while loss_g grows",
)
def discriminator_wins(trial: Trial) -> None:
    maker, judge = mlp(8, 32, 4), mlp(4, 64, 64, 1, act=lambda: nn.LeakyReLU(0.2))
    of_m = torch.optim.Adam(maker.parameters(), lr=2e-5 if trial.broken else 2e-3, betas=(0.5, 0.999))
    of_j = torch.optim.Adam(judge.parameters(), lr=2e-3 if trial.broken else 1e-3, betas=(0.5, 0.999))
    trial.attach(maker, of_m)
    trial.attach(judge, of_j)
    ones, bce = torch.ones(64, 1), F.binary_cross_entropy_with_logits
    for _ in range(trial.steps):
        real, fake = 2 + 0.3 * trial.randn(64, 4), maker(trial.randn(64, 8))
        of_j.zero_grad()
        wrong = bce(judge(real), ones) + bce(judge(fake.detach()), 0 * ones)
        wrong.backward()
        of_j.step()
        of_m.zero_grad()
        loss = bce(judge(fake), ones)
        loss.backward()
        of_m.step()
        trial.tell(loss_d=wrong, loss_g=loss)
        trial.log(loss, judge=wrong, apart=(fake.mean(0) - 2).abs().mean())


@report(
    source="https://github.com/floodsung/DDPG/issues/6, https://github.com/MorvanZhou/Reinforcement-learning-with-tensorflow/issues/107",
    mechanism="States are in the hundreds and are not normalised: the tanh of the actor saturates, and it always takes "
    "the largest action.",
    causes=("SaturatedUnits", "InputsNotScaled", "VanishingGradients", "ZeroGradients"),
    check=fact("largest", (0.95, 1), (0, 0.9)),
    steps=300,
    shown_by="the actor's outputs are 1 or -1; its gradients vanish",
)
def actor_saturates(trial: Trial) -> None:
    actor = nn.Sequential(mlp(4, 48, 48, 2), nn.Tanh())
    critic = Assembled(lambda m, x, a: m["net"](torch.cat((x, a), 1)), net=mlp(6, 48, 1))
    of_actor, of_critic = (torch.optim.Adam(m.parameters(), lr=2e-3) for m in (actor, critic))
    trial.attach(actor, of_actor)
    trial.attach(critic, of_critic)
    size = 300.0 if trial.broken else 1.0
    for _ in range(trial.steps):
        x = trial.randn(64, 4)
        with torch.no_grad():
            action = (actor(size * x) + 0.3 * trial.randn(64, 2)).clamp(-1, 1)
        reward = -((action - 0.5 * x[:, :2].tanh()) ** 2).sum(1, keepdim=True)
        of_critic.zero_grad()
        wrong = F.mse_loss(critic(size * x, action), reward)
        wrong.backward()
        of_critic.step()
        of_actor.zero_grad()
        out = actor(size * x)
        (-critic(size * x, out).mean()).backward()
        of_actor.step()
        trial.log(wrong, reward=reward.mean(), largest=out.detach().abs().mean())


class _Agent(nn.Module):
    """Actor and critic with bodies of their own, over a dozen states."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Embedding(STATES, 32), nn.Tanh(), nn.Linear(32, ACTIONS))
        self.critic = nn.Sequential(nn.Embedding(STATES, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.actor(state).log_softmax(-1), self.critic(state)[:, 0]


@report(
    source="https://github.com/nikhilbarhate99/PPO-PyTorch/issues/12, https://github.com/tensorforce/tensorforce/issues/312",
    mechanism="The old log-probabilities come from the same forward and are not detached: the ratio is 1 and has no "
    "slope, the actor never learns.",
    causes=("PartWithZeroGradient", "PartWithoutGradient", "ZeroGradients"),
    check=fact("reward", (0, 0.4), (0.8, 2)),
    where=("actor",),
    steps=300,
    shown_by="the gradients of the actor are exactly zero from the first step on",
)
def old_policy_in_the_graph(trial: Trial) -> None:
    agent = _Agent()
    optimizer = torch.optim.Adam(agent.parameters(), lr=3e-3)

    def loss(_: int) -> tuple[Tensor, Facts]:
        state = trial.randint(STATES, 64)
        action, reward = play(trial, agent, state)
        logs, value = agent(state)
        chosen = logs[torch.arange(64), action]
        old = chosen if trial.broken else chosen.detach()
        gain = reward - value.detach()
        ratio = (chosen - old).exp()
        clipped = torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain)
        return -clipped.mean() + 0.5 * F.mse_loss(value, reward), {"reward": reward.mean()}

    plain_loop(trial, agent, optimizer, loss, tell=True)


@report(
    source="https://github.com/navneet-nmk/pytorch-rl/issues/2, https://github.com/facebookresearch/ReAgent/issues/189",
    mechanism="The value of what comes after the last state is added to the target, and the target network is copied "
    "often: values grow without end.",
    causes=("TargetsRunAway", "LossDivergence"),
    check=fact("value", (20, 1e9), (0, 5)),
    steps=400,
    shown_by="targets and outputs grow from 1 to hundreds together",
)
def end_not_masked(trial: Trial) -> None:
    net = nn.Sequential(nn.Embedding(STATES, 32), mlp(32, 64, ACTIONS))
    old = copy.deepcopy(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    trial.attach(net, optimizer)
    for step in range(trial.steps):
        state, action = trial.randint(STATES, 64), trial.randint(ACTIONS, 64)
        reward = (action == state % ACTIONS).float() + 0.5
        over = torch.rand(64, generator=trial.generator) < 0.5
        with torch.no_grad():
            after = old(trial.randint(STATES, 64)).max(1).values
            goal = reward + 0.99 * after * (1.0 if trial.broken else (~over).float())
        value = net(state)[torch.arange(64), action]
        loss = F.smooth_l1_loss(value, goal)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 5 == 0:
            old.load_state_dict(net.state_dict())
        trial.log(loss, value=value.detach().mean())


def _group(trial: Trial, rate: float, beta: float, *, cut: bool = False) -> None:
    """Group-relative policy gradients that log what TRL logs. cut: no sample comes to its end, and each reward is 0."""
    policy = nn.Sequential(nn.Embedding(STATES, 32), mlp(32, 64, ACTIONS, act=nn.Tanh))
    reference = copy.deepcopy(policy).requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=rate)
    trial.attach(policy, optimizer)
    for _ in range(trial.steps):
        state = trial.randint(STATES, 16).repeat_interleave(GROUP)
        logs = policy(state).log_softmax(-1)
        action = torch.multinomial(logs.detach().exp(), 1, generator=trial.generator)[:, 0]
        reward = ((0.0 if cut else 1.0) * hits(state, action)).view(-1, GROUP)
        spread = reward.std(1, keepdim=True)
        gain = ((reward - reward.mean(1, keepdim=True)) / (spread + 1e-4)).flatten()
        mine = logs[torch.arange(len(action)), action]
        away = reference(state).log_softmax(-1)[torch.arange(len(action)), action] - mine
        kl = (away.exp() - away - 1).mean()
        loss = -((mine - mine.detach()).exp() * gain).mean() + beta * kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        entropy = -(logs.exp() * logs).sum(-1).mean()
        told = {"reward": reward.mean(), "reward_std": spread.mean(), "kl": kl,
                "entropy": entropy, "frac_reward_zero_std": (spread == 0).float().mean(),
                "completions/clipped_ratio": float(cut)}  # fmt: skip
        trial.tell(**told)
        trial.log(loss, reward=reward.mean(), kl=kl)


@report(
    source="https://github.com/jjyaoao/HelloAgents/issues/107, https://github.com/aburkov/theLMbook/issues/6",
    mechanism="The rate of supervised fine-tuning is kept for GRPO, hundreds of times what it should be: the policy "
    "leaves its reference at once and is stuck.",
    causes=("LearningRateTooHigh", "KLRunaway", "EntropyCollapse", "RewardCollapse"),
    check=fact("reward", (0, 0.7), (0.85, 1)),
    steps=250,
    shown_by="entropy, which the loop logs, is gone after some steps, and the reward stays far below its best",
)
def grpo_too_fast(trial: Trial) -> None:
    _group(trial, 1.0 if trial.broken else 3e-3, 0.04)


@report(
    source="https://github.com/huggingface/trl/issues/5697, https://github.com/modelscope/ms-swift/issues/4950",
    mechanism="max_completion_length is too small: each sample is cut before its answer, each reward is 0.",
    causes=("TruncationSurge", "DeadGroups", "ZeroGradients"),
    check=fact("reward", (0, 0), (0.6, 1)),
    steps=150,
    shown_by="completions/clipped_ratio is 1 and frac_reward_zero_std is 1 from the first step on; the loss is 0",
)
def completions_all_cut(trial: Trial) -> None:
    _group(trial, 3e-3, 0.0, cut=trial.broken)


@report(
    source="A description, common in forums on REINFORCE: the minus before the log-probability is missing",
    mechanism="The policy loss has the wrong sign: actions that are rewarded become less likely.",
    causes=("RewardCollapse", "LossWithoutBound"),
    check=fact("reward", (-1, 0.15), (0.8, 2)),
    steps=200,
    shown_by="the reward, which the loop logs, falls to 0 and stays there",
)
def policy_loss_sign(trial: Trial) -> None:
    agent = _Agent()
    optimizer = torch.optim.Adam(agent.parameters(), lr=3e-3)
    sign = 1 if trial.broken else -1

    def loss(_: int) -> tuple[Tensor, Facts]:
        state = trial.randint(STATES, 64)
        action, reward = play(trial, agent, state)
        logs, value = agent(state)
        policy = sign * ((reward - value.detach()) * logs[torch.arange(64), action]).mean()
        return policy + 0.5 * F.mse_loss(value, reward), {"reward": reward.mean()}

    plain_loop(trial, agent, optimizer, loss, tell=True)


@report(
    source="https://github.com/DLR-RM/stable-baselines3/issues/781, https://github.com/pranz24/pytorch-soft-actor-critic/issues/34",
    mechanism="The entropy that SAC aims at is more than ten actions can have: its coefficient grows without end, and "
    "the values with it.",
    causes=("TargetsRunAway", "LossDivergence", "EntropyExplosion"),
    check=fact("coefficient", (30, 1e12), (0, 2)),
    steps=400,
    shown_by="ent_coef, which the loop logs, doubles each 50 steps; targets and values grow with it",
)
def entropy_coefficient_grows(trial: Trial) -> None:
    actor, critic = (nn.Sequential(nn.Embedding(STATES, 32), mlp(32, 48, ACTIONS)) for _ in range(2))
    of_actor, of_critic = (torch.optim.Adam(m.parameters(), lr=3e-3) for m in (actor, critic))
    size = torch.zeros((), requires_grad=True)
    of_size = torch.optim.Adam([size], lr=1e-2)
    wanted = 3.0 if trial.broken else 1.0
    trial.attach(critic, of_critic)
    trial.attach(actor, of_actor)
    for _ in range(trial.steps):
        state, action = trial.randint(STATES, 64), trial.randint(ACTIONS, 64)
        reward = (action == state % ACTIONS).float()
        with torch.no_grad():
            after = trial.randint(STATES, 64)
            logs = actor(after).log_softmax(-1)
            soft = (logs.exp() * (critic(after) - size.exp() * logs)).sum(-1)
            goal = reward + 0.5 * soft
        wrong = F.mse_loss(critic(state)[torch.arange(64), action], goal)
        of_critic.zero_grad()
        wrong.backward()
        of_critic.step()
        logs = actor(state).log_softmax(-1)
        entropy = -(logs.exp() * logs).sum(-1)
        aim = -(logs.exp() * critic(state).detach()).sum(-1).mean() - size.exp().detach() * entropy.mean()
        of_actor.zero_grad()
        aim.backward()
        of_actor.step()
        of_size.zero_grad()
        (size * (entropy.detach().mean() - wanted)).backward()
        of_size.step()
        trial.tell(reward=reward.mean(), ent_coef=size.exp(), critic_loss=wrong, actor_loss=aim)
        trial.log(wrong, coefficient=size.exp())


@report(
    source="A description, common in questions on fine-tuning: unfreezing does not put parameters into the optimizer",
    mechanism="The body is frozen for a warm-up of the head and its parameters are thawed, but the optimizer of the "
    "second stage is made of the head alone.",
    causes=("ParametersNotInOptimizer",),
    check=loss_hurt,
    where=("body",),
    fault=100,
    steps=300,
    shown_by="gradients of the body from step 100 on, which no optimizer steps",
)
def thawed_and_not_stepped(trial: Trial) -> None:
    model = Assembled(
        lambda m, x: m["head"](m["body"](x)), body=nn.Sequential(mlp(64, 48, 12), nn.ReLU()), head=nn.Linear(12, 10)
    )
    model["body"].requires_grad_(False)
    optimizer = torch.optim.Adam(model["head"].parameters(), lr=3e-3)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        if step == 100:
            model["body"].requires_grad_(True)
            if not trial.broken:
                optimizer.add_param_group({"params": list(model["body"].parameters())})
        x, y = draw_digits(trial)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        trial.log(loss)
