"""Derived signals and rules by theme: `features()` gives the signals, `RULES` the rules that compare them."""
