"""Guards: the only code that may change a training run, and only if the user enables it."""

from stabwatch.guards.backoff import LearningRateBackoff as LearningRateBackoff
from stabwatch.guards.skip_step import SkipStep as SkipStep
from stabwatch.guards.snapshots import Snapshots as Snapshots
from stabwatch.guards.taylor import TaylorGuard as TaylorGuard
