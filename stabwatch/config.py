"""Settings of a watch. Keywords override environment variables, these a YAML file, and that the defaults below."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from stabwatch.errors import ConfigError

GUARDS = ("taylor", "skip_step", "snapshot", "lr_backoff", "raise")


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings. Each field is also a keyword of `attach` and an environment variable STABWATCH_<FIELD>."""

    run: str | None = None
    """Name of the run. Default: SLURM_JOB_ID if it is set, else date, time and process id."""
    root: str = "stabwatch-runs"
    """Folder in which run folders are made when no run_dir is given."""
    overhead_budget: float = 0.01
    """Share of the step time that stabwatch may take. The governor measures less often where it would take more."""
    every_step: bool = False
    """Measure every tier at every step, whatever it costs."""
    include: str | None = None
    """Regular expression on layer names: watch only these."""
    exclude: str | None = None
    """Regular expression on layer names: do not watch these."""
    update_bytes: int = 256 << 20
    """Most bytes of parameters that are copied at a time to measure updates."""
    taylor: bool = False
    """Measure the step length over the Taylor radius. On deep steps the model is called once more, on a few samples."""
    guard: str | None = None
    """Guards that may change training: names separated by commas.

    'taylor' shortens steps longer than their Taylor radius. 'skip_step' undoes steps whose gradient norm is not
    finite or is an outlier. The others act at a critical alert: 'snapshot' restores the state from before its onset,
    'lr_backoff' halves the learning rate, and 'raise' raises TrainingUnstableError (together with other guards: only
    when they could do nothing). See docs/guards.md."""
    snapshot_every: int = 100
    """Steps between two snapshots of the guard 'snapshot'."""
    escalate: int = 32
    """Number of steps after an alert at which everything is measured; 0 for none. Needs an agent or a guard."""
    attention_limit: float = 100.0
    """Largest safe attention logit (QK-clip's tau). The exact value is measured when a bracket contains this limit."""
    reduce: str = "auto"
    """'auto': merge over ranks when the model is data-parallel or sharded. 'never': each rank has its own run log."""
    agent: bool = True
    """Start an agent process (on rank 0) that serves metrics, alerts and the live page."""
    host: str = "127.0.0.1"
    """Address the agent listens on."""
    port: int = 9478
    """Port the agent listens on; the next free one if it is taken."""
    linger: float = 60.0
    """Seconds for which the agent still serves after the run has ended."""
    file_sd: str | None = None
    """Folder for the Prometheus target file. Default: `targets` beside the run folder."""
    cardinality: str = "layer"
    """Series of a signal on /metrics: one per 'layer', one per 'block', or one for the 'run'. See `worst`."""
    worst: int = 5
    """Worst layers of each signal that have series of their own at `cardinality` 'block' and 'run'."""
    max_series: int = 50_000
    """Most series on /metrics; the least important signals of layers are left out above it, and named."""
    sinks: str | None = None
    """Where else the run is sent while it goes on: names separated by commas, such as 'otlp,wandb'. Needs the agent.

    Built in: tensorboard, otlp, pushgateway, wandb, mlflow, trackio. See exporters/README.md."""
    rules: str | None = None
    """YAML file that changes, silences or adds alert rules (docs/alerts.md). It is checked when attaching."""
    external_url: str | None = None
    """Address of the live page as others reach it, for links in notifications. Default: that of the agent."""
    summary: bool = False
    """Notify of the end of the run too (docs/alerts.md)."""
    verbose: bool = True
    """Print one line with the run folder when attached."""

    def __post_init__(self) -> None:
        _require(0 < self.overhead_budget < 1, "overhead_budget", "between 0 and 1", self.overhead_budget)
        _require(0 <= self.port < 65536, "port", "between 0 and 65535", self.port)
        _require(self.linger >= 0, "linger", "zero or more seconds", self.linger)
        _require(self.update_bytes >= 0, "update_bytes", "zero or more bytes", self.update_bytes)
        for name in ("include", "exclude"):
            _require(_is_pattern(getattr(self, name)), name, "a regular expression", getattr(self, name))
        if self.rules is not None:
            from stabwatch.alerts.user_rules import load_rules

            load_rules(self.rules)
        if self.sinks:
            from stabwatch.exporters.registry import live_sinks

            live_sinks(self.sink_names)
        _require(set(self.guards) <= set(GUARDS), "guard", f"made of {', '.join(GUARDS)}", self.guard)
        _require(self.snapshot_every > 0, "snapshot_every", "one or more steps", self.snapshot_every)
        _require(self.escalate >= 0, "escalate", "zero or more steps", self.escalate)
        known = self.external_url is None or self.external_url.startswith(("http://", "https://"))
        _require(known, "external_url", "an address with http:// or https://", self.external_url)
        levels = ("run", "block", "layer")
        _require(self.cardinality in levels, "cardinality", "'run', 'block' or 'layer'", self.cardinality)
        _require(self.worst >= 0, "worst", "zero or more layers", self.worst)
        _require(self.max_series > 0, "max_series", "one or more", self.max_series)
        _require(self.reduce in ("auto", "never"), "reduce", "'auto' or 'never'", self.reduce)

    @property
    def guards(self) -> tuple[str, ...]:
        """The guards that are set."""
        return _names(self.guard)

    @property
    def sink_names(self) -> tuple[str, ...]:
        """The live sinks that are set."""
        return _names(self.sinks)

    @classmethod
    def load(
        cls,
        source: Config | Mapping[str, Any] | str | Path | None = None,
        environ: Mapping[str, str] = os.environ,
        **overrides: Any,
    ) -> Config:
        """Settings from a YAML file, a mapping or a Config, overridden by the environment and then by keywords.

        Raises ConfigError for an unknown setting or a value that is not allowed.
        """
        given = {**_from_source(source), **_from_environment(environ), **overrides}
        kinds = {f.name: str(f.type) for f in fields(cls)}
        for name in given:
            if name not in kinds:
                raise ConfigError(f"There is no setting `{name}`. Settings: {', '.join(sorted(kinds))}.")
        return cls(**{name: _convert(name, kinds[name], value) for name, value in given.items()})


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def _is_pattern(text: str | None) -> bool:
    try:
        re.compile(text or "")
    except re.error:
        return False
    return True


def _require(holds: bool, name: str, what: str, value: object) -> None:
    if not holds:
        raise ConfigError(f"`{name}` must be {what}, and is {value!r}.")


def _from_source(source: Config | Mapping[str, Any] | str | Path | None) -> dict[str, Any]:
    if source is None:
        return {}
    if isinstance(source, Config):
        return {f.name: getattr(source, f.name) for f in fields(source)}
    if isinstance(source, Mapping):
        return dict(source)
    import yaml

    try:
        data = yaml.safe_load(Path(source).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"The settings file {source} cannot be read: {error}.") from error
    if data is not None and not isinstance(data, dict):
        raise ConfigError(
            f"The settings file {source} must hold `name: value` lines, and holds a {type(data).__name__}."
        )
    return data or {}


def _from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    names = {f"STABWATCH_{f.name.upper()}": f.name for f in fields(Config)}
    return {names[key]: value for key, value in environ.items() if key in names}


_WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def _convert(name: str, kind: str, value: Any) -> Any:
    if value is None and "None" in kind:
        return None
    wanted = kind.split(" ")[0]
    try:
        if wanted == "bool":
            return value if isinstance(value, bool) else _WORDS[str(value).lower()]
        return {"int": int, "float": float, "str": str}[wanted](value)
    except (KeyError, ValueError, TypeError):
        raise ConfigError(f"`{name}` must be a {wanted}, and is {value!r}.") from None
