"""Scikit-learn's digits, enlarged to 28 x 28, under the names of torchvision's data sets."""

from . import datasets, transforms, utils

__all__ = ["datasets", "transforms", "utils"]
