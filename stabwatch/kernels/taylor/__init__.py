"""`taylor`: the length of a step over the radius of convergence of the Taylor series of the cross-entropy."""

from stabwatch.kernels.taylor.eager import radii as radii
from stabwatch.kernels.taylor.eager import ratios as ratios
from stabwatch.kernels.taylor.eager import taylor as taylor
