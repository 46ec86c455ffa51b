"""`attention_bracket`: bounds of the largest attention logit, from the logsumexp that the attention kernel saves.

For a query row with logsumexp L over n visible keys: L - ln n <= max_j s_j <= L.
"""

from stabwatch.kernels.attention_bracket.eager import brackets as brackets
