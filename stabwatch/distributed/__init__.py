"""Many ranks: which group a watch measures in, and how ranks compare."""
