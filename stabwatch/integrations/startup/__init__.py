"""The folder that `stabwatch run` puts on PYTHONPATH; it holds the `sitecustomize` that Python loads when it starts."""
