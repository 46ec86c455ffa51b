"""Several runs side by side: differences, divergence points, sweeps, widths, forecasts."""
