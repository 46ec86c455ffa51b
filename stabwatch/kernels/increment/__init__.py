"""`increment`: what a step does to the product of query and key weights, head by head, from small Gram matrices."""

from stabwatch.kernels.increment.eager import increment as increment
