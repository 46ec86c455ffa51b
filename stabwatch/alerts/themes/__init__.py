"""Derived signals and rules by theme: `families()` gives the signals, `RULES` the rules that compare them."""
