"""`logsumexp`: count, sum, sum of squares, non-finite count and maximum of the rows' logsumexp."""

from stabwatch.kernels.logsumexp.eager import row_statistics as row_statistics
