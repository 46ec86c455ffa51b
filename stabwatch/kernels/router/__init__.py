"""`router`: how a mixture of experts spreads its tokens."""

from stabwatch.kernels.router.eager import router as router
