"""A watch like a user's, as in tests/training."""

from tests.training.conftest import attach as attach
