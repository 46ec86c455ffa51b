"""`precision`: what narrower number formats would lose of a tensor."""

from stabwatch.kernels.precision.eager import precision as precision
