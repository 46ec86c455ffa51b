"""`mean_mode`: the weight gradient of a linear layer, split into the part of the token means and a centred rest."""

from stabwatch.kernels.mean_mode.eager import dead_units as dead_units
from stabwatch.kernels.mean_mode.eager import mean_mode as mean_mode
