"""Modules that are called several times in one forward: growth over their calls, and the step from call to call."""

from stabwatch.kernels.loop.eager import gain as gain
from stabwatch.kernels.loop.eager import relative_step as relative_step
