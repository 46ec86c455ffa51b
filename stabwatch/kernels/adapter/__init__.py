"""Low-rank adapters: the size of B A, of what a step did to it, and its largest singular value, from r x r matrices."""

from stabwatch.kernels.adapter.eager import adapter as adapter
