"""Exporters of a run log, one file per destination. Nothing here imports torch."""
