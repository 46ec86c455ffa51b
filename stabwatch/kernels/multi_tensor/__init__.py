"""`multi_tensor`: moments and changes of many tensors at once, gathered by group (parameters of one layer)."""

from stabwatch.kernels.multi_tensor.eager import grouped_change as grouped_change
from stabwatch.kernels.multi_tensor.eager import grouped_moments as grouped_moments
