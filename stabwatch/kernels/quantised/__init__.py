"""Weights that are trained to be quantised: their integers, and how these flip from visit to visit."""

from stabwatch.kernels.quantised.eager import Memory as Memory
from stabwatch.kernels.quantised.eager import quantised as quantised
