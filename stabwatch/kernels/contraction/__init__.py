"""`contraction`: how much of the differences between tokens passes through an attention call."""

from stabwatch.kernels.contraction.eager import contraction as contraction
