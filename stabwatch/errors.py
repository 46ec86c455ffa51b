"""Every error that stabwatch raises on purpose.

StabwatchError
├── ConfigError        (ValueError)   a setting is unknown or out of range
├── RunLogError        (ValueError)   a run folder is missing, unreadable or of another schema
├── SeriesError        (LookupError)  a run log has no such series
├── LogError           (ValueError)   a training log of somebody else's cannot be read
├── RuleError          (ValueError)   an alert rule is malformed
├── GrafanaError       (RuntimeError) a Grafana does not answer, or refuses
├── AgentError         (RuntimeError) the agent cannot serve (port, TLS files, ...)
├── SinkError          (RuntimeError) a sink of an export failed
├── TrainingUnstableError (RuntimeError) a critical alert, where `guard="raise"` asked for it
└── MissingExtraError  (ImportError)  an optional dependency is not installed

Only TrainingUnstableError is ever raised from inside a hook, and only for who asked for it: what goes wrong in a
training process after `attach` is counted, written to the run log once, and swallowed.
"""

from __future__ import annotations


class StabwatchError(Exception):
    """Root of the tree."""


class ConfigError(StabwatchError, ValueError):
    """A setting is unknown or out of range."""


class RunLogError(StabwatchError, ValueError):
    """A run folder is missing, unreadable or of another schema."""


class SeriesError(StabwatchError, LookupError):
    """A run log has no such series."""


class LogError(StabwatchError, ValueError):
    """A training log of somebody else's cannot be read."""


class RuleError(StabwatchError, ValueError):
    """An alert rule is malformed."""


class GrafanaError(StabwatchError, RuntimeError):
    """A Grafana does not answer, or refuses."""


class AgentError(StabwatchError, RuntimeError):
    """The agent cannot serve."""


class SinkError(StabwatchError, RuntimeError):
    """A sink of an export failed."""


class TrainingUnstableError(StabwatchError, RuntimeError):
    """A critical alert, where `guard="raise"` asked for it; an `on_alert` may raise it too."""


class MissingExtraError(StabwatchError, ImportError):
    """An optional dependency is not installed."""
