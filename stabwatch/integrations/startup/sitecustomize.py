"""Loaded by Python when it starts, in programs under `stabwatch run`: waits for the program to import torch.optim.

Nothing else is imported and nothing is done in a program that never does. Another `sitecustomize` on the path is run as
without this one.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder

TYPE_CHECKING = False  # typing itself takes longer to import than all else here
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

MODULE = "torch.optim.optimizer"


class AfterImport:
    """A finder that finds nothing, and calls `installed` once `MODULE` has been imported."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None, /) -> ModuleSpec | None:
        """The spec of `MODULE`, whose loader calls `installed` afterwards; None for all others."""
        if name != MODULE:
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path)
        loader: Any = spec.loader if spec is not None else None
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                del loader.exec_module
                execute(module)
                installed(module)

            loader.exec_module = exec_module
        return spec


def installed(module: ModuleType) -> None:
    """torch.optim is there: watch from the first optimizer step on. Raises nothing."""
    try:
        from stabwatch.integrations.first_step import install

        install(module)
    except Exception as error:
        print(
            f"stabwatch: the training is not watched: stabwatch cannot be loaded by {sys.executable} ({error}).",
            file=sys.stderr,
        )


def run_the_next_sitecustomize() -> None:
    """Take this folder off the path, and run the `sitecustomize` that this one hides."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
    spec = PathFinder.find_spec("sitecustomize", sys.path)
    if spec is not None and spec.loader is not None:
        from importlib.util import module_from_spec

        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


if __name__ == "sitecustomize":
    sys.meta_path.insert(0, AfterImport())
    run_the_next_sitecustomize()
