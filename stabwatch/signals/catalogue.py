"""All families, registered in order. A new family is one file and one line here."""

from __future__ import annotations

from stabwatch.signals import activations, attention, gradients, logits, loss, run, weights
from stabwatch.signals.declaration import Catalogue

CATALOGUE = Catalogue()

for family in (loss, gradients, weights, activations, attention, logits, run):
    for signal in family.SIGNALS:
        CATALOGUE.register(signal)
