"""What all hooks share: sites, roles, isolation of errors, accumulators."""
