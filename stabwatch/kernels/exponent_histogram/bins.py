"""The bins: zero, the exponents, not finite."""

LOW, HIGH = -40, 40
BINS = HIGH - LOW + 3
BIAS = 127
"""Values of float32's exponent field: 0 is a subnormal number, 255 is not finite."""
FP16_LEAST, FP16_NORMAL = -25, -14
"""Smallest exponents in float16 of a number that does not round to zero, and of a number with all its digits."""
