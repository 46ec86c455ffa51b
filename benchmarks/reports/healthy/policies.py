"""Healthy reinforcement learning and preference learning."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical

from benchmarks.reports.case import Trial, healthy
from benchmarks.reports.checks import falls, reaches
from benchmarks.reports.data import mlp

SIZE, HORIZON, MANY = 7, 12, 16


class Corridor:
    """Many walkers on a line of seven places; the goal is at the right end, each step costs a tenth."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.place = torch.zeros(MANY, dtype=torch.long)

    def start(self) -> Tensor:
        """New places, (walkers, places) one-hot."""
        self.place = self.trial.randint(SIZE - 1, MANY)
        return F.one_hot(self.place, SIZE).float()

    def step(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Left (0) or right (1): the next observation and the reward."""
        self.place = (self.place + 2 * action - 1).clamp(0, SIZE - 1)
        arrived = (self.place == SIZE - 1).float()
        return F.one_hot(self.place, SIZE).float(), arrived - 0.1


def returns(rewards: list[Tensor], gamma: float = 0.95) -> Tensor:
    """Discounted sums of what follows, (steps, walkers)."""
    out, total = [], torch.zeros(MANY)
    for reward in reversed(rewards):
        total = reward + gamma * total
        out.append(total)
    return torch.stack(out[::-1])


@healthy(learns=reaches("reward", 0.5), steps=300)
def reinforce(trial: Trial) -> None:
    """REINFORCE with normalised returns: the loss lies around zero and has no trend."""
    policy = nn.Sequential(nn.Linear(SIZE, 32), nn.Dropout(0.1), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    world = Corridor(trial)
    trial.attach(policy, optimizer)
    for _ in range(trial.steps):
        seen, logs, rewards = world.start(), [], []
        for _ in range(HORIZON):
            choice = Categorical(logits=policy(seen))
            action = choice.sample()
            logs.append(choice.log_prob(action))
            seen, reward = world.step(action)
            rewards.append(reward)
        gain = returns(rewards)
        gain = (gain - gain.mean()) / (gain.std() + 1e-6)
        optimizer.zero_grad()
        loss = -(torch.stack(logs) * gain).sum(0).mean()
        loss.backward()
        optimizer.step()
        trial.log(loss, reward=torch.stack(rewards).mean())


class ActorCritic(nn.Module):
    """One body, a head for the action and one for the value; `act` and `value` are called, not `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.actor, self.critic = mlp(SIZE, 32), nn.Linear(32, 2), nn.Linear(32, 1)

    def act(self, seen: Tensor) -> Categorical:
        """Distribution of the action."""
        return Categorical(logits=self.actor(self.body(seen).relu()))

    def value(self, seen: Tensor) -> Tensor:
        """Expected return."""
        return self.critic(self.body(seen).relu())[..., 0]

    def forward(self, seen: Tensor) -> tuple[Categorical, Tensor]:
        return self.act(seen), self.value(seen)


def _rollout(model: ActorCritic, world: Corridor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Observations, actions and their returns, (steps, walkers, ...) each, and the mean reward."""
    seen, all_seen, actions, rewards = world.start(), [], [], []
    with torch.no_grad():
        for _ in range(HORIZON):
            action = model.act(seen).sample()
            all_seen.append(seen)
            actions.append(action)
            seen, reward = world.step(action)
            rewards.append(reward)
    return torch.stack(all_seen), torch.stack(actions), returns(rewards), torch.stack(rewards).mean()


@healthy(learns=reaches("reward", 0.5), steps=300)
def actor_critic(trial: Trial) -> None:
    """Actor and critic in one model, smooth L1 for the value; the sum of both losses."""
    model = ActorCritic()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    world = Corridor(trial)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        seen, action, gain, reward = _rollout(model, world)
        choice, value = model(seen)
        optimizer.zero_grad()
        loss = -(choice.log_prob(action) * (gain - value.detach())).mean() + F.smooth_l1_loss(value, gain)
        loss.backward()
        optimizer.step()
        trial.log(loss, reward=reward)


@healthy(learns=reaches("reward", 0.5), steps=480)
def ppo(trial: Trial) -> None:
    """PPO: four epochs over each rollout, clipped ratio, value loss, entropy bonus; methods instead of forward."""
    model = ActorCritic()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, eps=1e-5)
    world = Corridor(trial)
    trial.attach(model, optimizer)
    for _ in range(trial.steps // 4):
        seen, action, gain, reward = _rollout(model, world)
        with torch.no_grad():
            before, advantage = model.act(seen).log_prob(action), gain - model.value(seen)
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        for _ in range(4):
            choice = model.act(seen)
            ratio = (choice.log_prob(action) - before).exp()
            gained = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
            loss = -gained + 0.5 * F.mse_loss(model.value(seen), gain) - 0.01 * choice.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            trial.log(loss, reward=reward)


@healthy(learns=reaches("reward", 0.8), steps=500)
def grpo(trial: Trial) -> None:
    """Group-relative policy gradients: the reward reaches its maximum, groups become alike, gradients go to zero."""
    policy = nn.Sequential(nn.Embedding(16, 32), mlp(32, 48, 12, act=nn.Tanh))
    reference = copy.deepcopy(policy).requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=2e-3)
    trial.attach(policy, optimizer)
    for _ in range(trial.steps):
        state = trial.randint(16, 16).repeat_interleave(8)
        logs = policy(state).log_softmax(-1)
        action = torch.multinomial(logs.detach().exp(), 1, generator=trial.generator)[:, 0]
        reward = ((action == state % 12) | (action == (state + 1) % 12)).float()
        groups = reward.view(16, 8)
        gain = ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).flatten()
        kl = (logs.exp() * (logs - reference(state).log_softmax(-1))).sum(-1).mean()
        loss = -(gain * logs[torch.arange(128), action]).mean() + 0.02 * kl
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        trial.log(loss, reward=reward.mean())


@healthy(learns=falls(0.6))
def dpo(trial: Trial) -> None:
    """Preferences with a tenth of them wrong: the loss begins at ln 2."""
    policy = nn.Sequential(nn.Embedding(16, 32), mlp(32, 48, 12))
    reference = copy.deepcopy(policy).requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=5e-4)
    trial.attach(policy, optimizer)
    for _ in range(trial.steps):
        state = trial.randint(16, 32)
        better, worse = state % 12, (state + 1 + trial.randint(10, 32)) % 12
        wrong = torch.rand(32, generator=trial.generator) < 0.1
        better, worse = torch.where(wrong, worse, better), torch.where(wrong, better, worse)
        gain = policy(state).log_softmax(-1) - reference(state).log_softmax(-1)
        rows = torch.arange(32)
        loss = -F.logsigmoid(0.3 * (gain[rows, better] - gain[rows, worse])).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trial.log(loss)


@healthy(learns=reaches("reward", 0.3))
def deep_q(trial: Trial) -> None:
    """Q-learning with a replay memory and a target network that is copied each 50 steps: the loss rises at first."""
    model = mlp(SIZE, 32, 2)
    target = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    world = Corridor(trial)
    memory: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    trial.attach(model, optimizer)
    seen = world.start()
    for step in range(trial.steps):
        if step % HORIZON == 0:
            seen = world.start()
        if step % 50 == 0:
            target.load_state_dict(model.state_dict())
        with torch.no_grad():
            best = model(seen).argmax(-1)
        action = torch.where(torch.rand(MANY, generator=trial.generator) < 0.2, trial.randint(2, MANY), best)
        after, reward = world.step(action)
        memory = [*memory[-200:], (seen, action, reward, after)]
        s, a, r, n = memory[int(trial.randint(len(memory), 1))]
        optimizer.zero_grad()
        goal = r + 0.9 * target(n).amax(-1)
        loss = F.smooth_l1_loss(model(s).gather(1, a[:, None])[:, 0], goal)
        loss.backward()
        optimizer.step()
        seen = after
        trial.log(loss, reward=reward.mean())
