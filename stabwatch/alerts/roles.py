"""What a number that the training loop logs is, by its name: reward, entropy, divergence, importance ratio.

The names are those of TRL, verl, OpenRLHF, Stable-Baselines3, CleanRL and rsl_rl, below any path. What
`Watch.log_policy` measures comes before what is logged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stabwatch.alerts.statistics import Array, Bools, any_measured
from stabwatch.runlog import SeriesKey

LOGGED = "logged_value"
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_NOT = re.compile(
    r"(?:^|[^a-z])(?:eval|evaluation|valid|validation|test|coef\w*|weight|beta|target|penalty|bonus|threshold|limit"
    r"|cross|attention|router|init|cfg|config|std|var|best)(?:[^a-z]|$)"
)
"""Words in names of evaluations, of settings and of other quantities."""
REWARD = re.compile(
    r"(?:^|[/_ ])(?:mean_|average_|avg_|train_|episode_|episodic_|ep_|rollout_)*"
    r"(?:rewards?|returns?|rew|ret)(?:_mean|_avg|/mean|_moyen)?$"
    r"|(?:^|[/_ ])episode_(?:(?:running_)?(?:average_|avg_|mean_))?score$"
    r"|(?:^|[/_ ])(?:ep_rew_mean|average_ep_ret|rlhf_reward|scores|(?:avg|mean|average|ep|episode|cumulative)_r)$"
)


@dataclass(frozen=True)
class Role:
    """One kind of number. words: in a sentence. signals: of `log_policy`. pattern: of names, in lower case."""

    name: str
    words: str
    pattern: re.Pattern[str]
    signals: tuple[str, ...] = ()


def _role(name: str, words: str, pattern: str, *signals: str, path: str = r"(?:^|[/_ ])") -> Role:
    return Role(name, words, re.compile(rf"{path}(?:{pattern})$"), signals)


_PART = r"(?:^|(?<!rollout_corr)(?<!val)(?<!critic)/)"
"""A whole part of a name, not one of a critic or of a sampler."""
_MEAN = r"(?:[/_](?:mean|avg|average))?"
ROLES: tuple[Role, ...] = (
    Role("reward", "the reward", REWARD),
    _role("accuracy", "the accuracy", rf"(?:acc|accuracy|accuracies){_MEAN}"),
    _role("eval_loss", "the validation loss", r"(?:val|valid|validation|eval|evaluation|dev|test)[/_]loss"
          r"|loss[/_](?:val|valid|validation|eval|evaluation|dev|test)"),
    _role("entropy", "the entropy", rf"entropy(?:_loss)?{_MEAN}", "policy_entropy_estimate"),
    _role("reference_kl", "the divergence from the reference", rf"(?:(?:mean|avg|ref|reference)_)*kl"
          rf"(?:_(?:loss|div|divergence|ref|reference))?{_MEAN}", "policy_reference_kl_k1", "policy_reference_kl_k3",
          path=r"(?:^|(?<!rollout_corr)/)"),
    _role("old_kl", "the divergence from the policy before the update",
          rf"(?:old_)?approx_?kl{_MEAN}|ppo_kl{_MEAN}|old_kl|meankl|kl_?old_?new|kl_between_old_and_new_distributions?",
          "policy_old_kl_k3"),
    _role("clip_fraction", "the share of clipped samples",
          rf"(?:(?:pg|ppo|policy|actor)_)*clip_?frac(?:tion)?{_MEAN}|clip_ratio/region_mean|ppo_clip_ratio",
          "policy_clip_ratio", path=_PART),
    _role("ratio_max", "the largest importance ratio",
          r"(?:(?:importance|sampling|policy|is)_)*ratio[/_]max|rollout_is_max", "policy_ratio_max"),
    _role("effective_samples", "the share of effective samples",
          r"ess(?:_ratio)?|eff(?:ective)?_sample(?:_size|s)?(?:_ratio)?|rollout_is_eff_sample_size",
          "policy_effective_sample_ratio"),
    _role("rollout_logp", "the difference of the log-probabilities",
          r"sampling_logp_difference/mean|(?:rollout|vllm|sglang)_log_?p(?:robs?)?_(?:abs_)?diff(?:erence)?(?:[/_]mean)?",
          "rollout_logp_difference"),
    _role("rollout_probability", "the difference of the probabilities", r"rollout_probs?_diff(?:[/_]mean)?"),
    _role("rollout_kl", "the divergence",
          r"(?:rollout_corr/|rollout_)(?:k3_)?kl|(?:vllm|sglang|mismatch)_kl", "rollout_kl_k3"),
    _role("rollout_correlation", "the correlation of the probabilities", r"rollout_actor_probs_pearson_corr"),
    _role("advantage_max", "the largest advantage", r"advantages?[/_](?:abs_)?max", "advantage_abs_max"),
    _role("dead_groups", "the share of groups without spread",
          r"frac_reward_zero_std|(?:frac_)?zero_(?:std|variance|advantage)_(?:groups?|ratio|frac)"
          r"|(?:frac_)?dead_groups?(?:_ratio)?", "advantage_zero_ratio"),
    _role("truncated", "the share of truncated samples", r"completions/clipped_ratio|response_length\w*/clip_ratio"
          r"|truncat(?:ed|ion)(?:_(?:ratio|rate|frac|fraction))?"),
    _role("continuous", "the scale of actions", r"(?:mean_)?(?:noise_|action_)?(?:log_)?std(?:_dev)?", path=_PART),
)  # fmt: skip
PLACES = {role.name: place for place, role in enumerate(ROLES)}
_ANY = ("dead_groups", "continuous", "eval_loss")
"""Roles whose names may have words of `_NOT`."""


def spelled(name: str) -> str:
    """A name as the patterns have it: lower case, words apart by underscores."""
    return re.sub(r"[\s.]+", "_", _CAMEL.sub("_", name.strip()).lower()).strip("_:=-")


def is_called(role: str, name: str) -> bool:
    """Is this the name of such a number?"""
    full = spelled(name)
    return bool(ROLES[PLACES[role]].pattern.search(full)) and (role in _ANY or not _NOT.search(full))


class RoleColumns:
    """The columns of some roles. The first series of a role that has a number is the one, from then on."""

    def __init__(self, *roles: str) -> None:
        self.roles = roles
        self._chosen: dict[str, SeriesKey] = {}
        self._candidates: dict[str, list[tuple[int, SeriesKey]]] = {role: [] for role in roles}
        self._all = np.empty(0, dtype=np.int64)

    def bind(self, keys: Sequence[SeriesKey]) -> None:
        """Find the columns in a new layout."""
        for name in self.roles:
            declared = ROLES[PLACES[name]].signals
            found = [(declared.index(k.signal), i, k) for i, k in enumerate(keys) if k.signal in declared]
            found += [
                (len(declared) + len(k.layer), i, k)
                for i, k in enumerate(keys)
                if k.signal == LOGGED and is_called(name, k.layer)
            ]
            self._candidates[name] = [(column, key) for _, column, key in sorted(found, key=lambda f: f[:2])]
        every = {column for some in self._candidates.values() for column, _ in some}
        self._all = np.array(sorted(every), dtype=np.int64)

    @property
    def bound(self) -> bool:
        """Whether the layout has any of the roles."""
        return len(self._all) > 0

    def of(self, role: str, values: Array) -> float:
        """The number of a role in a record, NaN where there is none."""
        for column, key in self._candidates[role]:
            if not math.isnan(values[column]) and self._chosen.setdefault(role, key) == key:
                return float(values[column])
        return math.nan

    def has(self, *roles: str) -> bool:
        """Has there been a number of one of these roles?"""
        return any(role in self._chosen for role in roles)

    def is_measured(self, role: str) -> bool:
        """Is it measured by `log_policy`, and not logged by the user?"""
        key = self._chosen.get(role)
        return key is not None and key.signal != LOGGED

    def name(self, role: str) -> str:
        """The name of the series of a role; '' before its first number."""
        key = self._chosen.get(role)
        return "" if key is None else key.layer if key.signal == LOGGED else key.signal

    def measured(self, values: Array) -> Bools:
        """Whether any of the roles has a number in each record, (n,) of (n, series)."""
        return any_measured(values, self._all)
