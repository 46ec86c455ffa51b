"""`power_iteration`: the largest singular values of a matrix that changes slowly."""

from stabwatch.kernels.power_iteration.eager import iterate as iterate
from stabwatch.kernels.power_iteration.eager import start as start
from stabwatch.kernels.power_iteration.matrices import matrices as matrices
