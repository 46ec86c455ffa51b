"""What all hooks share: context, sites, roles, views, probes, accumulators, isolation of errors."""
