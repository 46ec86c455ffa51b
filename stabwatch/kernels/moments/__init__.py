"""`moments`: count, sum of squares, non-finite count and absolute maximum of a tensor.

Sums and maxima run over the finite elements; the count is of all elements.
"""

from stabwatch.kernels.moments.eager import moments as moments
