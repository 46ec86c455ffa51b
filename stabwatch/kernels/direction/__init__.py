"""`direction`: the direction of an update relative to the weight; `adam`: the state of Adam's moments."""

from stabwatch.kernels.direction.eager import adam as adam
from stabwatch.kernels.direction.eager import direction as direction
from stabwatch.kernels.direction.eager import invariance as invariance
from stabwatch.kernels.direction.eager import radial as radial
from stabwatch.kernels.direction.eager import row_cosines as row_cosines
from stabwatch.kernels.direction.eager import together as together
