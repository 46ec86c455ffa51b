"""The same environments, with the wrappers and the vector of environments of gymnasium that CleanRL uses."""

from types import SimpleNamespace

import numpy as np
from gym import Box, CartPole, Discrete, Env, Pendulum, Wrapper, make, spaces

__all__ = ["Box", "CartPole", "Discrete", "Env", "Pendulum", "Wrapper", "make", "spaces", "vector", "wrappers"]


class Recorded(Wrapper):
    def reset(self, **given):
        self.reward, self.length = 0.0, 0
        return self.env.reset(**given)

    def step(self, action):
        seen, reward, done, cut, facts = self.env.step(action)
        self.reward, self.length = self.reward + reward, self.length + 1
        if done or cut:
            facts = {**facts, "episode": {"r": np.array([self.reward]), "l": np.array([self.length])}}
        return seen, reward, done, cut, facts


class ClippedAction(Wrapper):
    def step(self, action):
        return self.env.step(np.clip(action, self.env.action_space.low, self.env.action_space.high))


class Moments:
    def __init__(self):
        self.mean, self.variance, self.count = 0.0, 1.0, 1e-4

    def add(self, x):
        apart, total = x - self.mean, self.count + 1
        self.mean = self.mean + apart / total
        self.variance = (self.variance * self.count + apart * apart * self.count / total) / total
        self.count = total


class Observed(Wrapper):
    """What is seen passes through a function."""

    def __init__(self, env, function):
        super().__init__(env)
        self.function = function

    def reset(self, **given):
        seen, facts = self.env.reset(**given)
        return self.function(seen), facts

    def step(self, action):
        seen, *rest = self.env.step(action)
        return (self.function(seen), *rest)


def normalised(env):
    moments = Moments()

    def seen(x):
        moments.add(x)
        return ((x - moments.mean) / np.sqrt(moments.variance + 1e-8)).astype(np.float32)

    return Observed(env, seen)


class Rewarded(Wrapper):
    def __init__(self, env, function):
        super().__init__(env)
        self.function = function

    def step(self, action):
        seen, reward, *rest = self.env.step(action)
        return (seen, self.function(reward), *rest)


def normalised_reward(env, gamma=0.99):
    moments, discounted = Moments(), [0.0]

    def reward(r):
        discounted[0] = discounted[0] * gamma + r
        moments.add(discounted[0])
        return r / np.sqrt(moments.variance + 1e-8)

    return Rewarded(env, reward)


class SyncVectorEnv:
    def __init__(self, makers, **given):
        self.envs = [make() for make in makers]
        self.num_envs = len(self.envs)
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = self.action_space = self.envs[0].action_space

    def reset(self, **given):
        return np.stack([env.reset()[0] for env in self.envs]), {}

    def step(self, actions):
        rows, last = (
            [env.step(action) for env, action in zip(self.envs, actions, strict=True)],
            np.empty(self.num_envs, object),
        )
        seen, facts, ended = [], [None] * self.num_envs, False
        for i, (env, (now, _, done, cut, found)) in enumerate(zip(self.envs, rows, strict=True)):
            last[i] = now
            if done or cut:
                now, facts[i], ended = env.reset()[0], found, True
            seen.append(now)
        info = {"final_info": facts, "final_observation": last} if ended else {}
        return (np.stack(seen), *(np.array([row[i] for row in rows]) for i in (1, 2, 3)), info)

    def close(self):
        pass


def as_it_is(env, *given, **more):
    return env


vector = SimpleNamespace(SyncVectorEnv=SyncVectorEnv, VectorEnv=SyncVectorEnv)
wrappers = SimpleNamespace(
    RecordEpisodeStatistics=Recorded,
    RecordVideo=as_it_is,
    FlattenObservation=as_it_is,
    ClipAction=ClippedAction,
    NormalizeObservation=normalised,
    NormalizeReward=normalised_reward,
    TransformObservation=Observed,
    TransformReward=Rewarded,
)
