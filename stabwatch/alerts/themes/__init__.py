"""Derived signals and rules by theme. `features()` returns the signals; `RULES` are the rules that compare them."""
