"""`geometry`: agreement of random halves of the features on the order of distances between points."""

from stabwatch.kernels.geometry.eager import centred_cosine as centred_cosine
from stabwatch.kernels.geometry.eager import drift as drift
from stabwatch.kernels.geometry.eager import rank_among as rank_among
from stabwatch.kernels.geometry.eager import shift_coherence as shift_coherence
from stabwatch.kernels.geometry.eager import split_scores as split_scores
from stabwatch.kernels.geometry.eager import stability as stability
