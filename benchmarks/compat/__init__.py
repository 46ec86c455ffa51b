"""Which models, attention layers, optimizers and wrappers stabwatch was tried on, and what it saw of them."""
