"""The bins: zero, the exponents, not finite."""

LOW, HIGH = -40, 40
BINS = HIGH - LOW + 3
BIAS = 127
"""Of float32's exponent field: 0 there is a subnormal number, 255 no finite one."""
FP16_LEAST, FP16_NORMAL = -25, -14
"""Of float16: the exponent from which a number does not round to zero, and from which it has all its digits."""
