"""All families of signals, registered in order. A new family is one file and one line here."""

from __future__ import annotations

from stabwatch.signals import (
    activation_gradients,
    activations,
    adapters,
    attention,
    experts,
    geometry,
    gradients,
    increments,
    jacobian,
    logits,
    loops,
    loss,
    mean_mode,
    optimizer,
    policy,
    precision,
    quantised,
    ranks,
    run,
    setup,
    sharpness,
    spectra,
    taylor,
    weights,
)
from stabwatch.signals.declaration import Catalogue

CATALOGUE = Catalogue()

for family in (
    loss, gradients, setup, weights, optimizer, taylor, sharpness, jacobian, spectra, increments, adapters, quantised,
    activations, activation_gradients, loops, geometry, mean_mode, precision, attention, experts, logits, policy,
    ranks, run,
):  # fmt: skip
    for signal in family.SIGNALS:
        CATALOGUE.register(signal)
