"""`saturation`: inputs at which an elementwise function is flat."""

from stabwatch.kernels.saturation.eager import saturation as saturation
