"""One file per measured thing."""
