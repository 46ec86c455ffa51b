"""`mean_mode`: a linear layer's weight gradient, split into the part of the token means and the centred rest."""

from stabwatch.kernels.mean_mode.eager import dead_units as dead_units
from stabwatch.kernels.mean_mode.eager import mean_mode as mean_mode
