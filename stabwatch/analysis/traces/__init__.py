"""Generation traces: how unstable a model's next-token distribution is while it writes an answer."""
