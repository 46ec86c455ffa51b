"""`classes`: the confidence of a classifier."""

from stabwatch.kernels.classes.eager import classes as classes
