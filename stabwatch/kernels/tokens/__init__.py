"""`tokens`: how similar the tokens of a sample are."""

from stabwatch.kernels.tokens.eager import tokens as tokens
