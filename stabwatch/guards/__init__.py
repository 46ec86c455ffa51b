"""What may change a training run, and only when its owner asks for it."""

from stabwatch.guards.taylor import TaylorGuard as TaylorGuard
