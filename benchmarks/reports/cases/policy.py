"""Policies and preferences: rewards, advantages, references."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import fact, not_finite
from benchmarks.reports.data import mlp

STATES, ACTIONS, GROUP = 12, 10, 8


def _policy() -> nn.Sequential:
    return nn.Sequential(nn.Embedding(STATES, 32), mlp(32, 64, ACTIONS, act=nn.Tanh))


def hits(state: Tensor, action: Tensor) -> Tensor:
    """1 for two of the ten actions, else 0."""
    return ((action == state % ACTIONS) | (action == (state + 1) % ACTIONS)).float()


def play(trial: Trial, agent: nn.Module, state: Tensor) -> tuple[Tensor, Tensor]:
    """Actions that an actor (and critic) samples, and rewards: hits, and noise."""
    with torch.no_grad():
        action = torch.multinomial(agent(state)[0].exp(), 1, generator=trial.generator)[:, 0]
    return action, hits(state, action) + 0.1 * trial.randn(len(state))


def _rewards(state: Tensor, action: Tensor, trial: Trial) -> Tensor:
    """Hits, and noise; (groups, GROUP)."""
    return (hits(state, action) + 0.1 * trial.randn(len(action))).view(-1, GROUP)


def _grpo(trial: Trial, beta: float, scored: object) -> None:
    """Group-relative policy gradients with a divergence from the reference. scored: (step, rewards) -> advantages."""
    model = _policy()
    reference = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        state = trial.randint(STATES, 16).repeat_interleave(GROUP)
        logs = model(state).log_softmax(-1)
        action = torch.multinomial(logs.detach().exp(), 1, generator=trial.generator)[:, 0]
        reward = _rewards(state, action, trial)
        advantage = scored(step, reward).flatten()  # type: ignore[operator]
        kl = (logs.exp() * (logs - reference(state).log_softmax(-1))).sum(-1).mean()
        loss = -(advantage * logs[torch.arange(len(action)), action]).mean() + beta * kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        entropy = -(logs.exp() * logs).sum(-1).mean()
        trial.log(loss, reward=reward.mean(), kl=kl, entropy=entropy, advantage=advantage.abs().max())


def _normalised(reward: Tensor, floor: float = 1e-4) -> Tensor:
    return (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + floor)


@report(
    source="https://github.com/qiancheng0/ToolRL/issues/52",
    mechanism="The divergence from the reference has the wrong sign: the policy is paid for leaving it.",
    causes=("PolicyLeavesReference", "EntropyCollapse"),
    check=fact("entropy", (0, 0.1), (0.4, 3)),
    steps=300,
    shown_by="no entropy: output_entropy is measured at cross_entropy alone; loss below zero",
)
def divergence_sign(trial: Trial) -> None:
    _grpo(trial, -0.3 if trial.broken else 0.3, lambda step, reward: _normalised(reward))


@report(
    source="https://github.com/huggingface/trl/issues/3857",
    mechanism="The reward function gives every sample the same number: all advantages are 0 and nothing is learned.",
    causes=("DeadGroups", "ZeroGradients", "LossStuck"),
    check=fact("advantage", (0, 0), (0.5, 9)),
    fault=80,
    shown_by="loss exactly 0 at each step from the fault on",
)
def rewards_constant(trial: Trial) -> None:
    def scored(step: int, reward: Tensor) -> Tensor:
        return _normalised(torch.ones_like(reward) if step >= 80 and trial.broken else reward)

    _grpo(trial, 0.0, scored)


@report(
    source="https://github.com/NVIDIA-NeMo/RL/pull/4161",
    mechanism="A group's rewards are equal but for rounding: dividing by their deviation makes an advantage "
    "of thousands.",
    causes=("AdvantageOutlier", "BadBatch"),
    check=lambda broken, twin: max(broken.facts["advantage"]) > 50 * max(twin.facts["advantage"]),
    fault=120,
    shown_by="the step is number 120, the records 112 and 128: it is never measured",
)
def advantage_outlier(trial: Trial) -> None:
    def scored(step: int, reward: Tensor) -> Tensor:
        advantage = _normalised(reward)
        if step == 120:
            residue = 1.6e-4 if trial.broken else 1.0
            advantage[0, 0] = 0.6 / residue
        return advantage

    _grpo(trial, 0.0, scored)


@report(
    source="https://github.com/yk7333/d3po/issues/20, "
    "https://github.com/eric-mitchell/direct-preference-optimization/issues/46",
    mechanism="The reference of a preference loss is the policy itself: the loss is ln 2 at each step.",
    causes=("LossConstant", "NotLearning"),
    check=lambda broken, twin: abs(broken.final() - 0.6931) < 1e-3 and twin.final() < 0.5,
    shown_by="the loss is 0.693147 at every step but is not recorded at all (a logsigmoid by hand); "
    "update_to_weight_ratio as usual",
)
def reference_is_policy(trial: Trial) -> None:
    model = _policy()
    reference = model if trial.broken else copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        state = trial.randint(STATES, 32)
        better, worse = state % ACTIONS, (state + 1 + trial.randint(8, 32)) % ACTIONS
        logs = model(state).log_softmax(-1)
        with torch.no_grad():
            base = reference(state).log_softmax(-1)
        gain = (logs - base)[torch.arange(32), better] - (logs - base)[torch.arange(32), worse]
        loss = -F.logsigmoid(0.5 * gain).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trial.log(loss)


@report(
    source="https://github.com/abhi1345/deep-q-rank/issues/4, https://github.com/danijar/dreamer/issues/20",
    mechanism="The target of the value is taken from the same network that is trained: values run away.",
    causes=("LossDivergence", "TargetsRunAway"),
    check=not_finite,
    steps=300,
    shown_by="output_rms and activation_abs_max of the last layer grow without end, long before they overflow",
)
def values_run_away(trial: Trial) -> None:
    model = mlp(4, 48, 48, 1)
    target = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x = trial.randn(32, 4)
        after = 1.3 * x  # states grow: the target's input is outside of what is fitted
        with torch.no_grad():
            goal = (x[:, :1] > 0).float() + 0.97 * (model if trial.broken else target)(after)
        value = model(x)
        loss = F.mse_loss(value, goal)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trial.log(loss, value=value.detach().abs().mean())
