"""`direction`: where an update points; `adam`: the state of Adam's moments."""

from stabwatch.kernels.direction.eager import adam as adam
from stabwatch.kernels.direction.eager import direction as direction
