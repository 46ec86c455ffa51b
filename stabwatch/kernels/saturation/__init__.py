"""`saturation`: which inputs of an elementwise function does it answer no more?"""

from stabwatch.kernels.saturation.eager import saturation as saturation
