"""`growth`: how fast the root mean square grows over the depth of a stack."""

from stabwatch.kernels.depth.eager import growth as growth
