"""The catalogue of measured signals. One file per family of signals; nothing here imports torch.

`CATALOGUE` has all of them, from the loss to stabwatch's own cost.
"""

from stabwatch.signals.catalogue import CATALOGUE as CATALOGUE
from stabwatch.signals.declaration import Catalogue as Catalogue
from stabwatch.signals.declaration import Signal as Signal
