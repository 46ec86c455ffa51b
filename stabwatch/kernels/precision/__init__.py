"""`precision`: the elements of a tensor that narrower formats would lose. `rounding`: how far they would move it."""

from stabwatch.kernels.precision.eager import precision as precision
from stabwatch.kernels.precision.eager import precisions as precisions
from stabwatch.kernels.precision.rounding import rounding as rounding
from stabwatch.kernels.precision.rounding import roundings as roundings
