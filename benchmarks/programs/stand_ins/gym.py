"""CartPole and Pendulum with the public dynamics, behind as much of gym 0.26 as the programs use.

With GYM=old `reset` and `step` return what they did before: the observation alone, and one `done`.
"""

import math
import os
from types import SimpleNamespace

import numpy as np


class Box:
    def __init__(self, low, high):
        self.low, self.high = np.asarray(low, np.float32), np.asarray(high, np.float32)
        self.shape, self.dtype = self.low.shape, np.float32

    def sample(self):
        return np.random.uniform(self.low, self.high).astype(np.float32)

    def seed(self, seed=None):
        pass


class Discrete:
    shape, dtype = (), np.int64

    def __init__(self, n):
        self.n = n

    def sample(self):
        return np.random.randint(self.n)

    def seed(self, seed=None):
        pass


class Env:
    spec = SimpleNamespace(reward_threshold=475.0, max_episode_steps=500)
    made = 0

    def __init__(self):
        self.random = np.random.RandomState(Env.made)
        Env.made += 1

    @property
    def unwrapped(self):
        return self

    def seed(self, seed=None):
        pass

    def render(self):
        pass

    def close(self):
        pass


class CartPole(Env):
    x_threshold, theta_threshold_radians = 2.4, math.radians(12)

    def __init__(self):
        super().__init__()
        self.observation_space, self.action_space = Box([-4.8, -9, -0.4, -9], [4.8, 9, 0.4, 9]), Discrete(2)

    def reset(self, **given):
        self.state, self.steps = self.random.uniform(-0.05, 0.05, 4), 0
        return self.state.astype(np.float32), {}

    def step(self, action):
        _, speed, angle, turn = self.state
        cosine, sine = math.cos(angle), math.sin(angle)
        push = ((10.0 if action == 1 else -10.0) + 0.05 * turn * turn * sine) / 1.1
        turning = (9.8 * sine - cosine * push) / (0.5 * (4 / 3 - 0.1 * cosine * cosine / 1.1))
        change = np.array([speed, push - 0.05 * turning * cosine / 1.1, turn, turning])
        self.state, self.steps = self.state + 0.02 * change, self.steps + 1
        fallen = bool(abs(self.state[0]) > self.x_threshold or abs(self.state[2]) > self.theta_threshold_radians)
        return self.state.astype(np.float32), 1.0, fallen, self.steps >= 500, {}


class Pendulum(Env):
    def __init__(self):
        super().__init__()
        self.observation_space, self.action_space = Box([-1, -1, -8], [1, 1, 8]), Box([-2.0], [2.0])

    def _seen(self):
        return np.array([math.cos(self.angle), math.sin(self.angle), self.turn], np.float32)

    def reset(self, **given):
        self.angle, self.turn, self.steps = self.random.uniform(-math.pi, math.pi), self.random.uniform(-1, 1), 0
        return self._seen(), {}

    def step(self, action):
        force = float(np.clip(np.asarray(action, dtype=float).reshape(-1)[0], -2, 2))
        off = (self.angle + math.pi) % (2 * math.pi) - math.pi
        cost = off * off + 0.1 * self.turn**2 + 0.001 * force * force
        self.turn = float(np.clip(self.turn + (15 * math.sin(self.angle) + 3 * force) * 0.05, -8, 8))
        self.angle, self.steps = self.angle + 0.05 * self.turn, self.steps + 1
        return self._seen(), -cost, False, self.steps >= 200, {}


class Wrapper:
    def __init__(self, env, *given, **more):
        self.env = env

    def __getattr__(self, name):
        return getattr(self.env, name)

    def reset(self, **given):
        return self.env.reset(**given)

    def step(self, action):
        return self.env.step(action)


class Old(Wrapper):
    @property
    def unwrapped(self):
        return self

    def reset(self, **given):
        return self.env.reset()[0]

    def step(self, action):
        seen, reward, done, cut, facts = self.env.step(action)
        return seen, reward, done or cut, facts


def make(name, **given):
    env = CartPole() if name.startswith("CartPole") else Pendulum()
    return Old(env) if os.environ.get("GYM") == "old" else env


spaces = SimpleNamespace(Box=Box, Discrete=Discrete, Space=object)
