"""`taylor`: a step's length over the radius in which the cross-entropy is still what its Taylor series says."""

from stabwatch.kernels.taylor.eager import radii as radii
from stabwatch.kernels.taylor.eager import ratios as ratios
from stabwatch.kernels.taylor.eager import taylor as taylor
