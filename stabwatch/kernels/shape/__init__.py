"""`shape`: how heavy the tails of an activation are."""

from stabwatch.kernels.shape.eager import shape as shape
