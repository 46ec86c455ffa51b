"""Largest singular values of many linear maps that are known by their products with vectors."""

from stabwatch.kernels.jacobian.eager import climb_rows as climb_rows
