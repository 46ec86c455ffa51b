"""`contraction`: how much of what tells tokens apart an attention call lets through."""

from stabwatch.kernels.contraction.eager import contraction as contraction
