"""Are the samples of a batch all the same?"""

from torch import Tensor

ROWS, COLUMNS = 64, 4096
"""Samples that are compared, and numbers of each, at most."""
FEWEST = 8
"""Fewest samples that say something."""


def alike(x: Tensor) -> Tensor:
    """float32 (): the share of samples (batch, ...) that equal the first one."""
    rows = x.detach()[:ROWS].reshape(min(len(x), ROWS), -1)[:, :COLUMNS]
    return (rows == rows[:1]).all(dim=1).float().mean()
