"""The catalogue: what stabwatch computes. One file per family; no torch here.

`CATALOGUE` is filled by importing the families, in the order in which people meet them.
"""

from stabwatch.signals.catalogue import CATALOGUE as CATALOGUE
from stabwatch.signals.declaration import Catalogue as Catalogue
from stabwatch.signals.declaration import Signal as Signal
