"""What `attach` is given that is no setting: one clear sentence about what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from stabwatch.errors import ConfigError


def check(model: Any, optimizer: Any, first_step: Any, given: Mapping[str, Any]) -> None:
    """given: by name, `loss_fn`, `on_alert`, `run_dir` and `resume`. Raises ConfigError."""
    _check_one(model)
    for one in optimizer if isinstance(optimizer, list | tuple) else [] if optimizer is None else [optimizer]:
        if not _steps(one):
            raise _wrong("optimizer", "an optimizer (an object with a method `step`) or a list of them", one)
    for name in ("loss_fn", "on_alert"):
        if given[name] is not None and not callable(given[name]):
            raise _wrong(name, "a function or a module" if name == "loss_fn" else "a function", given[name])
    for name in ("run_dir", "resume"):
        value = given[name]
        if value is not None and not (isinstance(value, str | os.PathLike) and os.fspath(value)):
            raise _wrong(name, "the path of a folder", value)
    if not hasattr(first_step, "__index__") or first_step < 0:
        raise _wrong("first_step", "a whole number from 0", first_step)


def _check_one(model: Any) -> None:
    """Several models are several runs."""
    several = list(model.values()) if isinstance(model, Mapping) else model
    if isinstance(several, list | tuple) and several and all(isinstance(m, nn.Module) for m in several):
        raise ConfigError(
            f"`attach` watches one model: call it once for each of these {len(several)}, with the optimizer that steps "
            "it. Each is a run of its own, with its own loss."
        )


def _steps(optimizer: Any) -> bool:
    try:
        return not isinstance(optimizer, type) and callable(getattr(optimizer, "step", None))
    except Exception:  # raised by the object, which is asked for what it may not have
        return False


def _wrong(name: str, wanted: str, value: Any) -> ConfigError:
    plain = value is None or isinstance(value, str | bytes | bool | int | float | type)
    found = repr(value) if plain else f"an object of {type(value).__module__}.{type(value).__qualname__}"
    return ConfigError(f"`{name}` must be {wanted}, and is {found}.")
