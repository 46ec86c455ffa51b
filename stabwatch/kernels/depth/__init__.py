"""`growth`: growth rate of the root mean square with depth in a stack of blocks."""

from stabwatch.kernels.depth.eager import growth as growth
