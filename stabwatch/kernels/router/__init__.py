"""`router`: the distribution of tokens over experts, and the outputs of the experts."""

from stabwatch.kernels.router.eager import beyond as beyond
from stabwatch.kernels.router.eager import choice as choice
from stabwatch.kernels.router.eager import combined as combined
from stabwatch.kernels.router.eager import expert_moments as expert_moments
from stabwatch.kernels.router.eager import grouped as grouped
from stabwatch.kernels.router.eager import loads as loads
from stabwatch.kernels.router.eager import router as router
