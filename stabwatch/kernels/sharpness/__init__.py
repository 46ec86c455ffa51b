"""`climb`: towards the largest eigenvalue of a symmetric operator on vectors that have several parts."""

from stabwatch.kernels.sharpness.eager import climb as climb
from stabwatch.kernels.sharpness.eager import dot as dot
from stabwatch.kernels.sharpness.eager import unit as unit
