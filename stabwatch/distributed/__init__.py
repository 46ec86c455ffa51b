"""Several ranks: the merge over ranks, and the comparison of ranks."""
