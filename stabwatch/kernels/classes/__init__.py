"""`classes`: how sure of itself a classifier is."""

from stabwatch.kernels.classes.eager import classes as classes
