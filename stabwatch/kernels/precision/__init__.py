"""`precision`: the elements of a tensor that narrower number formats would lose."""

from stabwatch.kernels.precision.eager import precision as precision
