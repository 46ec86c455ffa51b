"""The bins: zero, the exponents, not finite."""

LOW, HIGH = -40, 40
BINS = HIGH - LOW + 3
BIAS = 127
"""Of float32's exponent field: 0 there is a subnormal number, 255 no finite one."""
