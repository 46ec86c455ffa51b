"""`multi_tensor`: moments of many tensors at once, gathered by group (parameters of one layer)."""

from stabwatch.kernels.multi_tensor.eager import grouped_moments as grouped_moments
from stabwatch.kernels.multi_tensor.eager import grouped_sumsq as grouped_sumsq
