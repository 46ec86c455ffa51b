"""The definition, in float64."""

from __future__ import annotations

import numpy as np


def slope(outputs: list[np.ndarray]) -> float:
    """Slope of ln(RMS) over the block's index, from the outputs of the blocks of a stack in order."""
    logs = [float(np.log(np.sqrt(np.mean(np.asarray(x, np.float64) ** 2)))) for x in outputs]
    return float(np.polyfit(np.arange(len(logs)), logs, 1)[0])
