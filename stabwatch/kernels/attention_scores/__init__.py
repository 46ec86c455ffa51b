"""`attention_scores`: the exact largest attention logit of a call, and the head that holds it."""

from stabwatch.kernels.attention_scores.eager import largest_logit as largest_logit
