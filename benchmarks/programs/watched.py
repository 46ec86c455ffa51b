"""Runs one program as `__main__`: `python -m benchmarks.programs.watched RUNS STEPS SCRIPT ...`.

RUNS: folder of the run logs; '-' for none: nothing is watched. The program ends after STEPS steps of its optimizers.
The last line that is printed says how many steps there were, whether it ended by itself, and the hash of all
parameters and of the states of the random generators.
"""

from __future__ import annotations

import gc
import hashlib
import os
import random
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

STAND_INS = Path(__file__).parent / "stand_ins"
PLOTS = ("matplotlib", "matplotlib.pyplot", "matplotlib.cm", "mpl_toolkits", "mpl_toolkits.mplot3d", "cv2", "imageio")


class Over(SystemExit):
    """As many steps were taken as were asked for."""


def _axes(rows: int = 1, columns: int = 1, *given: Any, **more: Any) -> tuple[Any, Any]:
    axes = np.empty((rows, columns), dtype=object)
    for place in np.ndindex(rows, columns):
        axes[place] = MagicMock()
    return MagicMock(), axes.squeeze()[()]


def prepare(folder: Path) -> None:
    """Stand-ins for what is not installed; the program's own folder is looked into first."""
    sys.path[:0] = [str(folder), str(folder.parent), str(STAND_INS)]
    for name in PLOTS:
        try:
            __import__(name)
        except ImportError:
            sys.modules[name] = MagicMock()
    if isinstance(sys.modules["matplotlib.pyplot"], MagicMock):
        sys.modules["matplotlib.pyplot"].subplots.side_effect = _axes
        sys.modules["matplotlib"].pyplot = sys.modules["matplotlib.pyplot"]
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


def model_of(optimizer: torch.optim.Optimizer) -> nn.Module | None:
    """The outermost module that has most of an optimizer's parameters."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    modules = [m for m in gc.get_objects() if isinstance(m, nn.Module) and "_modules" in vars(m)]
    mine = [m for m in modules if any(id(p) in held for p in m.parameters())]
    inner = {id(c) for m in mine for c in m.modules() if c is not m}
    outer = [m for m in mine if id(m) not in inner]
    return max(outer, key=lambda m: sum(id(p) in held for p in m.parameters()), default=None)


def main() -> None:
    """See the module."""
    runs, steps, script = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]).resolve()
    sys.argv = sys.argv[3:]
    prepare(script.parent)
    made: list[torch.optim.Optimizer] = []
    watches: list[Any] = []
    begin = torch.optim.Optimizer.__init__
    taken = 0

    def watched(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        made.append(self)
        if runs != "-" and (model := model_of(self)) is not None:
            import stabwatch

            place = Path(runs) / str(len(made))
            watches.append(stabwatch.attach(model, self, run_dir=place, agent=False, verbose=False))

    def stepped(*args: Any) -> None:
        nonlocal taken
        taken += 1
        if taken >= steps:
            raise Over(0)

    torch.optim.Optimizer.__init__ = watched  # type: ignore[method-assign]
    register_optimizer_step_post_hook(stepped)
    how = "ended"
    try:
        runpy.run_path(str(script), run_name="__main__")
    except Over:
        how = "stopped"
    except SystemExit as error:
        how = "ended" if not error.code else "failed"
    except Exception:
        traceback.print_exc(limit=-3)
        how = "failed"
    digest = hashlib.sha256(np.random.get_state()[1].tobytes() + str(random.getstate()).encode())  # type: ignore[index,union-attr]
    digest.update(torch.get_rng_state().numpy().tobytes())
    for p in (p for optimizer in made for group in optimizer.param_groups for p in group["params"]):
        digest.update(p.detach().contiguous().numpy().tobytes())
    for watch in watches:
        watch.detach()
    print(f"\nprogram {taken} {how} {digest.hexdigest()[:16]}", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
