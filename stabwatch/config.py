"""Settings of a watch. Keywords override environment variables, these a YAML file, and that the defaults below."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from stabwatch.errors import ConfigError, StabwatchError

PREFIX = "STABWATCH_"
"""Of every environment variable that stabwatch reads and that is nobody else's."""
_SECRETS = ("WEBHOOK", "NOTIFY_COMMAND", "ALERTMANAGER", "ALERTMANAGER_TOKEN", "SMTP", "HEARTBEAT")
VARIABLES = (
    "PASSWORD", "HOSTS", "PUSHGATEWAY", "KERNELS", "SETTINGS_FILE", "RUN_FOLDER", "PREFLIGHT", "RUNS",
    *_SECRETS, *(f"{name}_FILE" for name in _SECRETS),
)  # fmt: skip
"""Variables, without their prefix, that are no settings of a Config."""
_LISTED = " The settings are in docs/api.md, and other variables in docs/alerts.md and docs/network.md."
_log = logging.getLogger("stabwatch")
GUARDS = ("taylor", "skip_step", "snapshot", "lr_backoff", "raise")


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings. Each field is also a keyword of `attach` and an environment variable STABWATCH_<FIELD>."""

    name: str = ""
    """What people call the run; need not be unique. `stabwatch tag` changes it later, and so for `tags` and `notes`."""
    tags: tuple[str, ...] = ()
    """Words by which the run is found again; as text, separated by commas."""
    notes: str = ""
    """Any text about the run."""
    run: str | None = None
    """Name of the run and of its folder. Default: SLURM_JOB_ID if it is set, else date, time and process id."""
    root: str = "stabwatch-runs"
    """Folder in which run folders are made when no run_dir is given; may be in an object store (docs/stores.md)."""
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
    sharpness: bool = False
    """Measure the largest eigenvalue of the Hessian of the loss over the largest with which the optimizer is stable.
    On deep steps the model is called once more, on 512 samples at most, and the loss is differentiated twice."""
    jacobian: bool = False
    """Measure the largest singular value of the derivative of the model's output by its input, where both have one
    shape. On deep steps the model is called once more, on eight samples at most."""
    guard: str | None = None
    """Guards that may change training: names separated by commas.

    'taylor' shortens steps longer than their Taylor radius. 'skip_step' undoes steps whose gradient norm is not
    finite or is an outlier. The others act at a critical alert: 'snapshot' restores the state from before its onset,
    'lr_backoff' halves the learning rate, and 'raise' raises TrainingUnstableError (together with other guards: only
    when they could do nothing). See docs/guards.md."""
    snapshot_every: int = 100
    """Steps between two snapshots of the guard 'snapshot'."""
    snapshot_peers: str | None = None
    """Where else the guard 'snapshot' keeps the state of each rank, so that `Watch.restore` finds it after a process or
    a host was lost: a 'copy' in host memory with another rank, or the 'parity' of four ranks, which takes a third."""
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
    max_series: int = 70_000
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
    """Print the run folder when attached, and the address of the live page once the agent serves it."""

    def __post_init__(self) -> None:
        mistakes = [error for f in fields(self) if (error := _mistake(f.name, getattr(self, f.name))) is not None]
        if mistakes:
            raise _together(mistakes)

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

        Raises ConfigError, which names every setting and every variable STABWATCH_... that is unknown or has a value
        that is not allowed. If the only mistake is in the rules or a sink: RuleError or MissingExtraError.
        """
        values, mistakes = _gathered(source, environ, overrides)
        if mistakes:
            raise _together([mistake.error for mistake in mistakes])
        return cls(**values)

    @classmethod
    def for_training(
        cls,
        source: Config | Mapping[str, Any] | str | Path | None = None,
        environ: Mapping[str, str] = os.environ,
        **overrides: Any,
    ) -> Config:
        """The same for a training, which a mistake outside of its code must not end.

        What is wrong in the environment or in the settings file is logged as an error and left out. Raises as `load`
        for keywords and mappings, and if the file cannot be read.
        """
        values, mistakes = _gathered(source, environ, overrides)
        if any(mistake.in_code for mistake in mistakes):
            raise _together([mistake.error for mistake in mistakes if mistake.in_code])
        for mistake in mistakes:
            _log.error("stabwatch: a setting is left out: %s", mistake.error)
        return cls(**values)


@dataclass(frozen=True)
class _Layer:
    """Settings from one place. where: its name in messages, {} stands for that of the variable; '' for code."""

    where: str
    values: Mapping[str, Any]

    def named(self, name: str, error: StabwatchError) -> StabwatchError:
        """The error with the place."""
        place = self.where.format(variable_of(name))
        return type(error)(f"{place}: {error}") if place else error


@dataclass(frozen=True)
class _Mistake:
    error: StabwatchError
    in_code: bool


def variable_of(name: str) -> str:
    """The environment variable of a setting."""
    return f"{PREFIX}{name.upper()}"


def unknown_variables(environ: Mapping[str, str] = os.environ) -> list[StabwatchError]:
    """What is wrong with each variable STABWATCH_... that nothing reads."""
    known = [*(f.name.upper() for f in fields(Config)), *VARIABLES]
    found = [name for name in environ if name.startswith(PREFIX) and name.removeprefix(PREFIX) not in known]
    hints = {name: _meant(name, known, PREFIX) or _LISTED for name in sorted(found)}
    return [ConfigError(f"There is no setting {name}.{hint}") for name, hint in hints.items()]


def check_variables() -> None:
    """Raises ConfigError if the environment has variables STABWATCH_... that nothing reads."""
    mistakes = unknown_variables()
    if mistakes:
        raise _together(mistakes)


def _gathered(
    source: Config | Mapping[str, Any] | str | Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], list[_Mistake]]:
    """The settings that are right, and what is wrong with others. A wrong one gives way to that of the next layer."""
    layers = (_Layer("", overrides), _from_environment(environ), _from_source(source))
    mistakes = [_Mistake(error, in_code=False) for error in unknown_variables(environ)]
    known = [f.name for f in fields(Config)]
    unknown: list[str] = []
    for layer in layers:
        for name in (name for name in layer.values if name not in known):
            settings = "" if unknown else f" Settings: {', '.join(sorted(known))}."
            text = f"There is no setting `{name}`.{settings}{_meant(str(name), known)}"
            mistakes.append(_Mistake(layer.named("", ConfigError(text)), in_code=not layer.where))
            unknown.append(name)
    values: dict[str, Any] = {}
    for name, kind in ((f.name, str(f.type)) for f in fields(Config)):
        for layer in (layer for layer in layers if name in layer.values and name not in values):
            try:
                value = _convert(name, kind, layer.values[name])
                error = _mistake(name, value)
            except ConfigError as wrong:
                error = wrong
            if error is None:
                values[name] = value
            else:
                mistakes.append(_Mistake(layer.named(name, error), in_code=not layer.where))
    return values, mistakes


def _together(errors: Sequence[StabwatchError]) -> StabwatchError:
    """One error for all mistakes; a single one as it is."""
    if len(errors) == 1:
        return errors[0]
    return ConfigError(" ".join(f"({number}) {error}" for number, error in enumerate(errors, 1)))


def _meant(name: str, known: Iterable[str], prefix: str = "") -> str:
    """A question that names the closest of some names; '' if none is close."""
    word = name.removeprefix(prefix).lower()
    close = get_close_matches(word, [one.lower() for one in known])
    close.sort(key=lambda one: sorted(one) != sorted(word))  # two letters in the wrong order
    if not close:
        return ""
    return f" Did you mean {prefix}{close[0].upper()}?" if prefix else f" Did you mean `{close[0]}`?"


def _mistake(name: str, value: Any) -> StabwatchError | None:
    """What is wrong with the value of a setting, if anything."""
    holds, what = _ALLOWED.get(name, (None, ""))
    if holds is not None and not holds(value):
        return ConfigError(f"`{name}` must be {what}, and is {value!r}.")
    try:
        if name in _LOADED and value:
            _LOADED[name](value)
    except StabwatchError as error:
        return error
    return None


def _load_rules(path: str) -> None:
    from stabwatch.alerts.user_rules import load_rules

    load_rules(path)


def _find_sinks(names: str) -> None:
    from stabwatch.exporters.registry import live_sinks

    live_sinks(_names(names))


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def _is_pattern(text: str | None) -> bool:
    try:
        re.compile(text or "")
    except re.error:
        return False
    return True


_ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "overhead_budget": (lambda x: 0 < x < 1, "between 0 and 1"),
    "port": (lambda x: 0 <= x < 65536, "between 0 and 65535"),
    "linger": (lambda x: x >= 0, "zero or more seconds"),
    "update_bytes": (lambda x: x >= 0, "zero or more bytes"),
    "include": (_is_pattern, "a regular expression"),
    "exclude": (_is_pattern, "a regular expression"),
    "guard": (lambda x: set(_names(x)) <= set(GUARDS), f"made of {', '.join(GUARDS)}"),
    "snapshot_every": (lambda x: x > 0, "one or more steps"),
    "snapshot_peers": (lambda x: x in (None, "copy", "parity"), "'copy' or 'parity'"),
    "escalate": (lambda x: x >= 0, "zero or more steps"),
    "external_url": (
        lambda x: x is None or x.startswith(("http://", "https://")),
        "an address with http:// or https://",
    ),
    "cardinality": (lambda x: x in ("run", "block", "layer"), "'run', 'block' or 'layer'"),
    "worst": (lambda x: x >= 0, "zero or more layers"),
    "max_series": (lambda x: x > 0, "one or more"),
    "reduce": (lambda x: x in ("auto", "never"), "'auto' or 'never'"),
}
"""Setting -> whether a value is allowed, and which are."""
_LOADED: dict[str, Callable[[str], None]] = {"rules": _load_rules, "sinks": _find_sinks}
"""Setting -> what raises StabwatchError if it cannot be used."""


def _from_source(source: Config | Mapping[str, Any] | str | Path | None) -> _Layer:
    if source is None:
        return _Layer("", {})
    if isinstance(source, Config):
        return _Layer("", {f.name: getattr(source, f.name) for f in fields(source)})
    if isinstance(source, Mapping):
        return _Layer("", source)
    import yaml

    try:
        data = yaml.safe_load(Path(source).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"The settings file {source} cannot be read: {error}.") from error
    if data is not None and not isinstance(data, dict):
        raise ConfigError(
            f"The settings file {source} must hold `name: value` lines, and holds a {type(data).__name__}."
        )
    return _Layer(str(source).replace("{", "{{").replace("}", "}}"), data or {})


def _from_environment(environ: Mapping[str, str]) -> _Layer:
    names = {variable_of(f.name): f.name for f in fields(Config)}
    return _Layer("{}", {names[key]: value for key, value in environ.items() if key in names})


_WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


_KINDS = {
    "tuple": "a list of words", "bool": "true or false", "int": "a whole number", "float": "a number", "str": "a text",
}  # fmt: skip


def _convert(name: str, kind: str, value: Any) -> Any:
    if value is None and "None" in kind:
        return None
    wanted = kind.split(" ")[0]
    try:
        if wanted.startswith("tuple"):
            return _names(value) if isinstance(value, str) else tuple(dict.fromkeys(map(str, value)))
        if wanted == "bool":
            return value if isinstance(value, bool) else _WORDS[str(value).lower()]
        return {"int": int, "float": float, "str": str}[wanted](value)
    except (KeyError, ValueError, TypeError):
        raise ConfigError(f"`{name}` must be {_KINDS[wanted[:5]]}, and is {value!r}.") from None
