"""Comparison of several runs: differences, divergence points, sweeps, widths, forecasts."""
